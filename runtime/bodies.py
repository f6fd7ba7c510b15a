"""Function bodies: the analog ops as standard ONNX ops, for runtimes without the native library.

A body is the code of `philox` and of the device model, traced into nodes. Attributes cannot change a body's
structure, so bodies are generated for the nodes of one file, which have one device model in common.

What the pass that writes the nodes has to keep to:

- opset 18 or newer, where BitwiseXor begins;
- all nodes of one op type carry `device`, and unless that is "programmed", the device's parameters, `seed`
  and `stream`;
- `weight_perm`, `copies`, `extra_copies`, `stuck_low`, `stuck_high` and the attributes of the periphery each
  on all nodes of one op type or on none, because a missing one cannot have a default: where one node needs
  it, the others get the identity, 1 or 0;
- `first_sample` on all nodes of one op type of which one has read noise;
- Conv's attributes as `ops.explicit_conv_attributes` gives them, and the same number of inputs on all nodes
  of one op type. ONNX Runtime and onnx's inliner drop a reference to an attribute that the node does not
  have, and accept that last inputs are missing; onnx's ReferenceEvaluator does neither. A file with both
  SAME_* and explicit pads still runs in that one through `reference_ops()` only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from cnpass.errors import ModelError
from cnpass.runtime.devices import FULL_SCALE, SCALE_FLOOR, DeviceModel, device_from_attributes
from cnpass.runtime.numerics import Array
from cnpass.runtime.ops import (
    ANALOG_CONV,
    ANALOG_MATMUL,
    CONV_ATTRIBUTES,
    COPIES,
    DOMAIN,
    EXTRA_COPIES,
    IDEAL_CHIP,
    STUCK_HIGH,
    STUCK_LOW,
    WEIGHT_PERM,
    Purpose,
    column_axis,
)
from cnpass.runtime.periphery import PERIPHERY, Periphery
from cnpass.runtime.periphery_body import PeripheryBody
from cnpass.runtime.philox import GROUP, LANES, MASK, box_muller, counter_words, key_words, philox4x32
from cnpass.runtime.tracer import Tracer, Value

BITWISE_OPSET = 18
"""The oldest opset whose models can carry bodies."""

_INPUTS = {
    ANALOG_CONV: ("X", "W", "B", "chip", "first_sample"),
    ANALOG_MATMUL: ("X", "W", "chip", "first_sample"),
}
_GROUP_BITS = GROUP.bit_length() - 1
_ALL_OR_NONE = (COPIES, EXTRA_COPIES, STUCK_HIGH, STUCK_LOW, WEIGHT_PERM, *PERIPHERY)
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
    """The random numbers of the weight `W` on the chip `chip`, in the nodes of a body.

    With `copies` they have an axis in front that counts them.
    """

    tracer: Tracer
    weight: Value
    copies: Value | None

    @cached_property
    def _size(self) -> Value:
        return self.tracer.op("Size", self.weight, dtype=np.int64)

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:
        x0, x1, x2, x3 = self._words(purpose)
        return self._elements((*box_muller(x0, x1, self.tracer), *box_muller(x2, x3, self.tracer)))

    def stuck(self, low: Array, high: Array, purpose: int = Purpose.FAULTS) -> tuple[Array, Array]:
        drawn = self._elements(self._words(purpose))
        first = self._threshold(low)
        is_low, below = drawn < first, drawn < first + self._threshold(high)
        healthy = self.tracer.op("Not", below, dtype=np.bool_)
        either = self.tracer.op("Or", is_low, healthy, dtype=np.bool_)
        return is_low, self.tracer.op("Not", either, dtype=np.bool_)

    def _threshold(self, rate: Value) -> Value:
        """See `cnpass.runtime.philox.threshold`."""
        return self.tracer.cast(self.tracer.cast(rate, np.float64) * 2.0**32, np.int64)

    def _words(self, purpose: int) -> tuple[Value, ...]:
        tracer = self.tracer
        groups = (self._size + (GROUP - 1)) >> _GROUP_BITS
        counter = counter_words(
            self._range(groups * LANES),
            chip=tracer.input("chip", np.int64) & MASK,
            stream=tracer.attribute("stream", np.int64),
            purpose=purpose,
            copy=0 if self.copies is None else tracer.reshape(self._range(self.copies), [-1, 1]),
        )
        return philox4x32(counter, key_words(tracer.attribute("seed", np.int64)))

    def _elements(self, parts: tuple[Value, ...]) -> Value:
        """The four parts of every group, in the order of the elements."""
        tracer, dtype = self.tracer, parts[0].dtype
        rows = [tracer.reshape(part, [-1, LANES]) for part in parts]
        together = tracer.op("Concat", *rows, dtype=dtype, axis=1)
        shape = tracer.op("Shape", self.weight, dtype=np.int64)
        first, last = tracer.constant([0], np.int64), tracer.reshape(self._size, [1])
        if self.copies is None:
            flat = tracer.op("Slice", tracer.reshape(together, [-1]), first, last, dtype=dtype)
            return tracer.reshape(flat, shape)
        copies = tracer.reshape(self.copies, [1])
        each = tracer.op("Concat", copies, tracer.constant([-1], np.int64), dtype=np.int64, axis=0)
        axis = tracer.constant([1], np.int64)
        flat = tracer.op("Slice", tracer.reshape(together, each), first, last, axis, dtype=dtype)
        return tracer.reshape(flat, tracer.op("Concat", copies, shape, dtype=np.int64, axis=0))

    def _range(self, count: Value) -> Value:
        ends = self.tracer.constant(0, np.int64), count, self.tracer.constant(1, np.int64)
        return self.tracer.op("Range", *ends, dtype=np.int64)


def _function(op_type: str, nodes: list[NodeProto], opset: int) -> FunctionProto:
    """The body that all these nodes share."""
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    device = _common_device(nodes, attributes)
    names = sorted(set().union(*attributes))
    tracer = Tracer()
    stored = tracer.input("W", np.float32)
    held = [stored]
    if device is not None:
        held = programmed(tracer, stored, device, names, lambda: _column_axis(tracer, op_type, names))
    weight, *more = [_permuted(tracer, each, names) for each in held]
    if more:
        weight = tracer.where(_has_more(tracer, op_type, weight), more[0], weight)
    body = PeripheryBody(tracer, names, _peripheries(op_type, nodes, attributes))
    x = body.convert(tracer.input("X", np.float32))
    if op_type == ANALOG_CONV and body.reads:
        groups = tracer.attribute("group", np.int64) if "group" in names else tracer.constant(1, np.int64)
        body.conv(weight, groups, lambda parts: _conv(tracer, x, parts, "", names), _bias(tracer, weight))
    elif op_type == ANALOG_CONV:
        _conv(tracer, x, weight, "B", names)
    elif body.reads:
        body.matmul(x, weight)
    else:
        tracer.op("MatMul", x, weight, dtype=np.float32)
    # What came last writes Y, and names the op where ONNX Runtime reports that it failed.
    tracer.nodes[-1].output[0], tracer.nodes[-1].name = "Y", op_type
    return helper.make_function(
        DOMAIN,
        op_type,
        _INPUTS[op_type][: max(len(node.input) for node in nodes)],
        ["Y"],
        tracer.nodes,
        [helper.make_opsetid("", opset)],
        names,
    )


def _conv(tracer: Tracer, x: Value, weight: Value, bias: str, names: Collection[str]) -> Value:
    """Conv with the node's attributes."""
    y = tracer.op("Conv", x, weight, tracer.input(bias, np.float32), dtype=np.float32)
    tracer.nodes[-1].attribute.extend(
        _reference(name, name, _CONV_KINDS.get(name, AttributeProto.INTS))
        for name in CONV_ATTRIBUTES
        if name in names
    )
    return y


