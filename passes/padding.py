"""Which taps of a convolution lie in its input, position by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs


def taps(
    node: gs.Node, kernel: Sequence[int], before: Sequence[int | None] | None, after: Sequence[int | None]
) -> list[np.ndarray] | str:
    """Return for every axis of space which taps of the kernel lie in the input, and not in its padding.

    Args:
        node: A convolution.
        kernel: Size of its kernel.
        before: Shape of its input, as far as it is known.
        after: Positions of its output along each axis of space, as far as they are known.

    Returns:
        One array [positions, taps] of bool per axis, one position standing for all where nothing is padded;
        or why that cannot be told.
    """
    n = len(kernel)
    strides = node.attrs.get("strides") or [1] * n
    dilations = node.attrs.get("dilations") or [1] * n
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    pads = list(node.attrs.get("pads") or [0] * 2 * n) if auto_pad == "NOTSET" else [0] * 2 * n
    same = auto_pad in {"SAME_UPPER", "SAME_LOWER"}
    if not same and not any(pads):
        return [np.ones((1, size), bool) for size in kernel]
    sizes = tuple(before)[2:] if before is not None else (None,) * n
    found = []
    for axis, (size, positions) in enumerate(zip(sizes, after, strict=True)):
        if size is None or positions is None:
            return "it pads its input, whose size is not known"
        step, reach = strides[axis], (kernel[axis] - 1) * dilations[axis] + 1
        total = max(0, (positions - 1) * step + reach - size)
        low = pads[axis] if not same else total // 2 + (total % 2 if auto_pad == "SAME_LOWER" else 0)
        places = (
            np.arange(positions)[:, None] * step - low + np.arange(kernel[axis])[None, :] * dilations[axis]
        )
        found.append((places >= 0) & (places < size))
    return found
