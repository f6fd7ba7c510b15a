"""Torch rules against ONNX Runtime on random shapes and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from cnpass.training.lift import Lifted

F, I64 = TensorProto.FLOAT, TensorProto.INT64
TYPES = {
    np.dtype(np.float32): F,
    np.dtype(np.int64): I64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}


def _check(make, ort, op: str, arrays: list[Any], opset: int, outputs: int = 1, **attributes: Any) -> None:
    """Compare one node on arrays, of which None stands for an absent input."""
    names = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    given = [a for a in arrays if a is not None]
    node = helper.make_node(op, names, [f"o{k}" for k in range(outputs)], **attributes)
    inputs = {n: (TYPES[a.dtype], a.shape) for n, a in zip(filter(None, names), given, strict=True)}
    model = make([node], inputs, list(node.output), opset=opset)
    want = ort(model, given)
    with torch.no_grad():
        got = Lifted(model)(*[torch.from_numpy(a) for a in given])
    for g, w in zip(got, want, strict=True):
        assert tuple(g.shape) == w.shape
        np.testing.assert_allclose(g.numpy(), w, rtol=1e-4, atol=1e-5)


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(24))
def test_convolution(make, ort, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 1 + seed % 3
    group = int(rng.integers(1, 4))
    kernel = rng.integers(1, 4, n)
    attributes: dict[str, Any] = {
        "strides": rng.integers(1, 3, n).tolist(),
        "dilations": rng.integers(1, 3, n).tolist(),
        "group": group,
    }
    mode = ["pads", "SAME_UPPER", "SAME_LOWER", "VALID"][seed % 4]
    if mode == "pads":
        attributes["pads"] = rng.integers(0, 3, 2 * n).tolist()
    else:
        attributes["auto_pad"] = mode
        attributes["dilations"] = [1] * n
    x = _floats(rng, 2, 2 * group, *(7 + rng.integers(0, 4, n)))
    w = _floats(rng, 3 * group, 2, *kernel)
    b = _floats(rng, 3 * group) if seed % 2 else None
    _check(make, ort, "Conv", [x, w, b] if b is not None else [x, w], 11, **attributes)


@pytest.mark.parametrize("seed", range(32))
def test_transposed_convolution(make, ort, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, group = 1 + seed % 2, int(rng.integers(1, 3))
    strides = rng.integers(1, 4, n)
    attributes: dict[str, Any] = {"strides": strides.tolist(), "group": group}
    mode = ["pads", "SAME_UPPER", "SAME_LOWER", "shape"][seed // 2 % 4]
    x = _floats(rng, 2, 2 * group, *rng.integers(4, 7, n))
    kernel = np.maximum(strides + rng.integers(-2, 3, n), 1)
    if mode == "pads":
        attributes["pads"] = rng.integers(0, 2, 2 * n).tolist()
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]
        attributes["dilations"] = rng.integers(1, 3, n).tolist()
    elif mode == "shape":
        full = (np.array(x.shape[2:]) - 1) * strides + kernel
        attributes["output_shape"] = (full + rng.integers(-2, strides)).tolist()
    else:
        attributes["auto_pad"] = mode
    _check(make, ort, "ConvTranspose", [x, _floats(rng, 2 * group, 3, *kernel)], 11, **attributes)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("seed", range(12))
def test_pooling(make, ort, op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 1 + seed % 3
    kernel = rng.integers(2, 4, n)
    attributes: dict[str, Any] = {"kernel_shape": kernel.tolist(), "strides": rng.integers(1, 4, n).tolist()}
    if seed % 4 == 3:
        attributes["auto_pad"] = ["SAME_UPPER", "SAME_LOWER", "VALID"][seed % 3]
    else:
        attributes["pads"] = rng.integers(0, kernel.min(), 2 * n).tolist()
        attributes["ceil_mode"] = seed % 2
    if op == "AveragePool":
        attributes["count_include_pad"] = seed // 2 % 2
    if op == "MaxPool" and "pads" in attributes:
        attributes["dilations"] = rng.integers(1, 3, n).tolist()
    if op == "LpPool":
        attributes.pop("ceil_mode", None)
        attributes["p"] = 1 + seed % 3
    x = _floats(rng, 2, 3, *(8 + rng.integers(0, 4, n)))
    _check(make, ort, op, [x], 19 if op == "AveragePool" else 18, **attributes)


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 1, 2, -1])
def test_softmax_changed_its_meaning_in_opset_13(make, ort, op: str, opset: int, axis: int | None) -> None:
    if opset == 9 and axis == -1:
        axis = 0
    x = _floats(np.random.default_rng(0), 2, 3, 4)
    _check(make, ort, op, [x], opset, **({} if axis is None else {"axis": axis}))


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("factor", [2.0, 0.6, 1.5])
def test_resize(make, ort, mode: str, coordinates: str, factor: float) -> None:
    x = _floats(np.random.default_rng(0), 1, 2, 7, 5)
    scales = np.array([1, 1, factor, factor], np.float32)
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest" and coordinates == "half_pixel_symmetric":
        pytest.skip("at these sizes the last bit of the offset decides between two elements")
    if mode == "nearest":
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            _check(make, ort, "Resize", [x, None, scales], 19, **attributes, nearest_mode=rounding)
    else:
        _check(make, ort, "Resize", [x, None, scales], 19, **attributes)


def test_resize_to_sizes_and_upsample(make, ort) -> None:
    x = _floats(np.random.default_rng(0), 1, 2, 4, 5)
    _check(make, ort, "Resize", [x, None, None, np.array([1, 2, 9, 3])], 13, mode="linear")
    _check(make, ort, "Upsample", [x, np.array([1, 1, 2, 3], np.float32)], 9, mode="linear")
    _check(make, ort, "Upsample", [x], 7, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")


@pytest.mark.parametrize(("size", "factor"), [(10, 0.7), (20, 0.9), (40, 1.4), (5, 2.6), (6, 0.6), (7, 0.4)])
def test_resized_maps_are_as_large_as_the_runtime_makes_them(make, ort, size: int, factor: float) -> None:
    """Scales are float32 numbers, some of which lie just below what was meant."""
    x = _floats(np.random.default_rng(0), 1, 1, size, 3)
    scales = np.array([1, 1, factor, 1], np.float32)
    _check(make, ort, "Resize", [x, None, scales], 13, mode="linear")
    _check(make, ort, "Resize", [x, scales], 10, mode="nearest")
    if factor > 1:
        _check(make, ort, "Upsample", [x, scales], 9, mode="nearest")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_integer_maps_are_resized(make, ort, dtype: Any) -> None:
    x = _integers(np.random.default_rng(0), dtype, 1, 2, 4, 5)
    scales = np.array([1, 1, 2, 1.5], np.float32)
    _check(make, ort, "Resize", [x, None, scales], 13, mode="linear")
    _check(make, ort, "Resize", [x, None, scales], 13, mode="nearest")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("variant", [0, 1])
def test_recurrent(make, ort, op: str, direction: str, variant: int) -> None:
    rng = np.random.default_rng(variant)
    gates, d, hidden, size = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + (direction == "bidirectional"), 4, 3
    arrays: list[Any] = [_floats(rng, 5, 2, size), _floats(rng, d, gates * hidden, size)]
    arrays.append(_floats(rng, d, gates * hidden, hidden))
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if variant:
        arrays += [_floats(rng, d, 2 * gates * hidden), None, _floats(rng, d, 2, hidden)]
        if op == "LSTM":
            arrays += [_floats(rng, d, 2, hidden), _floats(rng, d, 3 * hidden)]
        if op == "GRU":
            attributes["linear_before_reset"] = 1
        if op == "RNN":
            attributes["activations"] = ["Relu"] * d
    _check(make, ort, op, arrays, 14, outputs=3 if op == "LSTM" else 2, **attributes)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(make, ort, mode: str) -> None:
    x = _floats(np.random.default_rng(0), 2, 5, 4)
    pads = np.array([0, 2, 1, 0, 1, 3])
    _check(make, ort, "Pad", [x, pads], 19, mode=mode)
    if mode != "wrap":
        _check(make, ort, "Pad", [x], 9, mode=mode, pads=pads.tolist())
    if mode == "constant":
        _check(make, ort, "Pad", [x, np.array([0, -1, 1, 0, 2, -1]), np.array(3.5, np.float32)], 18)


@pytest.mark.parametrize("seed", range(12))
def test_slice(make, ort, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = _floats(rng, 6, 7, 5)
    axes = rng.permutation(3)[:2]
    steps = rng.choice([-3, -2, -1, 1, 2], 2)
    starts, ends = rng.integers(-9, 9, 2), rng.integers(-9, 9, 2)
    _check(make, ort, "Slice", [x, starts, ends, axes, steps], 13)


REDUCE = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"]


@pytest.mark.parametrize("op", REDUCE)
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions(make, ort, op: str, keep: int) -> None:
    x = _floats(np.random.default_rng(0), 2, 3, 4)
    _check(make, ort, f"Reduce{op}", [x], 11, axes=[0, -1], keepdims=keep)
    _check(make, ort, f"Reduce{op}", [x], 11, keepdims=keep)
    _check(make, ort, f"Reduce{op}", [x, np.array([1])], 18, keepdims=keep)
    _check(make, ort, f"Reduce{op}", [x], 18, keepdims=keep, noop_with_empty_axes=1)


def test_a_norm_of_zero_has_a_gradient(make) -> None:
    """Normalisation by ReduceL2, Clip and Div, as torch exports it, of a sample of zeros."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceL2", ["h"], ["n"], axes=[1]),
        helper.make_node("Clip", ["n", "least"], ["c"]),
        helper.make_node("Div", ["h", "c"], ["y"]),
    ]
    weight = _floats(np.random.default_rng(0), 4, 3)
    given = {"w": weight, "least": np.float32(1e-12)}
    lifted = Lifted(make(nodes, {"x": (F, (2, 4))}, ["y"], given, opset=13))
    lifted.weights["w"].requires_grad_(True)
    lifted(torch.zeros(2, 4))[0].sum().backward()
    assert torch.isfinite(lifted.weights["w"].grad).all()


