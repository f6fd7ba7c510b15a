"""Variation during training: programmed weights of chips that no later figure will use.

Training draws from torch generators; validation and test chips are numbered chips of the op contract
(`cnpass.runtime.reference.program_weight`), so the three never share a draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.numerics import Functions
from cnpass.runtime.ops import Purpose

_TORCH = cast(Functions, torch)


@dataclass(frozen=True)
class _ScaledDraws:
    """Standard normals times a strength: 0 gives the ideal chip, 1 the device model as it is."""

    weight: torch.Tensor
    generator: torch.Generator
    strength: float

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> torch.Tensor:  # noqa: ARG002 (part of Draws)
        drawn = torch.randn(
            self.weight.shape,
            generator=self.generator,
            device=self.generator.device,
            dtype=self.weight.dtype,
        )
        return drawn.to(self.weight.device) * self.strength


def programmed(
    weights: Mapping[str, torch.Tensor],
    keys: Iterable[str],
    device: DeviceModel,
    generator: torch.Generator,
    strength: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Draw one chip for training; gradients flow through it to the weights.

    Args:
        weights: all weights by key.
        keys: those that sit on crossbars.
        device: device model.
        generator: source of the draw.
        strength: factor on the device model's normal deviates; for log-normal variation, a factor on sigma.

    Returns:
        The programmed tensors by key, for ``Lifted.forward(..., weights=...)``.
    """
    return {
        key: device.program(weights[key], _ScaledDraws(weights[key], generator, strength), _TORCH)
        for key in keys
    }


def ramp(progress: float, levels: Sequence[float], until: float) -> float:
    """Return the strength of variation at a point of the training.

    Args:
        progress: Fraction of the training that is done, 0 to 1.
        levels: Strengths to climb in equal steps; the last one holds to the end.
        until: Fraction of the training at which the last level begins.
    """
    if progress >= until or len(levels) == 1:
        return levels[-1]
    return levels[int(progress / until * (len(levels) - 1))]
