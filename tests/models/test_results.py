"""The pages of results show what the committed records say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "page", "row"),
    [
        ("optimized", "results.md", "| `digits-vgg9` |"),
        ("retraining", "results.md", "`digits-vgg9`, 100 epochs"),
        ("per_chip", "results.md", "| 62.21 | batch-norm |"),
        ("samplers", "search.md", "| `digits-vgg9` | reinforce |"),
        ("paper_table", "paper.md", "### `lenet5-cifar10`"),
        ("peer_devices", "devices.md", "| pcm, programming |"),
        ("peer_speed", "speed.md", "| aihwkit, C++ tiles |"),
        ("speed", "speed.md", "| `vgg16` | 128 |"),
    ],
)
def test_the_tables_are_those_of_the_records(
    script: str, page: str, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _script(script, monkeypatch)
    assert (ROOT / "docs" / page).read_text() == module.render(), f"run python benchmarks/{script}.py table"
    assert row in module.table()


def test_the_benchmark_of_samplers_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _script("samplers", monkeypatch)
    with module.bench(ROOT / "models" / "digits-lenet5.onnx", {}, tmp_path) as at:
        assert len(at.nodes) == 3


def _script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where scripts find each other
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_our_devices_agree_with_those_of_peers_where_no_reason_says_otherwise() -> None:
    store = json.loads((ROOT / "benchmarks" / "peers" / "devices.json").read_text())
    assert len(store["peers"]) == 2
    for peer in store["peers"].values():
        for name, case in peer["cases"].items():
            agree = all(row["distance"] <= store["limit"] for row in case["rows"])
            assert agree == (not case["differs"]), f"{peer['version']}: {name}"
