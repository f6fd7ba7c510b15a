"""Small models and ways to run them, shared by the training tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

Arrays = Sequence[np.ndarray]


def _run(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)})


@pytest.fixture(scope="session")
def ort() -> Callable[[onnx.ModelProto, Arrays], list[np.ndarray]]:
    """Runs a model in ONNX Runtime, unoptimised."""
    return _run


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str]]],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)
    for output, found in zip(model.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(found)
        if not output.type.tensor_type.elem_type:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


@pytest.fixture(scope="session")
def make() -> Callable[..., onnx.ModelProto]:
    """Builds a model: make(nodes, {input: (type, shape)}, [outputs], {weight: array}, opset)."""
    return _model


@pytest.fixture
def convnet() -> onnx.ModelProto:
    """Two convolutions, a pool and a classifier on [N, 1, 8, 8]: 4 classes."""
    rng = np.random.default_rng(1)
    weights = {
        "conv1.weight": rng.normal(0, 0.5, (6, 1, 3, 3)).astype(np.float32),
        "conv1.bias": rng.normal(0, 0.1, 6).astype(np.float32),
        "conv2.weight": rng.normal(0, 0.3, (8, 6, 3, 3)).astype(np.float32),
        "fc.weight": rng.normal(0, 0.2, (4, 128)).astype(np.float32),
        "fc.bias": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "conv2.weight"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], "fc", transB=1),
    ]
    return _model(nodes, {"x": (TensorProto.FLOAT, ["n", 1, 8, 8])}, ["y"], weights)
