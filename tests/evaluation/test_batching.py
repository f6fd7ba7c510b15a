"""Freeing a fixed batch: what is freed gives the results of one by one, and what mixes samples is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.batching import NotFreeableError, fixed_batch, free

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
    "shape computed": ([n("Shape", "x", out="s"), n("Reshape", "x", "s")], (1, 2, 3), {}),
    "unknown operator": ([n("EyeLike", "x")], (3, 3), {}),
    "output without samples": ([n("Relu", "x", out="a"), n("Relu", "w")], (1, 3), {"w": f32(1, 3)}),
    "batch statistics": (
        [helper.make_node("BatchNormalization", ["x", "k", "k", "k", "k"], ["y", "m", "v"], training_mode=1)],
        (2, 3),
        {"k": np.ones(3, np.float32)},
    ),
}


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
