"""The ladder: every rung measured on the same validation samples and chips, and kept only if it helps."""

from __future__ import annotations

from dataclasses import dataclass, field

from cnpass.document import Document
from cnpass.evaluation import VALIDATION_CHIPS_START, MonteCarlo
from cnpass.evaluation.statistics import summarise, surely_better
from cnpass.placement.space import Placement
from cnpass.progress import Progress
from cnpass.records import Point, Rung
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
        progress: Told what happens.
        document: The best so far; at first the model that came in.
        placement: Its compensation.
        rungs: What was measured.
    """

    chips: MonteCarlo
    device: DeviceModel
    seed: int
    store: Journal
    progress: Progress
    document: Document
    placement: Placement = ()
    rungs: list[Rung] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Measure the model that came in."""
        self._values = self._measure(self.document)
        self._note("no correction", self._values, kept=True)

    def climb(self, step: str, document: Document, placement: Placement = ()) -> bool:
        """Measure a candidate; keep it if it is better on the same chips, and not by chance."""
        values = self._measure(document)
        kept = surely_better(values, self._values)
        self._note(step, values, kept=kept)
        if kept:
            self.document, self.placement, self._values = document, placement, values
        return kept

    def better(self, document: Document, other: Document) -> bool:
        """Tell whether a document is better than another one; both were measured before, as a rule."""
        return surely_better(self._measure(document), self._measure(other))

    @property
    def point(self) -> Point:
        """The figures of the best so far."""
        return next(rung.point for rung in reversed(self.rungs) if rung.kept)

    @property
    def missing(self) -> float:
        """What the best so far lacks of the clean figure, as a fraction of it; never below 0.

        All of it where that is in decibels, of which no fraction means anything.
        """
        if self.chips.metric == "ser":
            return 1.0
        clean = self.chips.clean
        mean = sum(self._values) / len(self._values)
        return max(0.0, 1 - mean / clean) if clean > 0 else 0.0

    def _measure(self, document: Document) -> list[float]:
        numbers = range(VALIDATION_CHIPS_START, VALIDATION_CHIPS_START + RUNG_CHIPS)
        target = self.chips.prepare(document, self.device, self.seed)
        with self.progress.task("rung on validation chips", len(numbers)) as task:
            return self.chips.values(target, numbers, store=self.store, task=task)

    def _note(self, step: str, values: list[float], *, kept: bool) -> None:
        point = summarise(self.device.name, self.device.attributes(), self.seed, values)
        self.rungs.append(Rung(step=step, scope="agnostic", kept=kept, point=point))
