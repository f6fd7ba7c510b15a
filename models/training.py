"""Ordinary training (no variation injected) and the accuracy of a network on simulated chips."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Augment = Callable[[Tensor, torch.Generator], Tensor]


def fit(
    network: nn.Sequential,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    batch: int,
    peak_lr: float,
    generator: torch.Generator,
    augment: Augment | None = None,
) -> None:
    """Minimise cross-entropy with Adam and a one-cycle learning rate.

    Args:
        network: Trained in place.
        x: float32 [N, C, H, W], as the network takes it.
        y: int64 [N] class numbers.
        epochs: Passes over the data.
        batch: Images per step.
        peak_lr: Highest learning rate of the cycle.
        generator: Source of shuffling and augmentation; with one thread, same state means same weights.
        augment: Applied to each batch.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=peak_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, epochs * math.ceil(len(x) / batch))
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            images = x[index] if augment is None else augment(x[index], generator)
            loss = F.cross_entropy(network(images), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """Top-1 accuracy as a fraction."""
    hits = sum(
        int((network(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True)
    )
    return hits / len(y)


@torch.no_grad()
def accuracy_on_chips(
    network: nn.Sequential, x: Tensor, y: Tensor, *, sigma: float, chips: int, generator: torch.Generator
) -> np.ndarray:
    """Top-1 accuracy on each of `chips` chips, whose weights (not biases) are w * exp(sigma * N(0, 1)).

    Returns:
        float64 [chips], fractions. The network's weights are as before when it returns.
    """
    nominal = [(p, p.clone()) for name, p in network.named_parameters() if name.endswith(".weight")]
    result = np.empty(chips)
    for chip in range(chips):
        for parameter, value in nominal:
            parameter.copy_(value * torch.exp(sigma * torch.randn(value.shape, generator=generator)))
        result[chip] = accuracy(network, x, y)
    for parameter, value in nominal:
        parameter.copy_(value)
    return result
