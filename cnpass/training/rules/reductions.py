"""Reductions over axes, and what orders or accumulates along one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from cnpass.training.rules.registry import ALL_SLOTS, Kernel, Node, as_ints, rule

Reduction = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def _prod(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _norm(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    """Unlike a root of a sum of squares, its gradient at zero is zero, not NaN."""
    wide = x if x.is_floating_point() else x.double()
    return torch.linalg.vector_norm(wide, 2, axes, keep) if axes else wide.abs()


def _typed(function: Reduction) -> Reduction:
    """Keep the input's element type; torch widens sums of small integers."""
    return lambda x, axes, keep: function(x, axes, keep).to(x.dtype)


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _typed(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceMean": lambda x, axes, keep: (
        x.mean(axes, keep) if x.is_floating_point() else x.double().mean(axes, keep).to(x.dtype)
    ),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _typed(_prod),
    "ReduceL1": _typed(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _typed(_norm),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": _typed(lambda x, axes, keep: x.square().sum(axes, keep)),
}


_OVER_NOTHING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}
"""What reductions make of single elements, where that is not the element itself."""


def _reduce(node: Node, function: Reduction) -> Kernel:
    """One kernel for both styles: axes as attribute (older) or as optional input."""
    fixed, keep = node.integers("axes"), node.flag("keepdims", default=True)
    noop = node.flag("noop_with_empty_axes")

    def kernel(x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        chosen = fixed if axes is None else as_ints(axes)
        if not chosen:
            if noop:
                return _OVER_NOTHING.get(node.op_type, torch.Tensor.clone)(x)
            chosen = list(range(x.dim()))
        return function(x, tuple(a % x.dim() for a in chosen), keep) if x.dim() else function(x, (), keep)

    return kernel


for _name, _function in _REDUCTIONS.items():
    rule(_name, structural={1})(functools.partial(_reduce, function=_function))


@rule("ArgMax", "ArgMin", structural=ALL_SLOTS)
def arg_extreme(node: Node) -> Kernel:
    """ArgMax and ArgMin, first or last of equals."""
    axis, keep = node.integer("axis", 0), node.flag("keepdims", default=True)
    last = node.flag("select_last_index")
    find = torch.argmax if node.op_type == "ArgMax" else torch.argmin

    def kernel(x: torch.Tensor) -> torch.Tensor:
        if not last:
            return find(x, axis, keep)
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)

    return kernel


def _top_k(node: Node, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stable: of equal values the lower index comes first, as ONNX demands."""
    axis, largest = node.integer("axis", -1), node.flag("largest", default=True)
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@rule("TopK")
def top_k_attribute(node: Node) -> Kernel:
    """TopK with k as attribute (opset 1)."""
    k = node.integer("k", 1)
    return lambda x: _top_k(node, x, k)


@rule("TopK", since=10, structural={1})
def top_k(node: Node) -> Kernel:
    """TopK with k as input."""
    return lambda x, k: _top_k(node, x, as_ints(k)[0])


@rule("CumSum", since=11, structural={1})
def cum_sum(node: Node) -> Kernel:
    """CumSum, exclusive or not, from either end."""
    exclusive, reverse = node.flag("exclusive"), node.flag("reverse")

    def kernel(x: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
        along = as_ints(axis)[0]
        x = x.flip(along) if reverse else x
        y = x.cumsum(along, dtype=x.dtype)
        y = y - x if exclusive else y
        return y.flip(along) if reverse else y

    return kernel
