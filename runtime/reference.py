"""The op contract in NumPy, for reading and for comparing against; programmed weights in torch as well.

Sums are in float64 and rounded once, so that a difference to a fast kernel is the kernel's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnpass.errors import ModelError
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
)
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
        column_axis: axis of `weight` along which crossbar columns are counted; needed by models whose full
            scale differs between columns.
        xp: the module `numpy` or `torch`.

    Returns:
        Like `weight`; the same bits from NumPy, torch and the native library.

    Raises:
        ModelError: `chip` or `copies` is out of range.
        UsageError: the model needs `column_axis`.
    """
    if not 1 <= copies <= MAX_COPY + 1 - copy:
        raise ModelError(f"copies is {copies}; it must be between 1 and {MAX_COPY + 1 - copy}")
    if not IDEAL_CHIP <= chip <= MAX_CHIP:
        raise ModelError(f"chip is {chip}; it must be between {IDEAL_CHIP} and {MAX_CHIP}")
    if device is None or chip == IDEAL_CHIP or 0 in weight.shape:
        return weight
    place = weight.device if hasattr(weight, "to") else None
    total: Any = None
    for number in range(copy, copy + copies):
        draws = ChipDraws(tuple(weight.shape), seed, chip, stream, number, xp, place)
        programmed = device.program(weight, draws, ExactMath(xp), column_axis)
        total = programmed if total is None else total + programmed
    # The mean is a division by an array: torch would multiply by the reciprocal of a number.
    mean = total if copies == 1 else total / xp.full_like(total, copies)
    return mean.reshape(weight.shape)


def analog_matmul(
    x: np.ndarray,
    w: np.ndarray,
    *,
    device: DeviceModel | None,
    chip: int,
    seed: int = 0,
    stream: int = 0,
    weight_perm: Sequence[int] | None = None,
    copies: int = 1,
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

    Returns:
        float32 [..., N].
    """
    axis = column_axis(ANALOG_MATMUL, weight_perm)
    programmed = program_weight(
        w, device, seed=seed, stream=stream, chip=chip, copies=copies, column_axis=axis
    )
    effective = _permuted(programmed, weight_perm)
    y: np.ndarray = np.matmul(x.astype(np.float64), effective)
    return y.astype(np.float32)


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
    copies: int = 1,
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
        **attributes: those of Conv.

    Returns:
        float32 [batch, filters, *spatial].

    Raises:
        ModelError: shapes or attributes do not fit each other.
    """
    axis = column_axis(ANALOG_CONV, weight_perm)
    programmed = program_weight(
        w, device, seed=seed, stream=stream, chip=chip, copies=copies, column_axis=axis
    )
    y = _conv(x.astype(np.float64), _permuted(programmed, weight_perm).astype(np.float64), attributes)
    if b is not None:
        y += b.reshape(-1, *[1] * (y.ndim - 2))
    return y.astype(np.float32)


def reference_ops() -> list[type[OpRun]]:
    """Both ops for `onnx.reference.ReferenceEvaluator(model, new_ops=reference_ops())`.

    They replace function bodies of the same name, so files run whose opset is too old for bodies.
    """
    from cnpass.runtime.evaluator import AnalogConv, AnalogMatMul

    return [AnalogConv, AnalogMatMul]


def _permuted(weight: np.ndarray, perm: Sequence[int] | None) -> np.ndarray:
    return weight if perm is None else weight.transpose(tuple(perm))


def _conv(x: np.ndarray, w: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """N-dimensional convolution: one matrix product for every position of the kernel."""
    kernel = w.shape[2:]
    explicit = explicit_conv_attributes(attributes, kernel)
    group, strides, dilations = explicit["group"], explicit["strides"], explicit["dilations"]
    if list(attributes.get("kernel_shape") or kernel) != list(kernel):
        raise ModelError(
            f"kernel_shape is {list(attributes['kernel_shape'])}, the weight's is {list(kernel)}"
        )
    if x.ndim != w.ndim or x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ModelError(f"weight {w.shape} in {group} group(s) does not fit input {x.shape}")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = explicit.get("pads") or _same_pads(x.shape[2:], extent, strides, explicit["auto_pad"])
    begin, end = pads[: len(kernel)], pads[len(kernel) :]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, end, strict=True)])
    size = [(n - e) // s + 1 for n, e, s in zip(padded.shape[2:], extent, strides, strict=True)]
    if min(size, default=1) < 1:
        raise ModelError(f"a kernel that spans {extent} does not fit padded input {list(padded.shape[2:])}")

    grouped = w.reshape(group, w.shape[0] // group, w.shape[1], *kernel)
    y = np.zeros((x.shape[0], group, grouped.shape[1], int(np.prod(size))))
    for tap in itertools.product(*map(range, kernel)):
        steps = zip(tap, dilations, size, strides, strict=True)
        window: tuple[Any, ...] = (..., *(slice(t * d, t * d + n * s, s) for t, d, n, s in steps))
        columns = padded[window].reshape(x.shape[0], group, w.shape[1], -1)
        weight: tuple[Any, ...] = (..., *tap)
        y += grouped[weight] @ columns
    return y.reshape(x.shape[0], w.shape[0], *size)


def _same_pads(
    spatial: Sequence[int], extent: Sequence[int], strides: Sequence[int], auto_pad: str
) -> list[int]:
    """Pads that give ceil(size / stride) outputs; an odd one goes to the end for SAME_UPPER."""
    totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, e, s in zip(spatial, extent, strides, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if auto_pad == "SAME_UPPER" else large + small