def _bias(tracer: Tracer, weight: Value) -> Value:
    """B as [1, filters, 1], or zeros if the node has none: only such operators as Conv accept its absence."""
    one = tracer.constant([1], np.int64)
    shape = tracer.op("Shape", weight, dtype=np.int64)
    filters = tracer.op("Slice", shape, tracer.constant([0], np.int64), one, dtype=np.int64)
    point = tracer.op("Concat", filters, one, one, dtype=np.int64, axis=0)
    zeros = tracer.op("ConstantOfShape", point, dtype=np.float32)
    x = tracer.constant(np.zeros((1, 1, 1)), np.float32)
    return tracer.op("Conv", x, zeros, tracer.input("B", np.float32), dtype=np.float32)


def _peripheries(op_type: str, nodes: list[NodeProto], attributes: list[dict[str, Any]]) -> list[Periphery]:
    """The periphery of every node; a range that is not set yet makes the body give NaN."""
    found = []
    for node, values in zip(nodes, attributes, strict=True):
        label = node.name or node.output[0]
        try:
            found.append(Periphery.from_attributes(values))
        except ModelError as error:
            raise ModelError(f"node {label!r}: {error}") from None
    if any(periphery.read_noise for periphery in found):
        place = _INPUTS[op_type].index("first_sample")
        for node in nodes:
            missing = [n for n in ("seed", "stream") if n not in {a.name for a in node.attribute}]
            if missing or len(node.input) <= place or not node.input[place]:
                what = f"attribute {missing[0]!r}" if missing else "input 'first_sample'"
                label = node.name or node.output[0]
                raise ModelError(
                    f"node {label!r}: a function body with read noise needs {what} on every node"
                )
    return found


