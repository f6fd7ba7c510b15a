"""Figures over chips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from cnpass.records import Point

_LARGE = 1000


@cache
def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution.

    Exact for up to 1000 degrees of freedom, by bisection of the closed forms of the distribution function
    (Abramowitz and Stegun, 26.7.3 and 26.7.4); above, by the expansion 26.7.5, good to 1e-12.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    if freedom > _LARGE:
        z = 1.959963984540054
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / freedom + second / freedom**2 + third / freedom**3
    low, high = 1.9, 13.0
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _between(t: float, freedom: int) -> float:
    """Probability that a t variable lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(1 + odd, freedom, 2):
        total += term
        term *= square * i / (i + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); at least two values."""
    deviation = float(np.std(values, ddof=1))
    return t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))


def surely_better(values: Sequence[float], others: Sequence[float]) -> bool:
    """Tell whether the 95 % confidence interval of the mean paired difference lies above 0.

    Args:
        values: figures of one model, chip by chip; at least two.
        others: those of another model on the same chips.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    return float(np.mean(differences)) > half_width(differences)


def summarise(device: str, params: Mapping[str, float], seed: int, values: Sequence[float]) -> Point:
    """The figures of one device model over chips, in the order of their numbers; at least two."""
    mean = float(np.mean(values))
    half = half_width(values)
    return Point(
        device=device,
        params=dict(params),
        seed=seed,
        chips=len(values),
        mean=mean,
        std=float(np.std(values, ddof=1)),
        ci95=(mean - half, mean + half),
        min=float(np.min(values)),
        p05=float(np.percentile(values, 5)),
    )
