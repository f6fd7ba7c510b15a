"""How long to train, at what rate, and seeds that make every epoch repeatable by itself."""

from __future__ import annotations

import hashlib
import math

DEFAULT_STEPS = 2400
"""Optimiser steps that bring a small network back from strong variation; few samples get many epochs."""
FEWEST_EPOCHS = 8

_WARM_UP = 0.3
_FIRST_RATE = 1 / 25
_LAST_RATE = 1e-4


def epochs_for(
    samples: int, batch: int, *, seconds: float | None = None, seconds_per_step: float = math.inf
) -> int:
    """Return a number of epochs: from a time budget where there is one, else from `DEFAULT_STEPS`.

    Args:
        samples: Training samples.
        batch: Samples per step.
        seconds: Time that training may take.
        seconds_per_step: Measured time of one step.
    """
    per_epoch = math.ceil(samples / batch)
    if seconds is not None and math.isfinite(seconds_per_step):
        return max(1, int(seconds / (seconds_per_step * per_epoch)))
    return max(FEWEST_EPOCHS, math.ceil(DEFAULT_STEPS / per_epoch))


def one_cycle(progress: float) -> float:
    """Return the learning rate at a point of training, as a fraction of its peak.

    A cosine up from 1/25 over the first 30 %, then a cosine down to 1e-4 of the first (L. N. Smith, 2018).

    Args:
        progress: Fraction of the training that is done, 0 to 1.
    """
    if progress < _WARM_UP:
        return _cosine(_FIRST_RATE, 1.0, progress / _WARM_UP)
    return _cosine(1.0, _FIRST_RATE * _LAST_RATE, (progress - _WARM_UP) / (1 - _WARM_UP))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


def seed_of(seed: int, *names: int | str) -> int:
    """Return a 63-bit seed for one purpose and place, such as ("noise", epoch)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
