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
        normalised: Whether the scores are probabilities, so that their logarithm stands in for logits.
        distillation: Weight of the clean model's probabilities beside labels, 0 to 1.
    """

    metric: Metric
    normalised: bool
    distillation: float = 0.0

    @classmethod
    def of(cls, metric: Metric, clean: torch.Tensor, distillation: float = 0.0) -> Objective:
        """Make the objective of a metric, given outputs of the clean model."""
        return cls(metric, metric != "ser" and are_probabilities(rows(clean)), distillation)

    @property
    def follows_clean(self) -> bool:
        """Whether the clean model's outputs matter."""
        return self.metric != "top1" or self.distillation > 0

    def __call__(
        self, output: torch.Tensor, labels: torch.Tensor | None, clean: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            output: The model's first output, [N, ...].
            labels: Class numbers [N]; needed by "top1".
            clean: The clean model's first output; needed where the objective follows that.
        """
        if clean is None:
            return F.cross_entropy(self._logits(output), _given(labels))
        if self.metric == "ser":
            return (output - clean).square().mean() / clean.square().mean().clamp_min(1e-12)
        logits = self._logits(output)
        distance = self._distance(logits, clean)
        if self.metric == "agreement":
            return distance
        loss = F.cross_entropy(logits, _given(labels))
        return (1 - self.distillation) * loss + self.distillation * distance

    def _logits(self, output: torch.Tensor) -> torch.Tensor:
        scores = rows(output)
        return scores.clamp_min(_SMALLEST_PROBABILITY).log() if self.normalised else scores

    def _distance(self, logits: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Return the Kullback-Leibler divergence from the clean model's class probabilities."""
        wanted = torch.log_softmax(self._logits(clean), 1)
        return F.kl_div(torch.log_softmax(logits, 1), wanted, reduction="batchmean", log_target=True)


def _given(labels: torch.Tensor | None) -> torch.Tensor:
    assert labels is not None  # noqa: S101 (top1 has labels)
    return labels
