"""Fixtures for all tests: bundled models, and the real datasets and third-party models where present."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("CNPASS_SHARED", ROOT.parent / "shared"))
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.relative_to(SHARED.parent)} is not there (set CNPASS_SHARED)")
    return path


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of bundled models."""
    return ROOT / "models"


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (inputs or {"x": ["n", 4]}).items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@pytest.fixture(scope="session")
def build():
    """Builds a model from nodes and named weights; input `x` of shape [n, 4], output `y`."""
    return _model


@pytest.fixture(scope="session")
def zoo() -> Callable[[str], tuple[Path, dict]]:
    """Gives (path, entry of zoo.json) of a third-party model by name; skips where the zoo is absent."""

    def find(name: str) -> tuple[Path, dict]:
        entries = json.loads(_need(SHARED / "zoo" / "zoo.json").read_text())
        entry = next(e for e in entries if e["name"] == name)
        return SHARED / "zoo" / entry["file"], entry

    return find


def _zoo_names() -> list[str | None]:
    table = SHARED / "zoo" / "zoo.json"
    return [entry["name"] for entry in json.loads(table.read_text())] if table.exists() else [None]


@pytest.fixture(scope="session", params=_zoo_names())
def zoo_model(request, zoo) -> tuple[Path, dict]:
    """(path, entry of zoo.json) of every third-party model in turn; skips where the zoo is absent."""
    return zoo(request.param)


@pytest.fixture(scope="session")
def dataset() -> Callable[[str], Arrays]:
    """Gives (x_train, y_train, x_test, y_test) of "mnist", "cifar10" or "cifar100"; skips where absent."""

    @cache
    def read(name: str) -> Arrays:
        loader = _need(SHARED / "data" / "load.py")
        spec = importlib.util.spec_from_file_location("shared_data", loader)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.load(name)

    return read


@pytest.fixture(scope="session")
def mnist_files() -> Path:
    """The folder of MNIST's four idx files; skips where it is absent."""
    return _need(SHARED / "data" / "mnist")