def _common_device(nodes: list[NodeProto], attributes: list[dict[str, Any]]) -> type[DeviceModel] | None:
    """The one device model of the nodes; None if their weights are programmed upstream."""
    devices: list[type[DeviceModel] | None] = []
    names = set().union(*attributes)
    for node, values in zip(nodes, attributes, strict=True):
        label = node.name or node.output[0]
        try:
            device = device_from_attributes(values)
        except ModelError as error:
            raise ModelError(f"node {label!r}: {error}") from None
        missing = [] if device is None else [name for name in ("seed", "stream") if name not in values]
        missing += [name for name in _ALL_OR_NONE if name in names and name not in values]
        if missing:
            raise ModelError(f"node {label!r}: a function body needs attribute {missing[0]!r} on every node")
        devices.append(None if device is None else type(device))
        if devices[-1] is not devices[0]:
            raise ModelError(f"node {label!r}: one file describes one device model, and others name another")
    return devices[0]


def _permuted(tracer: Tracer, weight: Value, names: Collection[str]) -> Value:
    """The weight as the op computes with it."""
    if WEIGHT_PERM not in names:
        return weight
    permuted = tracer.op("Transpose", weight, dtype=np.float32)
    tracer.nodes[-1].attribute.append(_reference("perm", WEIGHT_PERM, AttributeProto.INTS))
    return permuted


def _has_more(tracer: Tracer, op_type: str, weight: Value) -> Value:
    """Which weights, as the op computes with them, have one device more; see `cnpass.runtime.copies`."""
    one = tracer.constant([1], np.int64)
    zero, end = tracer.constant([0], np.int64), tracer.constant([2**31], np.int64)
    shape = tracer.op("Shape", weight, dtype=np.int64)
    first, last = (one, end) if op_type == ANALOG_CONV else (zero, one)
    sizes = tracer.op("Slice", shape, first, last, dtype=np.int64)
    rows = tracer.reshape(tracer.op("ReduceProd", sizes, dtype=np.int64, keepdims=1), [])
    ends = tracer.constant(0, np.int64), rows, tracer.constant(1, np.int64)
    numbers = tracer.op("Range", *ends, dtype=np.int64)
    extra = tracer.integers(EXTRA_COPIES)
    count, depth = (tracer.op("Gather", extra, place, dtype=np.int64) for place in (zero, one))
    # 0, 0 is for nodes without extra copies
    period = tracer.op("Max", depth, one, dtype=np.int64)
    chosen = tracer.op("Mod", numbers, period, dtype=np.int64) < count
    # AnalogConv's weight has the columns in front, AnalogMatMul's behind.
    if op_type != ANALOG_CONV:
        sizes = tracer.op("Concat", sizes, one, dtype=np.int64, axis=0)
    return tracer.op("Reshape", chosen, sizes, dtype=np.bool_, allowzero=1)


