"""The page of results shows what the committed records say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_that_of_the_records() -> None:
    spec = importlib.util.spec_from_file_location("optimized", ROOT / "benchmarks" / "optimized.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "results.md").read_text() == module.render(), (
        "run python benchmarks/optimized.py table"
    )
    assert "| `lenet5-cifar10` |" in module.table()
