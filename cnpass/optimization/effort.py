"""How long each training of an optimisation is: as told, within a time, or as model and data suggest.

Unasked, the lengths are the same on every machine, since they follow from counts; only a time budget makes
them depend on the machine, and those are kept in the run folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cnpass.training.schedule import epochs_for, epochs_within, most_epochs

FEWEST_TRIALS = 3
"""Placements to try even where time is short: none, the cheapest, and one more."""
MOST_TIMES = 25
"""The last training is at most so many times as long as the first."""
_PER_CENT = 100
_SHARES = {
    "optimize": {"retrain": 0.12, "shared": 0.05, "trials": 0.05, "compensation": 0.05, "together": 0.58},
    "retrain": {"together": 0.9},
    "search": {"shared": 0.35, "trials": 0.2, "compensation": 0.35},
}
"""How each verb divides a time budget; optimize retrains twice, and what is left is for measuring rungs."""
_TRAININGS = ("retrain", "shared", "compensation", "together")
_FRACTIONS = {"shared": 1 / 3, "compensation": 1 / 4}
"""Epochs of the shared compensation, and of that which was chosen, as fractions of those of retraining."""
_FORWARD = 1 / 3
"""Time of a forward pass as a fraction of that of a training step with as many samples."""
_HOUR, _MINUTE = 3600, 60


@dataclass(frozen=True)
class Size:
    """What decides how much work an epoch is.

    Attributes:
        samples: Training samples.
        batch: Samples per step.
        macs: Multiply-accumulates of the model per sample; None if they are not known.
        searched: Samples that one trial of the search runs, over all chips.
    """

    samples: int
    batch: int
    macs: int | None
    searched: int


@dataclass(frozen=True)
class Effort:
    """Epochs of every training, and how many placements are tried between them.

    Attributes:
        retrain: Epochs of the first training, of the analog weights, and of the same with the penalty.
        shared: Epochs of the compensation that all trials share.
        compensation: Epochs of the one that was chosen.
        together: Epochs of the last training, of analog weights and compensation, where much is missing.
        grows: Whether that is shorter where less is missing.
        trials: Placements to try.
    """

    retrain: int
    shared: int
    compensation: int
    together: int
    grows: bool
    trials: int

    @classmethod
    def told(cls, epochs: int, trials: int) -> Self:
        """Return the effort for a number of epochs that was asked for."""
        return cls(epochs, *_fractions(epochs), epochs, grows=False, trials=trials)

    @classmethod
    def suited(cls, size: Size, trials: int) -> Self:
        """Return the effort that model and data suggest."""
        first = epochs_for(size.samples, size.batch, size.macs)
        last = min(MOST_TIMES * first, max(first, most_epochs(size.samples, size.macs)))
        return cls(first, *_fractions(first), last, grows=True, trials=trials)

    @classmethod
    def within(cls, verb: str, seconds: float, size: Size, seconds_per_step: float, trials: int) -> Self:
        """Return the effort that takes a verb about as long as allowed."""
        shares = _SHARES[verb]
        epochs = {
            part: epochs_within(seconds * shares.get(part, 0.0), size.samples, size.batch, seconds_per_step)
            for part in _TRAININGS
        }
        trial = size.searched / size.batch * _FORWARD * seconds_per_step
        affordable = max(FEWEST_TRIALS, int(seconds * shares.get("trials", 0.0) / trial))
        return cls(**epochs, grows=False, trials=min(trials, affordable))

    def last(self, missing: float) -> int:
        """Return the epochs of the last training.

        Args:
            missing: What the best rung so far lacks of the clean figure, as a fraction of it. Every per cent
                is worth as many epochs as the first training had.
        """
        if not self.grows:
            return self.together
        return min(self.together, max(1, round(self.retrain * max(1.0, _PER_CENT * missing))))

    def announcement(
        self, size: Size, seconds_per_step: float, *, firsts: int, places: bool, last: bool
    ) -> str:
        """Return what to tell a user before the work starts.

        Args:
            size: What decides how much work an epoch is.
            seconds_per_step: Measured time of one step.
            firsts: How many first trainings there are.
            places: Whether compensation is placed and trained.
            last: Whether there is a last training.
        """
        fixed = firsts * self.retrain + places * (self.shared + self.compensation)
        trials = places * self.trials * size.searched / size.batch * _FORWARD * seconds_per_step
        epoch = size.samples / size.batch * seconds_per_step
        least, most = (fixed + last * epochs for epochs in (min(self.retrain, self.together), self.together))
        told = f"training: {least} epochs, about {_shown(least * epoch + trials)}"
        if self.grows and most > least:
            told += f"; up to {most}, {_shown(most * epoch + trials)}, where much accuracy is missing"
        return f"{told} (--epochs or --budget to change)"


def _fractions(epochs: int) -> tuple[int, int]:
    return max(1, round(epochs * _FRACTIONS["shared"])), max(1, round(epochs * _FRACTIONS["compensation"]))


def _shown(seconds: float) -> str:
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _MINUTE:.0f} min" if seconds >= _MINUTE else f"{max(1, seconds):.0f} s"
