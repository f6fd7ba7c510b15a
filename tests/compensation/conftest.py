"""Models with one place for compensation each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

Arrays = Sequence[np.ndarray]


@pytest.fixture(scope="session")
def ort() -> Callable[[onnx.ModelProto, Arrays], list[np.ndarray]]:
    """Runs a model in ONNX Runtime."""

    def run(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return session.run(None, {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)})

    return run


@pytest.fixture(scope="session")
def single() -> Callable[..., onnx.ModelProto]:
    """Builds x -> one node named "site" -> Relu -> y."""

    def build(
        op: str, x: Sequence[int | str], weight: np.ndarray, opset: int = 18, **attributes: object
    ) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
        nodes = [
            helper.make_node(op, ["x", "w"], ["h"], "site", **attributes),
            helper.make_node("Relu", ["h"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "single",
            [helper.make_tensor_value_info("x", kind, x)],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
        assert model.graph.output[0].type.tensor_type.elem_type != TensorProto.UNDEFINED
        return model

    return build
