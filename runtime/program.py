"""Weights programmed by a node of their own, for device models that the native library does not know.

The node `Program<Device>(W, chip) -> W'` stands in front of an analog node with device "programmed". It is a
model-local function in standard operators, the formula traced, so it runs in every runtime, with and without
the library. It programs anew at every run: right, but slower than a device model that is in the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, helper

from cnpass.errors import ModelError
from cnpass.runtime.bodies import BITWISE_OPSET, programmed
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.ops import COPIES, STUCK_HIGH, STUCK_LOW
from cnpass.runtime.tracer import Tracer

PROGRAM_DOMAIN = "ai.cnpass.program"
"""Domain of the functions, apart from that of the library's operators; the version is 1."""

_COLUMN_AXIS = "column_axis"


def program_node(
    device: DeviceModel,
    weight: str,
    chip: str,
    output: str,
    *,
    seed: int,
    stream: int,
    copies: int = 1,
    column_axis: int = 0,
) -> NodeProto:
    """The node that programs one weight; the model needs `program_function` of the same device model.

    Args:
        device: device model with its parameters.
        weight: name of the stored weight, float32.
        chip: name of the int64 scalar that selects the chip.
        output: name of the programmed weight.
        seed: 64 bits, signed.
        stream: number of the weight, 0 to 2^24 - 1.
        copies: devices per weight.
        column_axis: axis of the weight along which crossbar columns are counted.
    """
    rates = {STUCK_LOW: device.stuck_low, STUCK_HIGH: device.stuck_high}
    attributes: dict[str, Any] = {
        **{name: float(value) for name, value in {**device.attributes(), **rates}.items()},
        "seed": seed,
        "stream": stream,
        COPIES: copies,
        _COLUMN_AXIS: column_axis,
    }
    return helper.make_node(
        _op_type(type(device)), [weight, chip], [output], domain=PROGRAM_DOMAIN, **attributes
    )


def program_function(device: type[DeviceModel], opset: int) -> FunctionProto:
    """The function behind every `program_node` of a device model.

    Args:
        device: class of the device model.
        opset: the model's version of the default domain.

    Raises:
        ModelError: the opset is too old.
    """
    if opset < BITWISE_OPSET:
        raise ModelError(
            f"function bodies need opset {BITWISE_OPSET}, the model has {opset}; convert it first"
        )
    names = [*device.parameter_names(), STUCK_LOW, STUCK_HIGH, "seed", "stream", COPIES, _COLUMN_AXIS]
    tracer = Tracer()
    stored = tracer.input("W", np.float32)
    (weight,) = programmed(tracer, stored, device, names, lambda: tracer.attribute(_COLUMN_AXIS, np.int64))
    return helper.make_function(
        PROGRAM_DOMAIN,
        _op_type(device),
        ["W", "chip"],
        [weight.name],
        tracer.nodes,
        [helper.make_opsetid("", opset)],
        names,
    )


def _op_type(device: type[DeviceModel]) -> str:
    return f"Program{device.__name__}"
