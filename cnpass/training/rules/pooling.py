"""Pooling, local and global."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from cnpass.training.rules.convolution import pad_spatial, same_pads
from cnpass.training.rules.registry import Kernel, Node, pure, rule

_MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_CONV = (F.conv1d, F.conv2d, F.conv3d)


class _Window:
    """Kernel, strides, dilations and padding of a pooling node."""

    def __init__(self, node: Node) -> None:
        kernel = node.integers("kernel_shape")
        if kernel is None:
            raise node.refuse("no kernel_shape")
        n = self.rank = len(kernel)
        if n > 3:
            raise node.refuse(f"{n} spatial axes")
        self.kernel = kernel
        self.strides = node.integers("strides") or [1] * n
        self.dilations = node.integers("dilations") or [1] * n
        self.auto_pad = node.text("auto_pad", "NOTSET")
        explicit = node.integers("pads") if self.auto_pad == "NOTSET" else None
        self.pads = explicit or [0] * 2 * n
        self.ceil = node.flag("ceil_mode")

    def padding(self, size: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Return padding before, padding after, and what rounding up adds behind it, at extent ``size``."""
        n = self.rank
        if self.auto_pad.startswith("SAME"):
            low, high = same_pads(size, self.kernel, self.strides, self.dilations, self.auto_pad)
            return low, high, [0] * n
        low, high = self.pads[:n], self.pads[n:]
        tail = [0] * n
        if self.ceil:
            for i, d in enumerate(size):
                reach = (self.kernel[i] - 1) * self.dilations[i] + 1
                count = math.ceil((d + low[i] + high[i] - reach) / self.strides[i]) + 1
                if (count - 1) * self.strides[i] >= d + low[i]:  # a window may not start behind the data
                    count -= 1
                tail[i] = (count - 1) * self.strides[i] + reach - d - low[i] - high[i]
        return low, high, tail

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum over every window of an already padded ``x``.

        By a convolution: torch's own average pooling takes ten times as long on a CPU.
        """
        channels = x.shape[1]
        ones = x.new_ones(channels, 1, *self.kernel)
        return _CONV[self.rank - 1](x, ones, None, self.strides, 0, self.dilations, channels)


@rule("MaxPool")
def max_pool(node: Node) -> Kernel:
    """MaxPool; its second output (indices) has no use in training and no rule."""
    if node.outputs > 1:
        raise node.refuse("an Indices output")
    window = _Window(node)
    pool = _MAX_POOL[window.rank - 1]

    def kernel(x: torch.Tensor) -> torch.Tensor:
        low, high, tail = window.padding(x.shape[2:])
        lowest = -math.inf if x.is_floating_point() else float(torch.iinfo(x.dtype).min)
        x = pad_spatial(x, low, [h + t for h, t in zip(high, tail, strict=True)], lowest)
        if x.is_floating_point():
            return pool(x, window.kernel, window.strides, 0, window.dilations)
        return pool(x.double(), window.kernel, window.strides, 0, window.dilations).to(x.dtype)

    return kernel


@rule("AveragePool")
def average_pool(node: Node) -> Kernel:
    """AveragePool; padding counts only with count_include_pad, what ceil_mode adds never does."""
    window = _Window(node)
    include = node.flag("count_include_pad")

    def kernel(x: torch.Tensor) -> torch.Tensor:
        low, high, tail = window.padding(x.shape[2:])
        behind = [h + t for h, t in zip(high, tail, strict=True)]
        y = window.sums(pad_spatial(x, low, behind))
        if not any(low) and not any(behind):
            return y / math.prod(window.kernel)
        ones = x.new_ones(1, 1, *x.shape[2:])
        counted = pad_spatial(pad_spatial(ones, low, high, 1.0), [0] * window.rank, tail) if include else None
        return y / window.sums(pad_spatial(ones, low, behind) if counted is None else counted)

    return kernel


@rule("LpPool", since=2)
def lp_pool(node: Node) -> Kernel:
    """LpPool: the p-norm of every window."""
    window, p = _Window(node), node.integer("p", 2)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        low, high, tail = window.padding(x.shape[2:])
        padded = pad_spatial(x, low, [h + t for h, t in zip(high, tail, strict=True)])
        return window.sums(padded.abs() ** p) ** (1.0 / p)

    return kernel


def _spatial(x: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


pure(
    {
        "GlobalAveragePool": lambda x: x.mean(_spatial(x), True),
        "GlobalMaxPool": lambda x: x.amax(_spatial(x), True),
    }
)


@rule("GlobalLpPool", since=2)
def global_lp_pool(node: Node) -> Kernel:
    """GlobalLpPool: the p-norm over all of space."""
    p = node.integer("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)
