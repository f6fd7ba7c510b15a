"""The ladder: every rung measured on the same validation samples and chips, and kept only if it helps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cnpass.document import Document
from cnpass.evaluation import VALIDATION_CHIPS_START, MonteCarlo
from cnpass.evaluation.statistics import summarise
from cnpass.records import Rung
from cnpass.runfolder import Journal
from cnpass.runtime.devices import DeviceModel

RUNG_CHIPS = 30
"""Validation chips per rung."""


@dataclass
class Ladder:
    """Climbs from a first document to better ones.

    Attributes:
        chips: Monte-Carlo over the validation samples.
        device: Device model.
        seed: Seed of the chips.
        store: Journal of finished chips.
        document: The best so far; at first the model that came in.
        rungs: What was measured.
    """

    chips: MonteCarlo
    device: DeviceModel
    seed: int
    store: Journal
    document: Document
    rungs: list[Rung] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Measure the model that came in."""
        self._values = self._measure(self.document)
        self._note("no correction", self._values, kept=True)

    def climb(self, step: str, document: Document) -> bool:
        """Measure a candidate; keep it if the mean difference over the same chips is positive."""
        values = self._measure(document)
        kept = float(np.mean(np.subtract(values, self._values))) > 0
        self._note(step, values, kept=kept)
        if kept:
            self.document, self._values = document, values
        return kept

    def _measure(self, document: Document) -> list[float]:
        numbers = range(VALIDATION_CHIPS_START, VALIDATION_CHIPS_START + RUNG_CHIPS)
        target = self.chips.prepare(document, self.device, self.seed)
        return self.chips.values(target, numbers, store=self.store)

    def _note(self, step: str, values: list[float], *, kept: bool) -> None:
        point = summarise(self.device.name, self.device.attributes(), self.seed, values)
        self.rungs.append(Rung(step=step, scope="agnostic", kept=kept, point=point))
