"""Convolutions and their padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from cnpass.runtime import reference
from cnpass.training.rules.registry import Kernel, Node, rule

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
Pads = tuple[list[int], list[int]]
"""Padding before and after, per spatial axis."""


def same_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], mode: str
) -> Pads:
    """Return the padding that ``auto_pad`` SAME_UPPER or SAME_LOWER stands for at spatial extent ``size``."""
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = reference.same_pads(size, extent, strides, mode)
    return pads[: len(extent)], pads[len(extent) :]


def pad_spatial(x: torch.Tensor, low: Sequence[int], high: Sequence[int], value: float = 0.0) -> torch.Tensor:
    """Pad (or crop, where negative) the last axes of ``x``; no copy where there is nothing to do."""
    if not any(low) and not any(high):
        return x
    return F.pad(
        x, [p for pair in zip(reversed(low), reversed(high), strict=True) for p in pair], value=value
    )


def _spatial_axes(weight: torch.Tensor) -> int:
    """Number of axes that a kernel extends over."""
    count = weight.dim() - 2
    if not 1 <= count <= len(_CONV):
        raise ValueError(f"no PyTorch rule for convolutions over {count} axes")
    return count


@rule("Conv", layer=True)
def conv(node: Node) -> Kernel:
    """Conv, 1-D to 3-D, grouped, dilated, with explicit or automatic padding."""
    auto_pad = node.text("auto_pad", "NOTSET")
    pads, strides, dilations = node.integers("pads"), node.integers("strides"), node.integers("dilations")
    group = node.integer("group", 1)

    def kernel(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        n = _spatial_axes(w)
        stride, dilation = strides or [1] * n, dilations or [1] * n
        if auto_pad.startswith("SAME"):
            low, high = same_pads(x.shape[2:], w.shape[2:], stride, dilation, auto_pad)
        else:
            low, high = (pads[:n], pads[n:]) if pads and auto_pad == "NOTSET" else ([0] * n, [0] * n)
        if low == high:
            return _CONV[n - 1](x, w, b, stride, low, dilation, group)
        return _CONV[n - 1](pad_spatial(x, low, high), w, b, stride, 0, dilation, group)

    return kernel


@rule("ConvTranspose", layer=True)
def conv_transpose(node: Node) -> Kernel:
    """ConvTranspose: the full transposed convolution, then cropped by the pads, as ONNX Runtime does it."""
    auto_pad = node.text("auto_pad", "NOTSET")
    pads, strides, dilations = node.integers("pads"), node.integers("strides"), node.integers("dilations")
    extra, shape = node.integers("output_padding"), node.integers("output_shape")
    group = node.integer("group", 1)

    def kernel(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        n = _spatial_axes(w)
        stride, dilation, tail = strides or [1] * n, dilations or [1] * n, extra or [0] * n
        full = _CONV_TRANSPOSE[n - 1](x, w, None, stride, 0, 0, group, dilation)
        sizes = [size + t for size, t in zip(full.shape[2:], tail, strict=True)]
        if shape or auto_pad.startswith("SAME"):
            # ONNX Runtime lets SAME only crop, and puts what an output shape asks for beyond that at the end.
            same = [min(d * s, size) for d, s, size in zip(x.shape[2:], stride, sizes, strict=True)]
            target = shape[-n:] if shape else same
            total = [max(size - t, 0) for size, t in zip(sizes, target, strict=True)]
            low = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            high = [size - t - before for size, t, before in zip(sizes, target, low, strict=True)]
        else:
            low, high = (pads[:n], pads[n:]) if pads else ([0] * n, [0] * n)
        y = pad_spatial(full, [-p for p in low], [t - p for t, p in zip(tail, high, strict=True)])
        return y if b is None else y + b.reshape(-1, *[1] * n)

    return kernel
