"""Weights that a training cannot change, found by one backward pass before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from cnpass.training.forward import Forward, Samples

_NAMED = 3
"""Weights of a kind that a description names, at most."""


@dataclass(frozen=True)
class Idle:
    """Weights that stay as they are, by what keeps them so.

    Attributes:
        total: Number of weights that could be trained, and of integer ones beside them.
        apart: Nothing leads from them to the model's first output.
        cut: All that leads there has no gradient (a Cast to integers, a comparison).
        flat: Their gradient is zero on the samples that were looked at (a Floor, a dead Relu).
        integer: Integer weights that QLinearConv and the like multiply by.
    """

    total: int
    apart: tuple[str, ...]
    cut: tuple[str, ...]
    flat: tuple[str, ...]
    integer: tuple[str, ...]

    @property
    def count(self) -> int:
        """Weights that stay as they are."""
        return sum(map(len, (self.apart, self.cut, self.flat, self.integer)))

    def taught(self, changed: Iterable[str], *, only_by_gradient: bool) -> set[str]:
        """Return which weights learned something from the samples.

        Args:
            changed: Keys of the weights that a training changed.
            only_by_gradient: Whether nothing else changes weights, as penalty and clipping do. Then a weight
                without gradient on the samples that were looked at had one on others.
        """
        others = () if only_by_gradient else self.flat
        return set(changed).difference(self.apart, self.cut, self.integer, others)

    def describe(self) -> str | None:
        """One line; None if every weight is trained."""
        reasons = (
            (self.apart, "that the first output does not depend on"),
            (self.cut, "before operators without a gradient, such as Cast to integers"),
            (self.flat, "whose gradient is zero on the samples"),
            (self.integer, "stored as integers that an operator multiplies by"),
        )
        parts = [f"{len(keys)} {reason} ({_named(keys)})" for keys, reason in reasons if keys]
        return f"{self.count} of {self.total} weights are not trained: {'; '.join(parts)}" if parts else None


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")


def find_idle(forward: Forward, samples: Samples, seed: int) -> Idle:
    """Look for weights without gradient.

    Args:
        forward: The model.
        samples: Some training samples.
        seed: Seed of the direction in which the first output is differentiated.
    """
    module = forward.module
    weights = module.weights
    output = forward(samples)
    gradients: Sequence[torch.Tensor | None] = [None] * len(weights)
    if output.requires_grad:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(output.shape, generator=generator).to(output)
        gradients = torch.autograd.grad((output * direction).sum(), list(weights.values()), allow_unused=True)
    used = module.leading_to_first_output()
    missing = [key for key, gradient in zip(weights, gradients, strict=True) if gradient is None]
    return Idle(
        total=len(weights) + len(module.unused_weights) + len(module.integer_weights),
        apart=(*(key for key in missing if key not in used), *module.unused_weights),
        cut=tuple(key for key in missing if key in used),
        flat=tuple(
            key
            for key, gradient in zip(weights, gradients, strict=True)
            if gradient is not None and not bool(gradient.any())
        ),
        integer=module.integer_weights,
    )
