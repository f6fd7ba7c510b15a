"""The op contract in NumPy, for reading and for comparing against; programmed weights in torch as well.

Sums are in float64 and rounded once, so that a difference to a fast kernel is the kernel's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnpass.errors import ModelError
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.numerics import Array, ExactMath
from cnpass.runtime.ops import (
    ANALOG_CONV,
    ANALOG_MATMUL,
    IDEAL_CHIP,
    MAX_CHIP,
    MAX_COPY,
    column_axis,
    explicit_conv_attributes,
    row_axes,
)
from cnpass.runtime.periphery import NO_PERIPHERY, Periphery, read_out
from cnpass.runtime.philox import ChipDraws

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun


def program_weight(
    weight: Array,
    device: DeviceModel | None,
    *,
    seed: int,
    stream: int,
    chip: int,
    copy: int = 0,
    copies: int = 1,
    more: np.ndarray | None = None,
    column_axis: int | None = None,
    xp: Any = np,
) -> Array:
    """The weight that a chip holds.

    Args:
        weight: float32, any shape, in its stored layout; a torch.Tensor if `xp` is torch.
        device: device model; None if the weight is programmed already.
        seed: 64 bits, signed or unsigned.
        stream: number of the weight, 0 to 2^24 - 1.
        chip: 0 to 2^32 - 2, or -1 for the weight itself.
        copy: number of the first device among those that share the weight.
        copies: how many of these devices to average.
        more: which weights have one device more, booleans that broadcast to `weight` (`Copies.more`); None if
            none has.
        column_axis: axis of `weight` along which crossbar columns are counted; needed by models whose full
            scale differs between columns.
        xp: the module `numpy` or `torch`.

    Returns:
        Like `weight`; the same bits from NumPy, torch and the native library.

    Raises:
        ModelError: `chip` or `copies` is out of range.
        UsageError: the model needs `column_axis`.
    """
    most = MAX_COPY + 1 - copy - (more is not None)
    if not 1 <= copies <= most:
        raise ModelError(f"copies is {copies}; it must be between 1 and {most}")
    if not IDEAL_CHIP <= chip <= MAX_CHIP:
        raise ModelError(f"chip is {chip}; it must be between {IDEAL_CHIP} and {MAX_CHIP}")
    if device is None or chip == IDEAL_CHIP or 0 in weight.shape:
        return weight
    place = weight.device if hasattr(weight, "to") else None

    def programmed(number: int) -> Any:
        draws = ChipDraws(tuple(weight.shape), seed, chip, stream, number, xp, place)
        return device.program(weight, draws, ExactMath(xp), column_axis).reshape(weight.shape)

    total = programmed(copy)
    for number in range(copy + 1, copy + copies):
        total = total + programmed(number)
    # The mean is a division by an array: torch would multiply by the reciprocal of a number.
    counts = xp.full_like(total, copies)
    if more is not None:
        chosen = xp.asarray(more) if place is None else xp.asarray(more, device=place)
        total = xp.where(chosen, total + programmed(copy + copies), total)
        counts = xp.where(chosen, counts + 1, counts)
    return total / counts


def effective_weight(
    op_type: str,
    w: np.ndarray,
    device: DeviceModel | None,
    weight_perm: Sequence[int] | None,
    copies: Copies,
    *,
    chip: int,
    seed: int,
    stream: int,
) -> np.ndarray:
    """The weight of a chip as an analog op computes with it.

    Args:
        op_type: AnalogConv or AnalogMatMul.
        w: float32, stored weight.
        device: see `program_weight`, as are `chip`, `seed` and `stream`.
        weight_perm: permutation of the programmed weight's axes; None keeps them.
        copies: devices per weight.
        chip: number of the chip.
        seed: names the family of chips.
        stream: names the weight.

    Returns:
        float32, transposed by `weight_perm`.
    """
    held: np.ndarray = program_weight(
        w,
        device,
        seed=seed,
        stream=stream,
        chip=chip,
        copies=copies.count,
        more=copies.more(w.shape, row_axes(op_type, weight_perm, w.ndim)),
        column_axis=column_axis(op_type, weight_perm),
    )
    return held if weight_perm is None else held.transpose(tuple(weight_perm))


def analog_matmul(
    x: np.ndarray,
    w: np.ndarray,
    *,
    device: DeviceModel | None,
    chip: int,
    seed: int = 0,
    stream: int = 0,
    weight_perm: Sequence[int] | None = None,
    copies: Copies = SINGLE,
    periphery: Periphery = NO_PERIPHERY,
    first_sample: int = 0,
) -> np.ndarray:
    """AnalogMatMul.

    Args:
        x: float32 [..., K].
        w: float32, stored weight; [K, N] once transposed by `weight_perm`.
        device: see `program_weight`, as are `chip`, `seed` and `stream`.
        chip: number of the chip.
        seed: names the family of chips.
        stream: names the weight.
        weight_perm: permutation of the programmed weight's axes; None keeps them.
        copies: devices per weight.
        periphery: tiles, converters and read noise.
        first_sample: number of the first sample.

    Returns:
        float32 [..., N].

    Raises:
        ModelError: the periphery lacks a range, or `first_sample` is out of range.
    """
    where = {"chip": chip, "seed": seed, "stream": stream}
    effective = effective_weight(ANALOG_MATMUL, w, device, weight_perm, copies, **where).astype(np.float64)
    rows = periphery.sample_rows if x.ndim > 1 else 1
    if x.ndim > 1 and x.shape[0] % rows:
        raise ModelError(f"sample_rows is {rows}, which does not divide the {x.shape[0]} entries of X")
    samples = x.shape[0] // rows if x.ndim > 1 else 1
    vectors = math.prod(x.shape[:-1]) // max(1, samples)
    columns = _converted(x, periphery).reshape(samples, vectors, x.shape[-1])
    sums = (columns[..., tile] @ effective[tile] for tile in periphery.tiles(len(effective), copies))
    y = read_out(sums, periphery, first_sample=first_sample, **where)
    return y.astype(np.float32).reshape(*x.shape[:-1], effective.shape[1])


def analog_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    device: DeviceModel | None,
    chip: int,
    seed: int = 0,
    stream: int = 0,
    weight_perm: Sequence[int] | None = None,
    copies: Copies = SINGLE,
    periphery: Periphery = NO_PERIPHERY,
    first_sample: int = 0,
    **attributes: Any,
) -> np.ndarray:
    """AnalogConv.

    Args:
        x: float32 [batch, channels, *spatial].
        w: float32, stored weight; [filters, channels / group, *kernel] once transposed by `weight_perm`.
        b: float32 [filters].
        device: see `program_weight`, as are `chip`, `seed` and `stream`.
        chip: number of the chip.
        seed: names the family of chips.
        stream: names the weight.
        weight_perm: permutation of the programmed weight's axes; None keeps them.
        copies: devices per weight.
        periphery: tiles, converters and read noise.
        first_sample: number of the first sample.
        **attributes: those of Conv.

    Returns:
        float32 [batch, filters, *spatial].

    Raises:
        ModelError: shapes or attributes do not fit each other, the periphery lacks a range, or
            `first_sample` is out of range.
    """
    where = {"chip": chip, "seed": seed, "stream": stream}
    effective = effective_weight(ANALOG_CONV, w, device, weight_perm, copies, **where)
    columns, size = conv_columns(_converted(x, periphery), effective.shape, attributes)
    sums = conv_partial_sums(columns, effective, periphery, copies)
    y = read_out(sums, periphery, first_sample=first_sample, **where)
    y = y.reshape(len(x), len(effective), *size)
    if b is not None:
        y += b.reshape(-1, *[1] * (y.ndim - 2))
    return y.astype(np.float32)


def reference_ops() -> list[type[OpRun]]:
    """Both ops for `onnx.reference.ReferenceEvaluator(model, new_ops=reference_ops())`.

    They replace function bodies of the same name, so files run whose opset is too old for bodies.
    """
    from cnpass.runtime.evaluator import AnalogConv, AnalogMatMul

    return [AnalogConv, AnalogMatMul]


def _converted(x: np.ndarray, periphery: Periphery) -> np.ndarray:
    """What the rows of the crossbar get, in float64."""
    periphery.check()
    return (x if periphery.dac is None else periphery.dac.quantise(x)).astype(np.float64)


def conv_partial_sums(
    columns: np.ndarray, weight: np.ndarray, periphery: Periphery, copies: Copies
) -> Iterator[np.ndarray]:
    """What every tile of a convolution's weight adds up, one tile after the other.

    Args:
        columns: [batch, groups, K, positions], as `conv_columns` gives them.
        weight: [filters, channels / group, *kernel].
        periphery: says how many rows a tile has.
        copies: devices per weight.

    Yields:
        [batch, filters, positions], in the type of `columns`.
    """
    batch, groups, depth, positions = columns.shape
    matrix = weight.reshape(groups, -1, depth).astype(columns.dtype)
    for tile in periphery.tiles(depth, copies):
        yield (matrix[:, :, tile] @ columns[:, :, tile]).reshape(batch, len(weight), positions)


def conv_columns(
    x: np.ndarray, weight_shape: Sequence[int], attributes: Mapping[str, Any]
) -> tuple[np.ndarray, list[int]]:
    """The vectors that a convolution multiplies, in the order of the weight's elements.

    Args:
        x: [batch, channels, *spatial].
        weight_shape: [filters, channels / group, *kernel].
        attributes: those of Conv.

    Returns:
        An array [batch, groups, K, positions] in the type of `x`, and the spatial shape of the output.

    Raises:
        ModelError: shapes or attributes do not fit each other.
    """
    kernel = weight_shape[2:]
    explicit = explicit_conv_attributes(attributes, kernel)
    group, strides, dilations = explicit["group"], explicit["strides"], explicit["dilations"]
    if list(attributes.get("kernel_shape") or kernel) != list(kernel):
        raise ModelError(
            f"kernel_shape is {list(attributes['kernel_shape'])}, the weight's is {list(kernel)}"
        )
    shape = tuple(weight_shape)
    if x.ndim != len(shape) or x.shape[1] != shape[1] * group or shape[0] % group:
        raise ModelError(f"weight {shape} in {group} group(s) does not fit input {x.shape}")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = explicit.get("pads") or same_pads(x.shape[2:], extent, strides, explicit["auto_pad"])
    begin, end = pads[: len(kernel)], pads[len(kernel) :]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    size = [(n - e) // s + 1 for n, e, s in zip(padded.shape[2:], extent, strides, strict=True)]
    if min(size, default=1) < 1:
        raise ModelError(f"a kernel that spans {extent} does not fit padded input {list(padded.shape[2:])}")
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axes)
    firsts = tuple(slice(None, None, stride) for stride in strides)
    taps = tuple(slice(None, None, dilation) for dilation in dilations)
    windows = windows[(slice(None), slice(None), *firsts, *taps)]
    # [batch, channels, *positions, *kernel]: the kernel goes in front of the positions
    turned = np.moveaxis(windows, range(2 + len(kernel), 2 + 2 * len(kernel)), range(2, 2 + len(kernel)))
    return turned.reshape(len(x), group, shape[1] * math.prod(kernel), math.prod(size)), size


def same_pads(
    spatial: Sequence[int], extent: Sequence[int], strides: Sequence[int], auto_pad: str
) -> list[int]:
    """Pads that give ceil(size / stride) outputs; an odd one goes to the end for SAME_UPPER."""
    totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, e, s in zip(spatial, extent, strides, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if auto_pad == "SAME_UPPER" else large + small
