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
_TUNING = 0.4
"""Share of the whole budget that all trials of ``--tune`` take together, before that."""
_TRAININGS = ("retrain", "shared", "compensation", "together")
_FRACTIONS = {"shared": 1 / 3, "compensation": 1 / 4, "tuning": 1 / 4}
"""Epochs of the shared compensation, of that which was chosen, and of one trial of ``--tune``, as fractions
of those of retraining."""
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
        retrain: Epochs of the first training of all weights, and of the same with the penalty.
        shared: Epochs of the compensation that all trials share.
        compensation: Epochs of the one that was chosen.
        together: Epochs of the last training, where much is missing.
        grows: Whether that is shorter where less is missing.
        trials: Placements to try.
        tuning: Epochs of one trial of ``--tune``.
    """

    retrain: int
    shared: int
    compensation: int
    together: int
    grows: bool
    trials: int
    tuning: int

    @classmethod
    def told(cls, epochs: int, trials: int) -> Self:
        """Return the effort for a number of epochs that was asked for."""
        return cls(epochs, together=epochs, grows=False, trials=trials, **_fractions(epochs))

    @classmethod
    def suited(cls, size: Size, trials: int) -> Self:
        """Return the effort that model and data suggest."""
        first = epochs_for(size.samples, size.batch, size.macs)
        last = min(MOST_TIMES * first, max(first, most_epochs(size.samples, size.macs)))
        return cls(first, together=last, grows=True, trials=trials, **_fractions(first))

    @classmethod
    def within(
        cls,
        verb: str,
        seconds: float,
        size: Size,
        seconds_per_step: float,
        trials: int,
        tunings: int = 0,
    ) -> Self:
        """Return the effort that takes a verb about as long as allowed.

        Args:
            verb: Name of the verb.
            seconds: The time.
            size: What decides how much work an epoch is.
            seconds_per_step: Measured time of one step.
            trials: Placements to try, at most.
            tunings: Trials of ``--tune``.
        """

        def fitting(time: float) -> int:
            return epochs_within(time, size.samples, size.batch, seconds_per_step)

        shares = _SHARES[verb]
        left = seconds * (1 - _TUNING) if tunings else seconds
        epochs = {part: fitting(left * shares.get(part, 0.0)) for part in _TRAININGS}
        trial = size.searched / size.batch * _FORWARD * seconds_per_step
        affordable = max(FEWEST_TRIALS, int(left * shares.get("trials", 0.0) / trial))
        tuning = fitting((seconds - left) / max(tunings, 1))
        return cls(**epochs, grows=False, trials=min(trials, affordable), tuning=tuning)

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
        self, size: Size, seconds_per_step: float, *, firsts: int, places: bool, last: bool, tunings: int
    ) -> str:
        """Return what to tell a user before the work starts.

        Args:
            size: What decides how much work an epoch is.
            seconds_per_step: Measured time of one step.
            firsts: How many first trainings there are.
            places: Whether compensation is placed and trained.
            last: Whether there is a last training.
            tunings: Trials of ``--tune``.
        """
        fixed = tunings * self.tuning + firsts * self.retrain + places * (self.shared + self.compensation)
        trials = places * self.trials * size.searched / size.batch * _FORWARD * seconds_per_step
        epoch = size.samples / size.batch * seconds_per_step
        least, most = (fixed + last * epochs for epochs in (self.last(0.0), self.together))
        told = f"training: {least} epoch{'s' * (least > 1)}, about {_shown(least * epoch + trials)}"
        if self.grows and most > least:
            told += f"; up to {most}, {_shown(most * epoch + trials)}, where much accuracy is missing"
        return f"{told} (--epochs or --budget to change)"


def _fractions(epochs: int) -> dict[str, int]:
    return {part: max(1, round(epochs * fraction)) for part, fraction in _FRACTIONS.items()}


def _shown(seconds: float) -> str:
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _MINUTE:.0f} min" if seconds >= _MINUTE else f"{max(1, seconds):.0f} s"
