"""Operators that move, repeat, cut or join elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cnpass.training.rules.registry import Kernel, Node, as_ints, pure, rule


@rule("Reshape", view=True)
def reshape_attribute(node: Node) -> Kernel:
    """Reshape with the shape as attribute (opset 1)."""
    shape = node.integers("shape") or []
    return lambda x: _reshape(x, shape, allow_zero=False)


@rule("Reshape", since=5, structural={1}, view=True)
def reshape(node: Node) -> Kernel:
    """Reshape; 0 copies the input's extent unless allowzero is set."""
    allow_zero = node.flag("allowzero")
    return lambda x, shape: _reshape(x, as_ints(shape), allow_zero=allow_zero)


def _reshape(x: torch.Tensor, shape: list[int], *, allow_zero: bool) -> torch.Tensor:
    return x.reshape(shape if allow_zero else [x.shape[i] if d == 0 else d for i, d in enumerate(shape)])


@rule("Flatten", view=True)
def flatten(node: Node) -> Kernel:
    """Flatten to a matrix, split at ``axis``."""
    axis = node.integer("axis", 1)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        rows = math.prod(x.shape[: axis if axis >= 0 else axis + x.dim()])
        return x.reshape(rows, -1) if x.numel() else x.reshape(rows, math.prod(x.shape) // max(rows, 1))

    return kernel


@rule("Transpose", view=True)
def transpose(node: Node) -> Kernel:
    """Transpose; without perm all axes are reversed."""
    perm = node.integers("perm")
    return lambda x: x.permute(perm if perm is not None else list(range(x.dim()))[::-1])


def _squeeze(x: torch.Tensor, axes: Sequence[int] | None) -> torch.Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@rule("Squeeze", view=True)
def squeeze_attribute(node: Node) -> Kernel:
    """Squeeze with axes as attribute (before opset 13)."""
    axes = node.integers("axes")
    return lambda x: _squeeze(x, axes)


@rule("Squeeze", since=13, structural={1}, view=True)
def squeeze(_node: Node) -> Kernel:
    """Squeeze with axes as optional input."""
    return lambda x, axes=None: _squeeze(x, None if axes is None else as_ints(axes))


@rule("Unsqueeze", view=True)
def unsqueeze_attribute(node: Node) -> Kernel:
    """Unsqueeze with axes as attribute (before opset 13)."""
    axes = node.integers("axes") or []
    return lambda x: _unsqueeze(x, axes)


@rule("Unsqueeze", since=13, structural={1}, view=True)
def unsqueeze(_node: Node) -> Kernel:
    """Unsqueeze with axes as input."""
    return lambda x, axes: _unsqueeze(x, as_ints(axes))


def broadcast_shape(x: torch.Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that ``x`` and ``shape`` broadcast to, each way."""
    return tuple(int(d) for d in np.broadcast_shapes(tuple(x.shape), tuple(shape)))


@rule("Expand", since=8, structural={1}, view=True)
def expand(_node: Node) -> Kernel:
    """Expand: two-way broadcasting to a shape."""
    return lambda x, shape: x.expand(broadcast_shape(x, as_ints(shape)))


@rule("Tile", since=6, structural={1}, view=True)
def tile(_node: Node) -> Kernel:
    """Tile."""
    return lambda x, repeats: x.repeat(as_ints(repeats))


@rule("Concat", view=True)
def concat(node: Node) -> Kernel:
    """Concat; the axis defaulted to 1 in opset 1."""
    axis = node.integer("axis", 1)
    return lambda *tensors: torch.cat(tensors, axis)


def _split(x: torch.Tensor, sizes: Sequence[int] | None, axis: int, outputs: int) -> tuple[torch.Tensor, ...]:
    if sizes is None:
        size = math.ceil(x.shape[axis] / outputs)
        sizes = [max(min(size, x.shape[axis] - i * size), 0) for i in range(outputs)]
    return tuple(x.split_with_sizes(list(sizes), axis))


@rule("Split", view=True)
def split_attribute(node: Node) -> Kernel:
    """Split with the sizes as attribute (before opset 13)."""
    axis, sizes, outputs = node.integer("axis", 0), node.integers("split"), node.outputs
    return lambda x: _split(x, sizes, axis, outputs)


@rule("Split", since=13, structural={1}, view=True)
def split(node: Node) -> Kernel:
    """Split with the sizes as optional input, or into equal parts (the last one smaller)."""
    axis, outputs = node.integer("axis", 0), node.outputs
    return lambda x, sizes=None: _split(x, None if sizes is None else as_ints(sizes), axis, outputs)


def _slice(
    x: torch.Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> torch.Tensor:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            first, stop, stride = slice(start, end, step).indices(size)
            index: list[slice] = [slice(None)] * (axis % x.dim()) + [slice(first, max(stop, first), stride)]
            x = x[tuple(index)]
        else:
            # Positions before the first element count as -1, which Python has no index for.
            begin = min(max(start + size if start < 0 else start, 0), size - 1)
            stop = max(end + size if end < 0 else end, -1)
            x = x.index_select(
                axis, torch.tensor(range(begin, stop, step), dtype=torch.int64, device=x.device)
            )
    return x


@rule("Slice", view=True)
def slice_attributes(node: Node) -> Kernel:
    """Slice with attributes (before opset 10)."""
    starts, ends, axes = node.integers("starts") or [], node.integers("ends") or [], node.integers("axes")
    return lambda x: _slice(x, starts, ends, axes, None)


@rule("Slice", since=10, structural={1, 2, 3, 4}, view=True)
def slice_(_node: Node) -> Kernel:
    """Slice with inputs, steps of either sign."""

    def kernel(
        x: torch.Tensor,
        starts: torch.Tensor,
        ends: torch.Tensor,
        axes: torch.Tensor | None = None,
        steps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return _slice(
            x,
            as_ints(starts),
            as_ints(ends),
            None if axes is None else as_ints(axes),
            None if steps is None else as_ints(steps),
        )

    return kernel


def _source_positions(size: int, low: int, high: int, mode: str) -> torch.Tensor:
    """Return, for every position of a padded axis, the position that it copies."""
    position = torch.arange(-low, size + high)
    if mode == "edge":
        return position.clamp(0, size - 1)
    if mode == "wrap":
        return position.remainder(size)
    period = max(2 * (size - 1), 1)
    folded = position.remainder(period)
    return torch.where(folded >= size, period - folded, folded)


def _pad(
    x: torch.Tensor, pads: Sequence[int], mode: str, value: float, axes: Sequence[int] | None
) -> torch.Tensor:
    axes = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        x = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
        low, high = max(before, 0), max(after, 0)
        if not low and not high:
            continue
        if mode == "constant":
            shape = list(x.shape)
            blocks = []
            for extent in (low, high):
                shape[axis] = extent
                blocks.append(x.new_full(shape, value))
            x = torch.cat([blocks[0], x, blocks[1]], axis)
        else:
            x = x.index_select(axis, _source_positions(x.shape[axis], low, high, mode).to(x.device))
    return x


@rule("Pad")
def pad_attributes(node: Node) -> Kernel:
    """Pad with attributes (before opset 11; opset 1 called them paddings)."""
    pads = node.integers("pads") or node.integers("paddings") or []
    mode, value = node.text("mode", "constant"), node.number("value", 0.0)
    return lambda x: _pad(x, pads, mode, value, None)


@rule("Pad", since=11, structural={1, 2, 3})
def pad(node: Node) -> Kernel:
    """Pad with inputs; modes constant, edge, reflect, wrap; negative pads crop."""
    mode = node.text("mode", "constant")

    def kernel(
        x: torch.Tensor,
        pads: torch.Tensor,
        value: torch.Tensor | None = None,
        axes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        fill = 0.0 if value is None else value.item()
        return _pad(x, as_ints(pads), mode, fill, None if axes is None else as_ints(axes))

    return kernel


@rule("DepthToSpace")
def depth_to_space(node: Node) -> Kernel:
    """DepthToSpace, depth-column-row or column-row-depth order."""
    block, mode = node.integer("blocksize", 1), node.text("mode", "DCR")

    def kernel(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        depth = c // block**2
        if mode == "DCR":
            y = x.reshape(n, block, block, depth, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            y = x.reshape(n, depth, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(n, depth, h * block, w * block)

    return kernel


@rule("SpaceToDepth")
def space_to_depth(node: Node) -> Kernel:
    """SpaceToDepth, the inverse of DepthToSpace."""
    block, mode = node.integer("blocksize", 1), node.text("mode", "DCR")
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // block, block, w // block, block).permute(order)
        return y.reshape(n, c * block**2, h // block, w // block)

    return kernel


@rule("Trilu", since=14, structural={1})
def trilu(node: Node) -> Kernel:
    """Trilu: upper or lower triangle from diagonal k on."""
    keep = torch.triu if node.flag("upper", default=True) else torch.tril
    return lambda x, k=None: keep(x, 0 if k is None else as_ints(k)[0])


@rule("ReverseSequence", since=10, structural={1})
def reverse_sequence(node: Node) -> Kernel:
    """ReverseSequence: the first ``lengths[i]`` steps of every batch entry reversed."""
    batch_axis, time_axis = node.integer("batch_axis", 1), node.integer("time_axis", 0)

    def kernel(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        parts = []
        for i, length in enumerate(as_ints(lengths)):
            one = x.narrow(batch_axis, i, 1)
            head = one.narrow(time_axis, 0, length).flip(time_axis)
            parts.append(
                torch.cat([head, one.narrow(time_axis, length, x.shape[time_axis] - length)], time_axis)
            )
        return torch.cat(parts, batch_axis)

    return kernel


pure({"Size": lambda x: torch.tensor(x.numel())}, structural=frozenset({0}))


@rule("Shape", structural={0})
def shape(node: Node) -> Kernel:
    """Shape, or the part of it that start and end (opset 15) name."""
    start, end = node.integer("start", 0), node.attributes.get("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)
