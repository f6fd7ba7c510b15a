"""The figure that training stops and chooses by: validation samples on numbered validation chips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cnpass.evaluation.metrics import Meter
from cnpass.records import Metric
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples, samples_at_once


@dataclass(frozen=True)
class Validator:
    """Measures a model during training, always on the same samples and chips.

    Attributes:
        samples: Validation samples.
        expected: What outputs are compared with (`cnpass.evaluation.metrics.reference`).
        metric: What is measured.
        crossbars: What varies.
        seed: Seed of the chips.
        chips: Numbers of the chips.
    """

    samples: Samples
    expected: np.ndarray
    metric: Metric
    crossbars: Crossbars
    seed: int
    chips: range

    def values(self, forward: Forward, weights: Mapping[str, torch.Tensor] | None = None) -> list[float]:
        """Return the metric of every chip; ``weights`` stand in for digital ones."""
        return list(self.figures(forward, weights))

    def figures(self, forward: Forward, weights: Mapping[str, torch.Tensor] | None = None) -> Iterator[float]:
        """Measure chip after chip, as they are asked for; ``weights`` stand in for digital ones."""
        at_once = samples_at_once(forward, self.samples)
        return (self._measure(forward, chip, weights or {}, at_once) for chip in self.chips)

    def score(self, forward: Forward, weights: Mapping[str, torch.Tensor] | None = None) -> float:
        """Return the mean over the chips; ``weights`` stand in for digital ones."""
        return float(np.mean(self.values(forward, weights)))

    def _measure(
        self, forward: Forward, chip: int, others: Mapping[str, torch.Tensor], at_once: int
    ) -> float:
        weights = {**others, **self.crossbars.chip(forward.module.weights, chip, self.seed)}
        meter = Meter(self.metric)
        for start in range(0, len(self.samples), at_once):
            taken = slice(start, start + at_once)
            with torch.no_grad():
                output = forward(self.samples.take(taken), weights)
            meter.add(output.float().cpu().numpy(), self.expected[taken])
        return meter.value()
