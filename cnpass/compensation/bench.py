"""What chips make of calibration inputs inside a model, against what the clean model makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnpass.compensation.activations import Rows, Tap, mapped
from cnpass.compensation.regression import Moments
from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import DataError
from cnpass.progress import Task
from cnpass.runtime.devices import DeviceModel
from cnpass.training.schedule import seed_of


@dataclass(frozen=True)
class Place:
    """Where to look.

    Attributes:
        label: name of the node that is fitted.
        clean: name of the tensor that is aimed at, in the clean model.
        seen: name of the tensor that a fit starts from; that one as chips make it comes last on its axis.
        axis: axis of channels or features of both.
        outputs: channels or features of what is aimed at.
    """

    label: str
    clean: str
    seen: str
    axis: int
    outputs: int


@dataclass(frozen=True)
class Bench:
    """Observes nodes of a model while it is being corrected.

    Attributes:
        target: the clean model.
        device: device model.
        split: calibration samples.
        samples: how many of them each chip sees.
        chips: numbers of the chips.
        seed: seed of the chips and of what is picked.
        folder: for models that sessions read.
    """

    target: Document
    device: DeviceModel
    split: Split
    samples: int
    chips: range
    seed: int
    folder: Path

    def observe(self, document: Document, place: Place, task: Task) -> tuple[Moments, float]:
        """Gather what a correction of a node sees, and by how much the node's output is off.

        Args:
            document: the model with corrections up to this node.
            place: where to look.
            task: advanced by one per chip.

        Returns:
            Moments of what is seen, the chips' y last, and of the clean y minus that; and the sum of squares
            of the clean y around its mean.

        Raises:
            DataError: values are not finite.
        """
        clean = self._tap(self.target, place.clean, place)
        seen = self._tap(mapped(document, self.device, self.seed), place.seen, place)
        moments, spread = None, Moments(0, place.outputs)
        for chip in self.chips:
            inputs = self._pick(chip)
            for wanted, z in zip(clean.rows(inputs), seen.rows(inputs, chip), strict=True):
                if not (np.isfinite(wanted).all() and np.isfinite(z).all()):
                    raise DataError(f"node {place.label!r} gives values on chip {chip} that are not finite")
                moments = moments or Moments(z.shape[1], place.outputs)
                moments.add(z, np.subtract(wanted, z[:, -place.outputs :], dtype=np.float64))
                spread.add(wanted[:, :0], wanted)
            task.advance()
        assert moments is not None  # noqa: S101 (there are chips and samples)
        return moments, float(np.trace(spread.tt)) or 1.0

    def _pick(self, chip: int) -> Mapping[str, Rows]:
        """Samples for one chip, in their order."""
        if len(self.split) <= self.samples:
            return self.split.inputs
        random = np.random.default_rng(seed_of(self.seed, "calibration", chip))
        return self.split.take(np.sort(random.choice(len(self.split), self.samples, replace=False))).inputs

    def _tap(self, document: Document, tensor: str, place: Place) -> Tap:
        seed = seed_of(self.seed, "positions", place.label)
        return Tap(document, tensor, place.axis, self.split.inputs, seed=seed, folder=self.folder)
