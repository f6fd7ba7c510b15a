"""How long to train, at what rate, and seeds that make every epoch repeatable by itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

DEFAULT_STEPS = 2400
"""Optimiser steps that bring a small network back from strong variation; few samples get many epochs."""
FEWEST_EPOCHS = 8
MOST_MACS = 1e13
"""Multiply-accumulates of forward passes that a training does unasked: about twenty minutes on two cores."""
RATE = 3e-3
"""Peak learning rate."""
LEVELS = (0.4, 0.7, 1.0)
"""Strengths of variation that a training climbs, as fractions of the device model's own."""

_WARM_UP = 0.3
_FIRST_RATE = 1 / 25
_LAST_RATE = 1e-4


def epochs_for(samples: int, batch: int, macs: int | None = None) -> int:
    """Return how many epochs of training suit a model and its data; the same on every machine.

    Args:
        samples: Training samples.
        batch: Samples per step.
        macs: Multiply-accumulates of the model per sample; None if they are not known.
    """
    wanted = max(FEWEST_EPOCHS, math.ceil(DEFAULT_STEPS / math.ceil(samples / batch)))
    return min(wanted, most_epochs(samples, macs))


def most_epochs(samples: int, macs: int | None) -> int:
    """Return after how many epochs a training has taken `MOST_MACS`; arguments as for `epochs_for`."""
    return max(1, int(MOST_MACS / (samples * max(macs or 1, 1))))


def epochs_within(seconds: float, samples: int, batch: int, seconds_per_step: float) -> int:
    """Return how many epochs fit in a time, at least one.

    Args:
        seconds: The time.
        samples: Training samples.
        batch: Samples per step.
        seconds_per_step: Measured time of one step.
    """
    return max(1, int(seconds / (seconds_per_step * math.ceil(samples / batch))))


def one_cycle(progress: float) -> float:
    """Return the learning rate at a point of training, as a fraction of its peak.

    A cosine up from 1/25 over the first 30 %, then a cosine down to 1e-4 of the first (L. N. Smith, 2018).

    Args:
        progress: Fraction of the training that is done, 0 to 1.
    """
    if progress < _WARM_UP:
        return _cosine(_FIRST_RATE, 1.0, progress / _WARM_UP)
    return _cosine(1.0, _FIRST_RATE * _LAST_RATE, (progress - _WARM_UP) / (1 - _WARM_UP))


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


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


def seed_of(seed: int, *names: int | str) -> int:
    """Return a 63-bit seed for one purpose and place, such as ("noise", epoch)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
