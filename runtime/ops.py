"""The op contract in constants: domain, op names, attribute and metadata keys, ranges (docs/ops.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

DOMAIN = "ai.cnpass"
VERSION = 1
ANALOG_CONV = "AnalogConv"
ANALOG_MATMUL = "AnalogMatMul"

PROGRAMMED = "programmed"
"""Value of the attribute `device` for a weight that a node upstream has programmed already."""

WEIGHT_PERM = "weight_perm"
"""Optional attribute: the op computes with the programmed weight transposed by it."""

COPIES = "copies"
"""Optional attribute: devices per weight, whose mean is the programmed weight; absent: 1."""

EXTRA_COPIES = "extra_copies"
"""Optional attribute: two integers E, D: of every D rows, the first E have one device more; absent: none."""

STUCK_LOW = "stuck_low"
STUCK_HIGH = "stuck_high"
"""Optional attributes, both or none: rates of devices that are stuck; absent: 0."""

TILE_ROWS = "tile_rows"
TILE_COLS = "tile_cols"
DAC_BITS = "dac_bits"
ADC_BITS = "adc_bits"
INPUT_RANGE = "input_range"
OUTPUT_RANGE = "output_range"
READ_NOISE = "read_noise"
SAMPLE_ROWS = "sample_rows"
"""Optional attributes of the periphery (`cnpass.runtime.periphery`); absent: 0, `sample_rows`: 1."""

CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
"""The attributes that AnalogConv shares with Conv."""

IDEAL_CHIP = -1
"""The chip without variation: nominal weights."""

MAX_CHIP = 2**32 - 2
MAX_STREAM = 2**24 - 1
MAX_COPY = 2**16 - 1
MAX_SAMPLE = 2**32 - 1

CHIP_INPUT = "chip"
"""Name of the graph input that selects the chip, unless the model has that name already."""

FIRST_SAMPLE_INPUT = "first_sample"
"""Name of the graph input that numbers the batch's first sample, unless the model has that name already."""

META_VERSION = "cnpass.version"
META_CHIP_INPUT = "cnpass.chip_input"
META_ONLY_CHIP = "cnpass.only_chip"
"""On a model that was made for one chip: its number."""
META_MEAN_GAIN = "cnpass.mean_gain"
"""On a model whose weights are made for a device's mean factor: that factor by weight, as JSON."""
META_FIRST_SAMPLE_INPUT = "cnpass.first_sample_input"

META_PASS = "cnpass.pass"  # noqa: S105 (the key that names a graph pass, no password)
META_NAME = "cnpass.name"
META_OP_TYPE = "cnpass.op_type"
META_SOURCE = "cnpass.source"
META_COPIES = "cnpass.copies"
"""On a node in standard operators: the copies that it gets where it is mapped, as in `Copies`; absent: 1."""
META_DECLARED = "cnpass.declared"
"""On a Scan: the outputs of its body whose number of dimensions a pass declared."""
META_ROLE = "cnpass.role"
ROLE_ANALOG = "analog"
ROLE_DIGITAL = "digital"
ROLE_COMPENSATION = "compensation"


class Purpose(IntEnum):
    """What a random number is for; the top byte of the last Philox counter word."""

    PROGRAMMING = 0
    FAULTS = 1
    DRIFT_EXPONENT = 2
    SECOND_DEVICE = 3
    SLOW_NOISE = 4
    SECOND_FAULTS = 5
    SECOND_DRIFT_EXPONENT = 6
    SECOND_SLOW_NOISE = 7
    READ_NOISE = 8


def column_axis(op_type: str, weight_perm: Sequence[int] | None) -> int:
    """The axis of the stored weight along which crossbar columns are counted: filters, or outputs.

    Args:
        op_type: AnalogConv or AnalogMatMul.
        weight_perm: that attribute of the node; None if absent.
    """
    axis = 0 if op_type == ANALOG_CONV else 1
    return weight_perm[axis] if weight_perm else axis


def row_axes(op_type: str, weight_perm: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """The axes of the stored weight that make up crossbar rows, slowest first: all but the column axis.

    Args:
        op_type: AnalogConv or AnalogMatMul.
        weight_perm: that attribute of the node; None if absent.
        rank: number of axes of the weight.
    """
    axes = range(1, rank) if op_type == ANALOG_CONV else (0,)
    return tuple(weight_perm[axis] if weight_perm else axis for axis in axes)


def explicit_conv_attributes(attributes: Mapping[str, Any], kernel_shape: Sequence[int]) -> dict[str, Any]:
    """Conv's attributes with every default written out.

    Nodes that carry the same set of attributes can share one function body in every runtime
    (`cnpass.runtime.bodies`), so the pass that writes AnalogConv writes these.

    Args:
        attributes: attributes of a Conv or AnalogConv node; others than Conv's are ignored.
        kernel_shape: spatial shape of the weight that the op computes with.

    Returns:
        `dilations`, `group`, `kernel_shape`, `strides`, and `pads`; in place of `pads` the attribute
        `auto_pad` where that is SAME_UPPER or SAME_LOWER, because those depend on the input's shape.
    """
    rank = len(kernel_shape)
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if isinstance(auto_pad, bytes):
        auto_pad = auto_pad.decode()
    explicit: dict[str, Any] = {
        "dilations": list(attributes.get("dilations") or [1] * rank),
        "group": int(attributes.get("group", 1)),
        "kernel_shape": list(kernel_shape),
        "strides": list(attributes.get("strides") or [1] * rank),
    }
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        explicit["auto_pad"] = auto_pad
    else:
        pads = attributes.get("pads") if auto_pad == "NOTSET" else None
        explicit["pads"] = list(pads or [0] * (2 * rank))
    return explicit


def only_chip(metadata: Mapping[str, str]) -> int | None:
    """Return the chip that a model was made for; None if it is for all chips, or says nothing that is one."""
    text = metadata.get(META_ONLY_CHIP, "")
    number = int(text) if text.isdecimal() and len(text) <= len(str(MAX_CHIP)) else MAX_CHIP + 1
    return number if number <= MAX_CHIP else None