def programmed(
    tracer: Tracer,
    weight: Value,
    device: type[DeviceModel],
    names: Collection[str],
    column_axis: Callable[[], Value],
) -> list[Value]:
    """The weight on the chip; the nominal one on the ideal chip.

    Args:
        tracer: of a function with the input `chip`.
        weight: the stored weight.
        device: device model.
        names: attributes of the function, the device model's parameters, `seed` and `stream` among them.
        column_axis: gives the axis along which crossbar columns are counted.

    Returns:
        The weight; with `extra_copies` also the one that has one device more everywhere.
    """
    given = [*device.parameter_names(), *(name for name in (STUCK_LOW, STUCK_HIGH) if name in names)]
    parameters = {name: tracer.attribute(name, np.float32) for name in given}
    if device.scaled or STUCK_LOW in parameters:
        parameters[FULL_SCALE] = _full_scale(tracer, weight, parameters, column_axis)
    copies = tracer.attribute(COPIES, np.int64) if COPIES in names else None
    if EXTRA_COPIES in names:
        fewer = tracer.constant(1, np.int64) if copies is None else copies
        copies = fewer + 1
    each: Value = device.assemble(weight, _TracedDraws(tracer, weight, copies), tracer, parameters)
    held = [each] if copies is None else [_mean(tracer, each, copies)]
    if EXTRA_COPIES in names:
        held.insert(0, _mean(tracer, _first(tracer, each, fewer), fewer))
    chip, ideal = tracer.input("chip", np.int64), tracer.constant(IDEAL_CHIP, np.int64)
    is_ideal = tracer.op("Equal", chip, ideal, dtype=np.bool_)
    return [tracer.where(is_ideal, weight, value) for value in held]


def _first(tracer: Tracer, each: Value, count: Value) -> Value:
    """The first so many along the first axis."""
    axis = tracer.constant([0], np.int64)
    return tracer.op("Slice", each, axis, tracer.reshape(count, [1]), axis, dtype=each.dtype)


def _mean(tracer: Tracer, each: Value, count: Value) -> Value:
    """The mean of devices, of which there are `count` along the first axis."""
    axis = tracer.constant([0], np.int64)
    return tracer.op("ReduceSum", each, axis, dtype=np.float32, keepdims=0) / tracer.float32(count)


def _full_scale(
    tracer: Tracer, weight: Value, parameters: dict[str, Value], column_axis: Callable[[], Value]
) -> Value:
    """See `DeviceModel.program`."""
    magnitude = tracer.abs(weight)
    largest = tracer.op("ReduceMax", magnitude, dtype=np.float32, keepdims=0)
    if SCALE_FLOOR not in parameters:
        return largest
    rank = tracer.op("Size", tracer.op("Shape", weight, dtype=np.int64), dtype=np.int64)
    axes = tracer.op(
        "Range", tracer.constant(0, np.int64), rank, tracer.constant(1, np.int64), dtype=np.int64
    )
    is_column = tracer.op("Equal", axes, column_axis(), dtype=np.bool_)
    others = tracer.op("Compress", axes, tracer.op("Not", is_column, dtype=np.bool_), dtype=np.int64)
    columns = tracer.op("ReduceMax", magnitude, others, dtype=np.float32)
    least = largest * parameters[SCALE_FLOOR]
    return tracer.op("Max", columns, least, dtype=np.float32)


def _column_axis(tracer: Tracer, op_type: str, names: Collection[str]) -> Value:
    """See `cnpass.runtime.ops.column_axis`."""
    axis = tracer.constant(column_axis(op_type, None), np.int64)
    if WEIGHT_PERM not in names:
        return axis
    return tracer.op("Gather", tracer.integers(WEIGHT_PERM), axis, dtype=np.int64)


def _reference(name: str, source: str, kind: AttributeProto.AttributeType) -> AttributeProto:
    """An attribute whose value is the function's attribute `source`."""
    return AttributeProto(name=name, ref_attr_name=source, type=kind)
