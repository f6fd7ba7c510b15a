"""Sequences of tensors, held as tuples. A kernel gives one back in a tuple of one output."""

from __future__ import annotations

import torch

from cnpass.training.rules.registry import Kernel, Node, as_ints, constantly, rule

Sequence = tuple[torch.Tensor, ...]


def _place(position: torch.Tensor, length: int) -> int:
    """A position in a sequence of so many places, counted from its end where it is negative."""
    place = as_ints(position)[0]
    if not -length <= place < length:
        raise IndexError(f"position {place} is outside of a sequence of {length}")
    return place % length


@rule("SequenceEmpty", since=11)
def sequence_empty(_node: Node) -> Kernel:
    """SequenceEmpty."""
    return lambda: ((),)


@rule("SequenceConstruct", since=11)
def sequence_construct(_node: Node) -> Kernel:
    """SequenceConstruct."""
    return lambda *tensors: (tensors,)


@rule("SequenceAt", since=11, structural={1})
def sequence_at(_node: Node) -> Kernel:
    """SequenceAt."""
    return lambda sequence, position: sequence[_place(position, len(sequence))]


@rule("SequenceInsert", since=11, structural={2})
def sequence_insert(_node: Node) -> Kernel:
    """SequenceInsert, before a position; without one at the end."""

    def kernel(
        sequence: Sequence, tensor: torch.Tensor, position: torch.Tensor | None = None
    ) -> tuple[Sequence]:
        # The place behind the last one is allowed too, but -1 means the last one.
        length = len(sequence)
        end = position is None or as_ints(position)[0] == length
        place = length if end or position is None else _place(position, length)
        return ((*sequence[:place], tensor, *sequence[place:]),)

    return kernel


@rule("SequenceErase", since=11, structural={1})
def sequence_erase(_node: Node) -> Kernel:
    """SequenceErase; without a position the last one."""

    def kernel(sequence: Sequence, position: torch.Tensor | None = None) -> tuple[Sequence]:
        place = len(sequence) - 1 if position is None else _place(position, len(sequence))
        return ((*sequence[:place], *sequence[place + 1 :]),)

    return kernel


rule("SequenceLength", since=11)(constantly(lambda sequence: torch.tensor(len(sequence))))


@rule("SplitToSequence", since=11, structural={1})
def split_to_sequence(node: Node) -> Kernel:
    """SplitToSequence: into parts of one size (the last one smaller), of given sizes, or of one each."""
    axis, keep = node.integer("axis", 0), node.flag("keepdims", default=True)

    def kernel(x: torch.Tensor, sizes: torch.Tensor | None = None) -> tuple[Sequence]:
        if sizes is None:
            return (torch.split(x, 1, axis) if keep else x.unbind(axis),)
        wanted = as_ints(sizes)
        return (torch.split(x, wanted if sizes.dim() else wanted[0], axis),)

    return kernel


@rule("ConcatFromSequence", since=11)
def concat_from_sequence(node: Node) -> Kernel:
    """ConcatFromSequence, along an axis or along a new one."""
    axis = node.integer("axis", 0)
    join = torch.stack if node.flag("new_axis") else torch.cat
    return lambda sequence: join(sequence, axis)
