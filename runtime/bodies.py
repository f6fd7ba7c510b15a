"""Function bodies: the analog ops as standard ONNX ops, for runtimes without the native library.

A body is the code of `philox` and of the device model, traced into nodes. Attributes cannot change a body's
structure, so bodies are generated for the nodes of one file, which have one device model in common.

What the pass that writes the nodes has to keep to:

- opset 18 or newer, where BitwiseXor begins;
- all nodes of one op type carry `device`, and unless that is "programmed", the device's parameters, `seed`
  and `stream`;
- `weight_perm` on all nodes of one op type or on none, because a Transpose without `perm` reverses the axes:
  where one node needs it, the others get the identity;
- Conv's attributes as `ops.explicit_conv_attributes` gives them, and the same number of inputs on all nodes
  of one op type. ONNX Runtime and onnx's inliner drop a reference to an attribute that the node does not
  have, and accept that last inputs are missing; onnx's ReferenceEvaluator does neither. A file with both
  SAME_* and explicit pads still runs in that one through `reference_ops()` only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from cnpass.errors import ModelError
from cnpass.runtime.devices import DeviceModel, device_from_attributes
from cnpass.runtime.numerics import Array
from cnpass.runtime.ops import (
    ANALOG_CONV,
    ANALOG_MATMUL,
    CONV_ATTRIBUTES,
    DOMAIN,
    IDEAL_CHIP,
    WEIGHT_PERM,
    Purpose,
)
from cnpass.runtime.philox import GROUP, LANES, MASK, box_muller, counter_words, key_words, philox4x32
from cnpass.runtime.tracer import Tracer, Value

BITWISE_OPSET = 18
"""The oldest opset whose models can carry bodies."""

_INPUTS = {
    ANALOG_CONV: ("X", "W", "B", "chip", "first_sample"),
    ANALOG_MATMUL: ("X", "W", "chip", "first_sample"),
}
_GROUP_BITS = GROUP.bit_length() - 1
_CONV_KINDS = {"auto_pad": AttributeProto.STRING, "group": AttributeProto.INT}


def function_bodies(nodes: Iterable[NodeProto], opset: int) -> list[FunctionProto]:
    """Bodies for the analog nodes of one model.

    Args:
        nodes: all analog nodes of the model, those in subgraphs included; nodes of other kinds are ignored.
        opset: the model's version of the default domain.

    Returns:
        One function per op type that occurs, AnalogConv first.

    Raises:
        ModelError: the opset is too old, or the nodes break one of the rules above; the text names the node.
    """
    grouped: dict[str, list[NodeProto]] = {op_type: [] for op_type in _INPUTS}
    for node in nodes:
        if node.domain == DOMAIN and node.op_type in grouped:
            grouped[node.op_type].append(node)
    if opset < BITWISE_OPSET and any(grouped.values()):
        raise ModelError(
            f"function bodies need opset {BITWISE_OPSET}, the model has {opset}; convert it first"
        )
    return [_function(op_type, group, opset) for op_type, group in grouped.items() if group]


@dataclass(frozen=True)
class _TracedDraws:
    """The random numbers of the weight `W` on the chip `chip`, in the nodes of a body."""

    tracer: Tracer
    weight: Value

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:
        tracer = self.tracer
        size = tracer.op("Size", self.weight, dtype=np.int64)
        groups = (size + (GROUP - 1)) >> _GROUP_BITS
        blocks = tracer.op(
            "Range",
            tracer.constant(0, np.int64),
            groups * LANES,
            tracer.constant(1, np.int64),
            dtype=np.int64,
        )
        counter = counter_words(
            blocks,
            chip=tracer.input("chip", np.int64) & MASK,
            stream=tracer.attribute("stream", np.int64),
            purpose=purpose,
            copy=0,
        )
        x0, x1, x2, x3 = philox4x32(counter, key_words(tracer.attribute("seed", np.int64)))
        parts = (*box_muller(x0, x1, tracer), *box_muller(x2, x3, tracer))
        rows = [tracer.reshape(part, [-1, LANES]) for part in parts]
        flat = tracer.reshape(tracer.op("Concat", *rows, dtype=np.float32, axis=1), [-1])
        ends = tracer.constant([0], np.int64), tracer.reshape(size, [1])
        shape = tracer.op("Shape", self.weight, dtype=np.int64)
        return tracer.reshape(tracer.op("Slice", flat, *ends, dtype=np.float32), shape)


def _function(op_type: str, nodes: list[NodeProto], opset: int) -> FunctionProto:
    """The body that all these nodes share."""
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    device = _common_device(nodes, attributes)
    names = sorted(set().union(*attributes))
    tracer = Tracer()
    weight = tracer.input("W", np.float32)
    if device is not None:
        weight = _programmed(tracer, weight, device)
    if WEIGHT_PERM in names:
        weight = tracer.op("Transpose", weight, dtype=np.float32)
        tracer.nodes[-1].attribute.append(_reference("perm", WEIGHT_PERM, AttributeProto.INTS))
    if op_type == ANALOG_CONV:
        compute = helper.make_node("Conv", ["X", weight.name, "B"], ["Y"], name=op_type)
        compute.attribute.extend(
            _reference(name, name, _CONV_KINDS.get(name, AttributeProto.INTS))
            for name in CONV_ATTRIBUTES
            if name in names
        )
    else:
        compute = helper.make_node("MatMul", ["X", weight.name], ["Y"], name=op_type)
    return helper.make_function(
        DOMAIN,
        op_type,
        _INPUTS[op_type][: max(len(node.input) for node in nodes)],
        ["Y"],
        [*tracer.nodes, compute],
        [helper.make_opsetid("", opset)],
        names,
    )


def _common_device(nodes: list[NodeProto], attributes: list[dict[str, Any]]) -> type[DeviceModel] | None:
    """The one device model of the nodes; None if their weights are programmed upstream."""
    devices = []
    for node, values in zip(nodes, attributes, strict=True):
        label = node.name or node.output[0]
        try:
            device = device_from_attributes(values)
        except ModelError as error:
            raise ModelError(f"node {label!r}: {error}") from None
        missing = [] if device is None else [name for name in ("seed", "stream") if name not in values]
        if (WEIGHT_PERM in values) != (WEIGHT_PERM in attributes[0]):
            missing.append(WEIGHT_PERM)
        if missing:
            raise ModelError(f"node {label!r}: a function body needs attribute {missing[0]!r} on every node")
        devices.append(None if device is None else type(device))
        if devices[-1] is not devices[0]:
            raise ModelError(f"node {label!r}: one file describes one device model, and others name another")
    return devices[0]


def _programmed(tracer: Tracer, weight: Value, device: type[DeviceModel]) -> Value:
    """The weight on the chip; the nominal one on the ideal chip."""
    parameters = {name: tracer.attribute(name, np.float32) for name in device().attributes()}
    programmed: Value = device.respond(weight, _TracedDraws(tracer, weight), tracer, parameters)
    chip, ideal = tracer.input("chip", np.int64), tracer.constant(IDEAL_CHIP, np.int64)
    is_ideal = tracer.op("Equal", chip, ideal, dtype=np.bool_)
    return tracer.op("Where", is_ideal, weight, programmed, dtype=np.float32)


def _reference(name: str, source: str, kind: AttributeProto.AttributeType) -> AttributeProto:
    """An attribute whose value is the function's attribute `source`."""
    return AttributeProto(name=name, ref_attr_name=source, type=kind)
