"""Exports of the networks, made once per process."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

FOLDER = str(Path(__file__).parent)


@pytest.fixture(scope="session")
def exported():
    """Gives a network as ONNX by name, exporter and opset, and a batch of inputs by name."""
    pytest.importorskip("onnxscript")
    sys.path.insert(0, FOLDER)
    try:
        from export import export
    finally:
        sys.path.remove(FOLDER)

    @cache
    def get(name: str, exporter: str, opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        model, inputs = export(name, exporter, opset)
        initial = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in initial]
        return model, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}

    return get
