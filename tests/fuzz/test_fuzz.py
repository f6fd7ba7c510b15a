"""A slice of the fuzzer, on every run; `python tests/fuzz/run.py` runs more."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SEED = 20260101


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_run", Path(__file__).with_name("run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fuzz


@pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_models_are_refused_or_survived(fuzz, tmp_path, cases):
    outcomes, failures = fuzz(tmp_path, SEED, 0, cases)
    assert failures == {}
    assert outcomes.total() == cases
    assert outcomes["done"] > cases // 20
    assert outcomes["refused"] > cases // 20