@pytest.mark.parametrize("op", ["InstanceNormalization", "GroupNormalization"])
def test_groups_of_one_value_are_normalised_to_the_bias(make, ort, op: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [_floats(rng, 1, 3, 1, 1), _floats(rng, 3), _floats(rng, 3)]
    attributes = {"num_groups": 3} if op == "GroupNormalization" else {}
    _check(make, ort, op, arrays, 21, **attributes)


def test_ranges_powers_and_names_of_activations_as_the_runtime_reads_them(make, ort) -> None:
    for limits in ((5, 3, 1), (0, 7, 3), (7, 0, -2), (3, 3, 1)):
        _check(make, ort, "Range", [np.array(v) for v in limits], 11)
    _check(make, ort, "Pow", [np.array([1, 2, -3]), np.array(-1)], 15)
    _check(make, ort, "Pow", [np.array([1, 2, -3]), np.array([2, 3, 0])], 15)
    rng = np.random.default_rng(0)
    arrays = [_floats(rng, 3, 1, 2), _floats(rng, 1, 16, 2), _floats(rng, 1, 16, 4)]
    _check(make, ort, "LSTM", arrays, 14, outputs=3, hidden_size=4, activations=["sigmoid", "tanh", "tanh"])


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8, TensorProto.UINT8])
def test_the_zero_point_says_where_values_end(make, ort, kind: int) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x = np.array([-1000, -100, -3, 0, 5, 100, 1000], np.float32)
    model = make(nodes, {"x": (F, x.shape)}, ["y"], {"s": np.float32(1)}, opset=21)
    model.graph.initializer.append(helper.make_tensor("z", kind, [], [3]))
    with torch.no_grad():
        got = Lifted(model)(torch.from_numpy(x))[0]
    np.testing.assert_array_equal(got.numpy(), ort(model, [x])[0])


