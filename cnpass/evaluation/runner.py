"""One chip of a mapped model over all samples, as a unit of work."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as record

from cnpass.evaluation.feeding import Feed, sample_outputs
from cnpass.evaluation.metrics import Meter
from cnpass.evaluation.work import Outcome, Runner
from cnpass.records import Metric
from cnpass.runtime.session import Session


@record(frozen=True)
class Job:
    """What all chips of a run share; it travels as JSON.

    Attributes:
        inputs: file of the samples (.npy) by input name.
        expected: file of what outputs are compared with (.npy).
        metric: what is measured.
        batch: samples per run.
        padded: whether a run always needs that many.
    """

    inputs: dict[str, str]
    expected: str
    metric: Metric
    batch: int
    padded: bool


@record(frozen=True)
class Unit:
    """One chip of one mapped model; it travels as JSON."""

    model: str
    chip: int


class ChipRunner(Runner[Job, Unit, float]):
    """Measures chips. The arrays are mapped into memory, so that processes share them."""

    jobs = TypeAdapter(Job)
    units = TypeAdapter(Unit)

    def __init__(self, job: Job) -> None:
        self._inputs = {name: np.load(path, mmap_mode="r") for name, path in job.inputs.items()}
        self._expected = np.load(job.expected, mmap_mode="r")
        self._metric = job.metric
        self._feed = Feed(job.batch, job.padded)
        self._model = ""
        self._session: Session | None = None

    def measure(self, unit: Unit) -> Outcome[Unit, float]:
        """Run every sample on one chip."""
        start = time.perf_counter()
        if self._session is None or unit.model != self._model:
            self._session = Session(Path(unit.model))
            self._model = unit.model
        meter = Meter(self._metric)
        position = 0
        for output in sample_outputs(self._session, self._inputs, self._feed, unit.chip):
            meter.add(output, self._expected[position : position + len(output)])
            position += len(output)
        return Outcome(unit, meter.value(), time.perf_counter() - start)
