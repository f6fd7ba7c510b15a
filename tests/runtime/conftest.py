"""Small models around one plain or analog node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.runtime import ops
from cnpass.runtime.devices import DeviceModel, LogNormal

CONV_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 11), (4, 3, 3), {"strides": [2], "pads": [1, 0]}),
    "2d": ((2, 3, 9, 8), (5, 3, 3, 2), {"pads": [1, 0, 2, 1]}),
    "2d-plain": ((3, 2, 6, 6), (4, 2, 5, 5), {}),
    "3d": ((1, 2, 5, 6, 7), (3, 2, 2, 3, 1), {"strides": [1, 2, 3], "pads": [0, 1, 0, 1, 1, 0]}),
    "squares": ((2, 20, 9, 8), (24, 20, 3, 3), {"pads": [1, 1, 1, 1]}),  # Winograd's, in the library
    "groups": ((2, 6, 7, 7), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 8, 7, 6), (16, 1, 3, 3), {"group": 8, "strides": [2, 2]}),
    "dilations": ((1, 3, 12, 13), (4, 3, 3, 3), {"dilations": [2, 3], "strides": [2, 1]}),
    "same-upper": ((2, 3, 10, 9), (4, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [3, 2]}),
    "same-lower": ((2, 3, 10, 9), (4, 3, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "valid": ((1, 2, 9, 9), (3, 2, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "pointwise": ((2, 70, 3, 3), (33, 70, 1, 1), {"kernel_shape": [1, 1]}),
}
"""Shape of the input, shape of the weight, attributes."""


MILD = LogNormal(sigma=0.3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=CONV_CASES)
def conv_case(request, rng):
    """Input, weight, bias and attributes of a convolution."""
    x_shape, w_shape, attributes = CONV_CASES[request.param]
    arrays = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    return *arrays, attributes


@pytest.fixture
def plain_model():
    """Builds a model of one standard node whose input is `x`, with constant operands (None: absent)."""

    def build(
        op_type: str, *constants: np.ndarray | None, opset: int = 18, **attributes: Any
    ) -> onnx.ModelProto:
        names = ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
        node = helper.make_node(op_type, ["x", *names], ["y"], name="plain", **attributes)
        return _model([node], dict(zip(names, constants, strict=True)), opset)

    return build


@pytest.fixture
def analog_model():
    """Builds a model of analog nodes in a row, as `map-crossbar` writes it, without function bodies.

    Each layer is (weight, bias or None, attributes); a weight of more than two axes makes AnalogConv.
    `rank` is that of the model's input, by default the first weight's.
    """

    def build(
        *layers: tuple[np.ndarray, np.ndarray | None, dict[str, Any]],
        device: DeviceModel | None = MILD,
        seed: int = 2**40 + 17,
        opset: int = 18,
        rank: int | None = None,
    ) -> onnx.ModelProto:
        nodes, constants = [], {}
        rank = rank or layers[0][0].ndim
        common: dict[str, Any] = {"device": ops.PROGRAMMED} if device is None else {"device": device.name}
        common |= {"seed": seed, **({} if device is None else device.attributes())}
        for index, (weight, bias, attributes) in enumerate(layers):
            conv = weight.ndim > 2
            constants[f"w{index}"] = weight
            operands = [f"y{index - 1}" if index else "x", f"w{index}"]
            if conv:
                operands.append("" if bias is None else f"b{index}")
                if bias is not None:
                    constants[f"b{index}"] = bias
            nodes.append(
                helper.make_node(
                    ops.ANALOG_CONV if conv else ops.ANALOG_MATMUL,
                    [*operands, ops.CHIP_INPUT],
                    ["y" if index == len(layers) - 1 else f"y{index}"],
                    name=f"analog{index}",
                    domain=ops.DOMAIN,
                    stream=index,
                    **common,
                    **attributes,
                )
            )
        model = _model(nodes, constants, opset, rank)
        entry = model.metadata_props.add()
        entry.key, entry.value = ops.META_CHIP_INPUT, ops.CHIP_INPUT
        return model

    return build


def _model(nodes, constants, opset, analog_rank=None):
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items() if name]
    shape = None if analog_rank is None else [None] * analog_rank
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    opsets = [helper.make_opsetid("", opset)]
    if analog_rank is not None:
        inputs.append(helper.make_tensor_value_info(ops.CHIP_INPUT, TensorProto.INT64, []))
        initializers.append(numpy_helper.from_array(np.array(0), ops.CHIP_INPUT))
        opsets.append(helper.make_opsetid(ops.DOMAIN, ops.VERSION))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