UNARY = (
    "Relu Sigmoid Tanh Softplus Softsign HardSwish Mish LeakyRelu Elu Celu Selu HardSigmoid ThresholdedRelu "
    "Erf Exp Abs Neg Floor Ceil Round Sign Sin Cos Tan Sinh Cosh Asinh Atan Identity Gelu Shrink"
)


@pytest.mark.parametrize("op", UNARY.split())
def test_activations(make, ort, op: str) -> None:
    x = (3 * _floats(np.random.default_rng(0), 3, 17)).astype(np.float32)
    _check(make, ort, op, [x], 20)


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (3, 1)])
def test_gemm(make, ort, trans_a: int, trans_b: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a = _floats(rng, *((5, 3) if trans_a else (3, 5)))
    b = _floats(rng, *((4, 5) if trans_b else (5, 4)))
    _check(
        make,
        ort,
        "Gemm",
        [a, b, _floats(rng, *shape)],
        13,
        transA=trans_a,
        transB=trans_b,
        alpha=0.5,
        beta=2.0,
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantisation_pairs(make, ort, axis: int) -> None:
    rng = np.random.default_rng(0)
    x = 3 * _floats(rng, 3, 4, 5)
    scale = np.abs(_floats(rng, x.shape[axis])) + 0.02
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], axis=axis),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=axis),
    ]
    model = make(nodes, {"x": (F, x.shape)}, ["y"], {"s": scale})
    tensor = torch.from_numpy(x).requires_grad_()
    got = Lifted(model)(tensor)[0]
    np.testing.assert_allclose(got.detach().numpy(), ort(model, [x])[0], atol=1e-5)
    got.sum().backward()
    shape = [-1 if i == axis % 3 else 1 for i in range(3)]
    level = x / scale.reshape(shape)
    inside = (level > 0) & (level < 255)
    np.testing.assert_allclose(tensor.grad.numpy()[inside], 1.0, rtol=1e-5)
    assert not tensor.grad.numpy()[level < -0.6].any()


