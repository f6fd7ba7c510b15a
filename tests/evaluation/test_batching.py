"""Freeing a fixed batch: what is freed gives the results of one by one, and what mixes samples is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.batching import NotFreeableError, fixed_batch, free
from cnpass.runtime.ops import META_CHIP_INPUT

RANDOM = np.random.default_rng(0)


def build(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})


def shapes(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, tuple[int, ...]]:
    traced = onnx.ModelProto()
    traced.CopyFrom(proto)
    names = [name for node in traced.graph.node for name in node.output if name not in {"", "y"}]
    traced.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = run(traced, x)
    return {"x": x.shape} | {name: value.shape for name, value in zip(["y", *names], values, strict=True)}


def f32(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def n(op: str, *inputs: str, out: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [out], **attributes)


SAFE = {
    "conv-flatten-gemm": (
        [
            n("Conv", "x", "w", out="a"),
            n("MaxPool", "a", out="b", kernel_shape=[2, 2]),
            n("Flatten", "b", out="c"),
            n("Gemm", "c", "v", "k"),
        ],
        (1, 2, 5, 5),
        {"w": f32(4, 2, 2, 2), "v": f32(36, 3), "k": f32(1, 3)},
    ),
    "reshape-one": ([n("Reshape", "x", "s")], (1, 2, 3), {"s": i64(1, 6)}),
    "reshape-minus-one": ([n("Reshape", "x", "s")], (1, 2, 3), {"s": i64(-1, 6)}),
    "reshape-rest": ([n("Reshape", "x", "s")], (1, 2, 3), {"s": i64(1, -1)}),
    "reshape-zero": ([n("Reshape", "x", "s")], (1, 2, 3), {"s": i64(0, 6)}),
    "reshape-of-four": ([n("Reshape", "x", "s")], (4, 2, 3), {"s": i64(4, 3, 2)}),
    "shape-shared-with-a-weight": (
        [n("Reshape", "x", "s", out="a"), n("Reshape", "w", "s", out="v"), n("Mul", "a", "v")],
        (1, 2, 3),
        {"s": i64(1, 6), "w": f32(6)},
    ),
    "attention": (
        [
            n("Transpose", "x", out="t", perm=[0, 2, 1]),
            n("MatMul", "x", "t", out="m"),
            n("Softmax", "m", out="s", axis=-1),
            n("MatMul", "s", "x"),
        ],
        (1, 3, 4),
        {},
    ),
    "broadcasts": (
        [n("Add", "x", "b", out="a"), n("Mul", "a", "c", out="d"), n("PRelu", "d", "p")],
        (1, 3, 4, 4),
        {"b": f32(3, 1, 1), "c": f32(1, 3, 1, 1), "p": f32(3, 1, 1)},
    ),
    "axes": (
        [
            n("Unsqueeze", "x", "two", out="a"),
            n("Squeeze", "a", "two", out="b"),
            n("ReduceMean", "b", "last", out="c", keepdims=0),
            n("Concat", "c", "c", out="d", axis=1),
            n("Slice", "d", "one", "five", "one", out="e"),
            n("Gather", "e", "picked", out="f", axis=1),
            n("Pad", "f", "pads", out="g"),
            n("LayerNormalization", "g", "scale"),
        ],
        (1, 3, 4),
        {
            "two": i64(2),
            "last": i64(-1),
            "one": i64(1),
            "five": i64(5),
            "picked": i64(0, 2),
            "pads": i64(0, 1, 0, 2),
            "scale": f32(5),
        },
    ),
    "view-to-x.size(0)-and-minus-one": (
        [
            n("Relu", "x", out="a"),
            n("Shape", "a", out="s"),
            n("Constant", out="zero", value=numpy_helper.from_array(np.array(0, np.int64))),
            n("Gather", "s", "zero", out="size"),
            n("Unsqueeze", "size", "first", out="u"),
            n("Concat", "u", "rest", out="t", axis=0),
            n("Reshape", "a", "t"),
        ],
        (1, 2, 3),
        {"first": i64(0), "rest": i64(-1)},
    ),
    "view-with-slices-of-the-shape": (
        [
            n("Shape", "x", out="s"),
            n("Slice", "s", "zero", "one", out="size"),
            n("Slice", "s", "one", "three", out="inner"),
            n("ReduceProd", "inner", out="product"),
            n("Concat", "size", "product", out="t", axis=0),
            n("Reshape", "x", "t"),
        ],
        (2, 2, 3),
        {"zero": i64(0), "one": i64(1), "three": i64(3)},
    ),
    "view-with-Shape-from-and-to": (
        [
            n("Shape", "x", out="size", end=1),
            n("Shape", "x", out="inner", start=1, end=-1),
            n("Concat", "size", "inner", "rest", out="t", axis=0),
            n("Reshape", "x", "t"),
        ],
        (1, 4, 3, 2),
        {"rest": i64(-1)},
    ),
    "heads-by-division": (
        [
            n("Shape", "x", out="s"),
            n("Gather", "s", "two", out="width"),
            n("Cast", "width", out="wide", to=TensorProto.INT32),
            n("Div", "wide", "heads", out="head"),
            n("Cast", "head", out="h", to=TensorProto.INT64),
            n("Gather", "s", "zero_and_one", out="front"),
            n("Concat", "front", "minus", "h", out="t", axis=0),
            n("Reshape", "x", "t", out="r"),
            n("Transpose", "r", perm=[0, 2, 1, 3]),
        ],
        (1, 3, 8),
        {"two": i64(2), "heads": i32(4), "zero_and_one": i64(0, 1), "minus": i64(-1)},
    ),
    "batch-as-the-constant-1": (
        [
            n("Shape", "x", out="s"),
            n("Gather", "s", "last", out="width"),
            n("Mul", "width", "three", out="w"),
            n("Concat", "one", "w", out="t", axis=0),
            n("Reshape", "x", "t"),
        ],
        (1, 3, 4),
        {"last": i64(-1), "three": i64(3), "one": i64(1)},
    ),
    "shape-of-a-tensor-as-it-is": (
        [n("Relu", "x", out="a"), n("Shape", "x", out="s"), n("Reshape", "a", "s")],
        (1, 2, 3),
        {},
    ),
    "shape-as-a-number": (
        [
            n("Shape", "x", out="s"),
            n("Gather", "s", "axis", out="width"),
            n("Cast", "width", out="w", to=TensorProto.FLOAT),
            n("Sqrt", "w", out="root"),
            n("Div", "x", "root"),
        ],
        (2, 3),
        {"axis": np.array(1, np.int64)},
    ),
    "constant-branch": (
        [n("Shape", "w", out="s"), n("Cast", "s", out="c", to=1), n("Add", "x", "c")],
        (1, 2),
        {"w": f32(3, 5)},
    ),
}


@pytest.mark.parametrize("name", SAFE)
def test_freed_model_gives_the_same_results(name: str) -> None:
    nodes, shape, constants = SAFE[name]
    proto = build(nodes, shape, constants)
    before = proto.SerializeToString(deterministic=True)
    samples = f32(shape[0] * 5, *shape[1:])
    size = shape[0]
    assert fixed_batch(proto) == size
    freed = free(proto, shapes(proto, samples[:size]))
    assert proto.SerializeToString(deterministic=True) == before
    assert fixed_batch(freed) is None
    alone = np.concatenate([run(proto, samples[i : i + size])[0] for i in range(0, len(samples), size)])
    np.testing.assert_allclose(run(freed, samples)[0], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(freed, samples[: size + 1])[0], alone[: size + 1], rtol=1e-5, atol=1e-6)


MIXING = {
    "sum over samples": ([n("ReduceSum", "x", "zero")], (2, 3), {"zero": i64(0)}),
    "sum over everything": ([n("ReduceSum", "x")], (1, 3), {}),
    "softmax over samples": ([n("Softmax", "x", axis=0)], (2, 3), {}),
    "samples moved": ([n("Transpose", "x", perm=[1, 0, 2])], (2, 2, 3), {}),
    "samples reversed": ([n("Transpose", "x")], (2, 2), {}),
    "heads folded into the batch": ([n("Reshape", "x", "s")], (1, 2, 3), {"s": i64(2, 3)}),
    "weights per sample": ([n("Add", "x", "w")], (2, 3), {"w": f32(2, 3)}),
    "constant token": ([n("Concat", "x", "w", axis=1)], (1, 2, 3), {"w": f32(1, 1, 3)}),
    "concatenated samples": ([n("Concat", "x", "x", axis=0)], (2, 3), {}),
    "product of samples": ([n("Transpose", "x", out="t", perm=[0, 1]), n("MatMul", "x", "t")], (3, 3), {}),
    "sample as weight": ([n("MatMul", "w", "x")], (3, 3), {"w": f32(3, 3)}),
    "transposed Gemm": ([n("Gemm", "x", "w", transA=1)], (3, 3), {"w": f32(3, 3)}),
    "first dimension squeezed": ([n("Squeeze", "x")], (1, 3), {}),
    "dimension before the first": ([n("Unsqueeze", "x", "zero")], (1, 3), {"zero": i64(0)}),
    "samples picked": ([n("Gather", "x", "zero", axis=0)], (1, 3), {"zero": i64(0)}),
    "samples sliced": ([n("Slice", "x", "zero", "one")], (1, 3), {"zero": i64(0), "one": i64(1)}),
    "samples padded": ([n("Pad", "x", "p")], (1, 3), {"p": i64(1, 0, 0, 0)}),
    "flattened whole": ([n("Flatten", "x", axis=2)], (1, 2, 3), {}),
    "shape of the samples' numbers": (
        [
            n("Mul", "x", "zero", out="a"),
            n("Gather", "a", "index", out="b", axis=1),
            n("Add", "b", "one", out="c"),
            n("Cast", "c", out="t", to=TensorProto.INT64),
            n("Reshape", "x", "t"),
        ],
        (1, 1),
        {
            "zero": np.zeros(1, np.float32),
            "index": np.array(0, np.int64),
            "one": np.ones(1, np.float32),
        },
    ),
    "everything in one row": (
        [n("Size", "x", out="s"), n("Reshape", "s", "minus", out="t"), n("Reshape", "x", "t")],
        (1, 2, 3),
        {"minus": i64(-1)},
    ),
    "samples and channels swapped by shape": (
        [n("Shape", "x", out="s"), n("Gather", "s", "swapped", out="t"), n("Reshape", "x", "t")],
        (2, 3, 3),
        {"swapped": i64(1, 0, 2)},
    ),
    "samples folded into rows by shape": (
        [
            n("Shape", "x", out="s"),
            n("Slice", "s", "two", "three", out="width"),
            n("Concat", "minus", "width", out="t", axis=0),
            n("Reshape", "x", "t"),
        ],
        (1, 2, 3),
        {"two": i64(2), "three": i64(3), "minus": i64(-1)},
    ),
    "weights expanded to the shape": (
        [n("Shape", "x", out="s"), n("Expand", "w", "s", out="e"), n("Add", "x", "e")],
        (2, 3),
        {"w": f32(2, 1)},
    ),
    "shape as an output": ([n("Shape", "x")], (1, 3), {}),
    "unknown operator": ([n("EyeLike", "x")], (3, 3), {}),
    "output without samples": ([n("Relu", "x", out="a"), n("Relu", "w")], (1, 3), {"w": f32(1, 3)}),
    "batch statistics": (
        [helper.make_node("BatchNormalization", ["x", "k", "k", "k", "k"], ["y", "m", "v"], training_mode=1)],
        (2, 3),
        {"k": np.ones(3, np.float32)},
    ),
}


def test_a_shape_that_is_replaced_leaves_no_initializer_behind() -> None:
    nodes = [n("Conv", "x", "w", out="a"), n("Reshape", "a", "t", out="b"), n("Relu", "b")]
    proto = build(nodes, (1, 3, 5, 5), {"w": f32(2, 3, 3, 3), "t": i64(0, -1)})
    proto.ir_version = 3  # ONNX Runtime then refuses initializers that nothing reads
    samples = f32(4, 3, 5, 5)
    freed = free(proto, shapes(proto, samples[:1]))
    assert [tensor.name for tensor in freed.graph.initializer] == ["w"]
    alone = np.concatenate([run(proto, sample[None])[0] for sample in samples])
    np.testing.assert_allclose(run(freed, samples)[0], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 21])
def test_the_usual_flatten_of_torch_exports_leaves_no_shape_arithmetic(opset: int) -> None:
    axes = {} if opset >= 13 else {"axes": [0]}
    first = ["first"] if opset >= 13 else []
    nodes = [
        n("Conv", "x", "w", out="a"),
        n("Shape", "a", out="s"),
        n("Gather", "s", "zero", out="size", axis=0),
        n("Unsqueeze", "size", *first, out="u", **axes),
        n("Unsqueeze", "minus", *first, out="v", **axes),
        n("Concat", "u", "v", out="t", axis=0),
        n("Reshape", "a", "t", out="flat"),
        n("Gemm", "flat", "k", "b"),
    ]
    scalars = {"zero": np.array(0, np.int64), "minus": np.array(-1, np.int64)}
    weights = {"w": f32(2, 3, 3, 3), "k": f32(18, 4), "b": f32(4)}
    proto = build(nodes, (1, 3, 5, 5), scalars | weights | ({"first": i64(0)} if first else {}), opset)
    samples = f32(4, 3, 5, 5)
    freed = free(proto, shapes(proto, samples[:1]))
    kept = [node.op_type for node in freed.graph.node if node.op_type not in {"Constant", "Unsqueeze"}]
    assert kept == ["Conv", "Reshape", "Gemm"]
    alone = np.concatenate([run(proto, sample[None])[0] for sample in samples])
    np.testing.assert_allclose(run(freed, samples)[0], alone, rtol=1e-5, atol=1e-6)


def test_what_is_computed_of_the_chip_stays_computed() -> None:
    nodes = [
        n("Shape", "x", out="s"),
        n("Add", "s", "chip", out="sum"),
        n("Cast", "sum", out="c", to=TensorProto.FLOAT),
        n("ReduceMax", "c", out="m", keepdims=0),
        n("Mul", "x", "m"),
    ]
    proto = build(nodes, (1, 3), {"chip": np.array(0, np.int64)})
    proto.graph.input.append(helper.make_tensor_value_info("chip", TensorProto.INT64, ()))
    proto.metadata_props.add(key=META_CHIP_INPUT, value="chip")
    freed = free(proto, shapes(proto, f32(1, 3)))
    assert [node.op_type for node in freed.graph.node if node.op_type != "Constant"] == [
        "Add",
        "Cast",
        "ReduceMax",
        "Mul",
    ]


@pytest.mark.parametrize("name", MIXING)
def test_what_may_mix_samples_is_refused(name: str) -> None:
    nodes, shape, constants = MIXING[name]
    proto = build(nodes, shape, constants)
    with pytest.raises(NotFreeableError):
        free(proto, shapes(proto, f32(*shape)))


def test_free_batch_is_left_alone() -> None:
    proto = build([n("Relu", "x")], (1, 3))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert fixed_batch(proto) is None
    with pytest.raises(NotFreeableError, match="no input fixes"):
        free(proto, {})


def test_inputs_that_disagree() -> None:
    proto = build([n("Relu", "x")], (1, 3))
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (2, 3)))
    with pytest.raises(NotFreeableError, match="different first dimensions"):
        fixed_batch(proto)
