"""Which taps of a convolution lie in its input, position by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.runtime.ops import explicit_conv_attributes
from cnpass.runtime.reference import same_pads


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
    explicit = explicit_conv_attributes(node.attrs, kernel)
    strides, dilations = explicit["strides"], explicit["dilations"]
    if not any(explicit.get("pads", [1])):
        return [np.ones((1, size), bool) for size in kernel]
    sizes = [size for size in (before or ())[2:] if size is not None]
    counts = [count for count in after if count is not None]
    if len(sizes) < len(kernel) or len(counts) < len(kernel):
        return "it pads its input, whose size is not known"
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = explicit.get("pads") or same_pads(sizes, reach, strides, explicit["auto_pad"])
    found = []
    for axis, (size, positions) in enumerate(zip(sizes, counts, strict=True)):
        first = np.arange(positions)[:, None] * strides[axis] - pads[axis]
        places = first + np.arange(kernel[axis]) * dilations[axis]
        found.append((places >= 0) & (places < size))
    return found
