"""Small valid models with a field of every kind, to damage."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.passes import Pipeline

F = TensorProto.FLOAT


def _weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _model(nodes: list, weights: dict, x: list, outputs: tuple = ("y",), opset: int = 18) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, x)],
        [helper.make_tensor_value_info(name, F, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convnet() -> onnx.ModelProto:
    """Convolution, normalisation, pool, shape arithmetic, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "b", "s"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "c0"], ["y"], "fc", transB=1, alpha=0.5),
    ]
    weights = {"w": _weight(4, 2, 3, 3), "b": _weight(4), "s": np.float32([1, 2, 1, 3]), "v": _weight(3, 36)}
    weights |= {"zero": np.int64([0]), "rest": np.int64([-1]), "c0": _weight(3)}
    return _model(nodes, weights, ["n", 2, 6, 6])


def hidden() -> onnx.ModelProto:
    """Weights behind every operator that is looked through, one of them sparse, one in float16."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["a"], "first"),
        helper.make_node("Cast", ["half"], ["f"], to=F),
        helper.make_node("Unsqueeze", ["f", "last"], ["u"]),
        helper.make_node("Flatten", ["u"], ["o"], axis=0),
        helper.make_node("Squeeze", ["o", "first"], ["s"]),
        helper.make_node("Reshape", ["s", "square"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["b"], "second"),
        helper.make_node(
            "ConstantOfShape", ["square"], ["k"], value=numpy_helper.from_array(np.float32([2]))
        ),
        helper.make_node("MatMul", ["k", "b"], ["left"], "third"),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(_weight(4, 4))),
        helper.make_node("Gemm", ["left", "c", ""], ["y"], transA=1),
    ]
    weights = {"q": np.ones((4, 4), np.int8), "scale": _weight(4), "half": _weight(16).astype(np.float16)}
    weights |= {"square": np.int64([4, 4]), "first": np.int64([0]), "last": np.int64([-1])}
    model = _model(nodes, weights, [4, 4], opset=13)
    values = numpy_helper.from_array(np.float32([5]), "sparse")
    indices = numpy_helper.from_array(np.int64([2]), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model.metadata_props.add(key="author", value="someone")
    model.graph.input.append(helper.make_tensor_value_info("scale", F, [4]))
    return model


def control() -> onnx.ModelProto:
    """If, Loop, and a local function with a weight."""
    sides = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["r"], "inner")],
            side,
            [],
            [helper.make_tensor_value_info("r", F, None)],
            [numpy_helper.from_array(_weight(4, 4), "w")],
        )
        for side in ("then", "else")
    }
    body = helper.make_graph(
        [
            helper.make_node("Dense", ["s", "outer"], ["t"], domain="local"),
            helper.make_node("Identity", ["go"], ["go2"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", F, None),
        ],
        [
            helper.make_tensor_value_info("go2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", F, None),
        ],
    )
    nodes = [
        helper.make_node("If", ["flag"], ["h"], "if", **sides),
        helper.make_node("Loop", ["count", "", "h"], ["k"], "loop", body=body),
        helper.make_node("Dense", ["k", "outer"], ["y"], "call", domain="local"),
    ]
    model = _model(nodes, {"outer": _weight(4, 4), "flag": np.array(True), "count": np.array(2)}, ["n", 4])
    dense = [helper.make_node("MatMul", ["p", "w"], ["q"])]
    model.functions.append(
        helper.make_function("local", "Dense", ["p", "w"], ["q"], dense, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def external() -> onnx.ModelProto:
    """A weight in `weights.bin`, at an offset."""
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(4, 4)}, ["n", 4])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "64"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    return model


def mapped() -> onnx.ModelProto:
    """What map-crossbar makes, with function bodies."""
    document = Document.from_proto(convnet())
    Pipeline.parse("map-crossbar").run(document)
    return document.to_proto()


def all_sources() -> list[bytes]:
    """Every model as bytes."""
    return [make().SerializeToString() for make in (convnet, hidden, control, external, mapped)]