def _integers(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def _zeros(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    """Zero points near the middle of a type's range."""
    limits = np.iinfo(dtype)
    return ((limits.min + limits.max + 1) // 2 + rng.integers(-9, 9, shape)).astype(dtype)


def _check_integers(make, ort, op: str, arrays: list[Any], **attributes: Any) -> None:
    """Compare a node that multiplies integers, and find that it leaves nothing to train."""
    names = [f"i{k}" for k in range(len(arrays))]
    node = helper.make_node(op, names, ["y"], **attributes)
    stored = dict(zip(names[1:], arrays[1:], strict=True))
    quantise = helper.make_node("QuantizeLinear", ["x", "one", "middle"], ["i0"])
    stored |= {"one": np.float32(1), "middle": np.array(0, arrays[0].dtype)}
    x = arrays[0].astype(np.float32)
    model = make([quantise, node], {"x": (F, x.shape)}, ["y"], stored, 13)
    want = ort(model, [x])[0].astype(np.float64)
    module = Lifted(model)
    got = module(torch.from_numpy(x))[0]
    assert tuple(got.shape) == want.shape
    # A requantised sum may lie on the edge between two steps.
    off = np.abs(got.double().numpy() - want)
    assert off.max() <= ("QLinear" in op)
    assert (off > 0).mean() <= 1e-3
    assert not module.weights


@pytest.mark.parametrize("types", [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)])
@pytest.mark.parametrize("seed", range(4))
def test_convolutions_of_integers(make, ort, types: tuple[Any, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    group, (kind, held) = 1 + seed % 2, types
    attributes: dict[str, Any] = {
        "strides": rng.integers(1, 3, 2).tolist(),
        "pads": rng.integers(0, 2, 4).tolist(),
        "group": group,
    }
    x = _integers(rng, kind, 2, 2 * group, 7, 8)
    w = _integers(rng, held, 3 * group, 2, *rng.integers(1, 4, 2))
    maps = (3 * group,) if seed // 2 else ()
    zero = np.zeros(maps, held) if held is np.int8 else np.full(maps, _zeros(rng, held))
    scales = [np.float32(0.02), np.float32(rng.uniform(0.01, 0.03, maps)), np.float32(1.3)]
    bias = rng.integers(-9999, 9999, 3 * group).astype(np.int32)
    arrays = [x, scales[0], _zeros(rng, kind), w, scales[1], zero, scales[2], _zeros(rng, kind), bias]
    _check_integers(make, ort, "QLinearConv", arrays if seed % 2 else arrays[:-1], **attributes)
    if kind is np.uint8:  # what ONNX Runtime has
        zero = zero.reshape(-1)[0]
        _check_integers(make, ort, "ConvInteger", [x, w, _zeros(rng, kind), zero], **attributes)


@pytest.mark.parametrize("types", [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)])
@pytest.mark.parametrize("seed", range(4))
def test_products_of_integers(make, ort, types: tuple[Any, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind, held = types
    x, w = _integers(rng, kind, *((2, 3, 5) if seed % 2 else (3, 5))), _integers(rng, held, 5, 4)
    columns = (4,) if seed // 2 else ()
    scales = [np.float32(0.02), np.float32(rng.uniform(0.01, 0.03, columns)), np.float32(0.7)]
    zero = _zeros(rng, held, *columns)
    arrays = [x, scales[0], _zeros(rng, kind), w, scales[1], zero, scales[2], _zeros(rng, kind)]
    _check_integers(make, ort, "QLinearMatMul", arrays)
    _check_integers(make, ort, "MatMulInteger", [x, w, _zeros(rng, kind), zero])


def test_gradients_pass_through_convolutions_of_integers(make) -> None:
    rng = np.random.default_rng(0)
    w = _integers(rng, np.int8, 3, 2, 3, 3)
    held = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "w": w,
        "sw": np.float32(0.01),
        "zw": np.int8(0),
        "sy": np.float32(10.0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "sw", "zw", "sy", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "sy", "z"], ["y"]),
    ]
    tensor = torch.from_numpy(_floats(rng, 1, 2, 6, 6)).requires_grad_()
    Lifted(make(nodes, {"x": (F, tensor.shape)}, ["y"], held))(tensor)[0].sum().backward()
    plain = torch.zeros_like(tensor, requires_grad=True)
    torch.nn.functional.conv2d(plain, torch.from_numpy(w * np.float32(0.01))).sum().backward()
    torch.testing.assert_close(tensor.grad, plain.grad)


@pytest.mark.parametrize("seed", range(12))
def test_sampling_at_positions(make, ort, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mode = ["linear", "nearest", "cubic"][seed % 3]
    volume = seed % 2 and mode != "cubic"
    attributes = {
        "mode": mode,
        "padding_mode": ["zeros", "border", "reflection"][seed // 3 % 3],
        "align_corners": seed // 2 % 2,
    }
    extents = rng.integers(3, 6, 3 if volume else 2)
    x = _floats(rng, 2, 3, *extents)
    grid = rng.uniform(-1.4, 1.4, (2, *rng.integers(2, 6, len(extents)), len(extents))).astype(np.float32)
    _check(make, ort, "GridSample", [x, grid], 20, **attributes)
    if not volume:
        attributes["mode"] = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
        _check(make, ort, "GridSample", [x, grid], 16, **attributes)


@pytest.mark.parametrize(
    ("split", "keep", "position", "axis", "new"),
    [(None, 1, 0, 1, 0), (None, 0, -1, 0, 1), (2, 1, 1, 2, 0), ([1, 3, 2], 1, None, 2, 0)],
)
def test_sequences(make, ort, split: Any, keep: int, position: int | None, axis: int, new: int) -> None:
    """Split a product, take one part, put its double into the sequence, leave one out, and join the rest."""
    rng = np.random.default_rng(0)
    weights = {"w": _floats(rng, 4, 6), "last": np.array(-1), "two": np.array([2, 2], np.float32)[:1]}
    weights |= {} if split is None else {"split": np.array(split)}
    weights |= {} if position is None else {"at": np.array(position)}
    at = [] if position is None else ["at"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node(
            "SplitToSequence", ["m"] if split is None else ["m", "split"], ["s"], axis=2, keepdims=keep
        ),
        helper.make_node("SequenceAt", ["s", "last"], ["p"]),
        helper.make_node("Mul", ["p", "two"], ["d"]),
        helper.make_node("SequenceInsert", ["s", "d", *at], ["t"]),
        helper.make_node("SequenceErase", ["t", *at], ["u"]),
        helper.make_node("SequenceLength", ["u"], ["n"]),
        helper.make_node("SequenceConstruct", ["d", "p"], ["v"]),
        helper.make_node("ConcatFromSequence", ["u"], ["y"], axis=axis, new_axis=new),
        helper.make_node("ConcatFromSequence", ["v"], ["z"], axis=0),
    ]
    x = _floats(rng, 2, 3, 4)
    model = make(nodes, {"x": (F, x.shape)}, ["y", "z", "n"], weights, 17)
    model.graph.output[2].type.tensor_type.elem_type = I64
    module = Lifted(model)
    for got, want in zip(module(torch.from_numpy(x)), ort(model, [x]), strict=True):
        assert tuple(got.shape) == want.shape
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-5, atol=1e-6)
    module(torch.from_numpy(x))[0].sum().backward()
    assert module.weights["w"].grad is not None


def test_a_sequence_is_carried_by_a_loop(make, ort) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    whole = helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("c", 9, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c2"]),
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("SequenceInsert", ["s", "m"], ["s2"]),
        ],
        "body",
        [*whole, helper.make_value_info("s", kind)],
        [helper.make_tensor_value_info("c2", 9, []), helper.make_value_info("s2", kind)],
    )
    nodes = [
        helper.make_node("SequenceEmpty", [], ["none"]),
        helper.make_node("Loop", ["count", "", "none"], ["all"], body=body),
        helper.make_node("ConcatFromSequence", ["all"], ["y"], axis=0),
    ]
    rng = np.random.default_rng(0)
    x = _floats(rng, 2, 4)
    model = make(nodes, {"x": (F, x.shape)}, ["y"], {"w": _floats(rng, 4, 3), "count": np.array(3)}, 17)
    got = Lifted(model)(torch.from_numpy(x))[0]
    np.testing.assert_allclose(got.detach().numpy(), ort(model, [x])[0], rtol=1e-5, atol=1e-6)


def test_old_broadcasting_by_axis(make) -> None:
    rng = np.random.default_rng(0)
    x, y = _floats(rng, 2, 3, 4), _floats(rng, 3)
    node = helper.make_node("Add", ["a", "b"], ["o"], broadcast=1, axis=1)
    model = make([node], {"a": (F, x.shape), "b": (F, y.shape)}, ["o"], opset=6)
    got = Lifted(model)(torch.from_numpy(x), torch.from_numpy(y))[0]
    np.testing.assert_allclose(got.numpy(), x + y[None, :, None])
