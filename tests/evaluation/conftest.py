"""Small models with data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.data import Split
from cnpass.document import Document

Build = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def build() -> Build:
    """Gives a classifier of 6x6 images: convolution, ReLU, product; batch size as asked."""

    def make(batch: int | str = "N", *, opset: int = 18, seed: int = 0) -> onnx.ModelProto:
        random = np.random.default_rng(seed)
        weights = {
            "w": random.standard_normal((4, 1, 3, 3)) / 2,
            "v": random.standard_normal((64, 5)) / 4,
        }
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Flatten", ["b"], ["c"], "flatten"),
            helper.make_node("MatMul", ["c", "v"], ["y"], "product"),
        ]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
            [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    return make


@pytest.fixture(scope="session")
def samples() -> np.ndarray:
    """Images for that classifier."""
    return np.random.default_rng(1).standard_normal((90, 1, 6, 6)).astype(np.float32)


@pytest.fixture
def document(build: Build) -> Document:
    """The classifier."""
    return Document.from_proto(build())


@pytest.fixture
def split(build: Build, samples: np.ndarray) -> Split:
    """The images, with labels that the classifier gets right two times out of three."""
    output = ort.InferenceSession(build().SerializeToString()).run(None, {"x": samples})[0]
    return Split({"x": samples}, (output.argmax(1) + (np.arange(len(samples)) % 3 == 0)) % 5)
