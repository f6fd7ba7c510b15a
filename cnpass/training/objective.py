"""What training minimises: cross-entropy with labels, else distance to the clean model's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cnpass.records import Metric

_SUM_TOLERANCE = 1e-3
_SMALLEST_PROBABILITY = 1e-12


def rows(output: torch.Tensor) -> torch.Tensor:
    """Return class scores as [N, classes]; sizes of 1 at the end drop, as the metrics do."""
    while output.dim() > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return output


def are_probabilities(clean: torch.Tensor) -> bool:
    """Tell whether the clean model's scores [N, classes] are already normalised, as behind a Softmax."""
    if bool((clean < 0).any()):
        return False
    return bool(((clean.sum(1) - 1).abs() < _SUM_TOLERANCE).all())


@dataclass(frozen=True)
class Objective:
    """The task loss.

    Attributes:
        metric: What is measured: "top1" trains on labels, "agreement" on the clean model's class
            probabilities, "ser" on its outputs.
        clean: The clean model's first output on all training samples.
        normalised: Whether the scores are probabilities, so that their logarithm stands in for logits.
        distillation: Weight of the clean model's probabilities beside labels, 0 to 1.
    """

    metric: Metric
    clean: torch.Tensor
    normalised: bool
    distillation: float = 0.0

    @classmethod
    def of(cls, metric: Metric, clean: torch.Tensor, distillation: float = 0.0) -> Objective:
        """Make the objective of a metric from the clean model's outputs on the training samples."""
        classes = metric != "ser"
        return cls(metric, clean, classes and are_probabilities(rows(clean)), distillation)

    def __call__(
        self, output: torch.Tensor, index: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean loss of the training samples ``index``, a scalar."""
        if self.metric == "ser":
            clean = self.clean[index]
            return (output - clean).square().mean() / clean.square().mean().clamp_min(1e-12)
        logits = self._logits(output)
        if self.metric == "agreement" or labels is None:
            return self._distance(logits, index)
        loss = F.cross_entropy(logits, labels)
        if self.distillation:
            loss = (1 - self.distillation) * loss + self.distillation * self._distance(logits, index)
        return loss

    def _logits(self, output: torch.Tensor) -> torch.Tensor:
        scores = rows(output)
        return scores.clamp_min(_SMALLEST_PROBABILITY).log() if self.normalised else scores

    def _distance(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the Kullback-Leibler divergence from the clean model's class probabilities."""
        wanted = torch.log_softmax(self._logits(self.clean[index]), 1)
        return F.kl_div(torch.log_softmax(logits, 1), wanted, reduction="batchmean", log_target=True)
