"""Gathering, scattering and selecting by index."""

from __future__ import annotations

import torch

from cnpass.training.rules.registry import ALL_SLOTS, Kernel, Node, as_ints, pure, rule


def _positive(index: torch.Tensor, size: int) -> torch.Tensor:
    index = index.long()
    return torch.where(index < 0, index + size, index)


@rule("Gather", structural={1}, view=True)
def gather(node: Node) -> Kernel:
    """Gather whole slices along ``axis``."""
    axis = node.integer("axis", 0)

    def kernel(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        along = axis % x.dim()
        chosen = _positive(index, x.shape[along]).to(x.device)
        picked = x.index_select(along, chosen.reshape(-1))
        return picked.reshape((*x.shape[:along], *index.shape, *x.shape[along + 1 :]))

    return kernel


@rule("GatherElements", since=11, structural={1})
def gather_elements(node: Node) -> Kernel:
    """GatherElements."""
    axis = node.integer("axis", 0)
    return lambda x, index: torch.gather(x, axis, _positive(index, x.shape[axis]).to(x.device))


@rule("GatherND", since=11, structural={1})
def gather_nd(node: Node) -> Kernel:
    """GatherND."""
    batch = node.integer("batch_dims", 0)

    def kernel(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        index = index.to(x.device)
        lead = x.shape[:batch]
        flat = x.reshape(-1, *x.shape[batch:])
        rows = index.reshape(flat.shape[0], -1, index.shape[-1]).long()
        picked = torch.stack([one[tuple(row.unbind(-1))] for one, row in zip(flat, rows, strict=True)])
        return picked.reshape((*lead, *index.shape[batch:-1], *x.shape[batch + index.shape[-1] :]))

    return kernel


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@rule("Scatter", "ScatterElements", since=9, structural={1})
def scatter_elements(node: Node) -> Kernel:
    """ScatterElements, with its reductions."""
    axis, reduction = node.integer("axis", 0), node.text("reduction", "none")

    def kernel(x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        where = _positive(index, x.shape[axis]).to(x.device)
        if reduction == "none":
            return x.scatter(axis, where, updates)
        return x.scatter_reduce(axis, where, updates, _REDUCE[reduction])

    return kernel


@rule("ScatterND", since=11, structural={1})
def scatter_nd(node: Node) -> Kernel:
    """ScatterND without reduction, or adding."""
    reduction = node.text("reduction", "none")
    if reduction not in {"none", "add"}:
        raise node.refuse(f"reduction={reduction}")

    def kernel(x: torch.Tensor, index: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        place = tuple(index.long().to(x.device).unbind(-1))
        return x.index_put(place, updates, accumulate=reduction == "add")

    return kernel


@rule("OneHot", since=9, structural=ALL_SLOTS)
def one_hot(node: Node) -> Kernel:
    """OneHot; an index out of range gives a row without the on value."""
    axis = node.integer("axis", -1)

    def kernel(index: torch.Tensor, depth: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        count = as_ints(depth)[0]
        index = index.long()
        index = torch.where(index < 0, index + count, index)
        along = axis if axis >= 0 else axis + index.dim() + 1
        position = torch.arange(count).reshape(-1, *[1] * (index.dim() - along))
        return torch.where(index.unsqueeze(along) == position, values[1], values[0])

    return kernel


pure({"NonZero": lambda x: torch.nonzero(x).t()}, structural=ALL_SLOTS)


@rule("Compress", since=9, structural={1})
def compress(node: Node) -> Kernel:
    """Compress: keep the slices whose condition holds."""
    axis = node.attributes.get("axis")

    def kernel(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x = x.reshape(-1) if axis is None else x
        return x.index_select(axis or 0, torch.nonzero(condition).reshape(-1).to(x.device))

    return kernel
