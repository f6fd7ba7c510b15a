"""What is measured: top-1 accuracy, top-1 agreement with the clean model, or signal-to-error ratio.

Each looks at the model's first output. A row of scores with NaN counts as wrong.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cnpass.data import Split
from cnpass.errors import DataError
from cnpass.records import Metric

Outputs = npt.NDArray[np.generic]

SER_LIMIT = 150.0
"""Bound of the signal-to-error ratio in dB either way; float32 resolves about as much."""


def scores(output: Outputs) -> Outputs | None:
    """An output as class scores ``[N, classes]``, or None if it is none; sizes of 1 at the end drop."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return output if output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind == "f" else None


def predictions(output: Outputs) -> npt.NDArray[np.int64]:
    """Class with the highest score, ``[N]``; -1 for rows with NaN."""
    rows = scores(output)
    assert rows is not None, "choose() admits class metrics only for class scores"  # noqa: S101
    return np.where(np.isnan(rows).any(axis=1), np.int64(-1), rows.argmax(axis=1))


def choose(split: Split, clean: Outputs, output: str) -> Metric:
    """The metric for data and model.

    Args:
        split: the samples; with labels for top-1.
        clean: first output of the clean model on them.
        output: name of that output, for errors.

    Raises:
        DataError: there are labels, but the output holds no scores for them.
    """
    rows = scores(clean)
    if split.y is None:
        return "ser" if rows is None else "agreement"
    if rows is None:
        raise DataError(
            f"labels need class scores, but output '{output}' has shape {list(clean.shape)}; "
            "data without labels (y) measure fidelity instead"
        )
    if len(rows) != len(split.y):
        raise DataError(
            f"labels need class scores for each of {len(split.y)} samples, but output '{output}' has them "
            f"for {len(rows)}; data without labels (y) measure fidelity instead"
        )
    if split.y.max() >= rows.shape[1]:
        raise DataError(f"label {split.y.max()} is outside the model's {rows.shape[1]} classes")
    return "top1"


def reference(metric: Metric, split: Split, clean: Outputs) -> Outputs:
    """What outputs are compared with: labels, the clean model's predictions, or its outputs."""
    if metric == "top1":
        assert split.y is not None  # noqa: S101 (choose() looked)
        return split.y
    return predictions(clean) if metric == "agreement" else clean


def _right(output: Outputs, expected: Outputs) -> npt.NDArray[np.bool_]:
    """Which samples have the expected class; none with NaN, where the clean model may have NaN, too."""
    found = predictions(output)
    right: npt.NDArray[np.bool_] = (found == expected) & (found >= 0)
    return right


class Meter:
    """Takes a metric over batches."""

    def __init__(self, metric: Metric) -> None:
        self._classes = metric != "ser"
        self._good = 0.0
        self._total = 0.0

    def add(self, output: Outputs, expected: Outputs) -> None:
        """Count one batch: its first output, and the reference of the same samples."""
        if self._classes:
            self._good += float(np.count_nonzero(_right(output, expected)))
            self._total += len(expected)
        else:
            wanted = expected.astype(np.float64)
            self._good += float(np.sum(wanted**2))
            self._total += float(np.sum((output.astype(np.float64) - wanted) ** 2))

    def value(self) -> float:
        """The metric over all batches: a fraction, or dB."""
        if self._classes:
            return self._good / self._total
        if self._total == 0:
            return SER_LIMIT
        if not math.isfinite(self._total) or self._good == 0:
            return -SER_LIMIT
        return min(max(10 * math.log10(self._good / self._total), -SER_LIMIT), SER_LIMIT)


def chance_warning(metric: Metric, split: Split, clean: float, classes: int) -> str | None:
    """A warning if labels tell that the clean model knows nothing, so that figures would mean nothing."""
    if metric != "top1" or split.y is None:
        return None
    share = float(np.bincount(split.y).max()) / len(split)
    chance = max(1 / classes, share)
    margin = 3 * math.sqrt(chance * (1 - chance) / len(split))
    if clean > chance + margin:
        return None
    if clean > chance:
        return (
            f"the clean model is right on {clean:.1%} of {len(split)} samples, too few to tell that from "
            f"chance ({chance:.1%})"
        )
    return (
        f"the clean model is right on {clean:.1%} of the samples, no more than by chance ({chance:.1%}): "
        "check --scale, --mean, --std, --layout and the order of the labels"
    )
