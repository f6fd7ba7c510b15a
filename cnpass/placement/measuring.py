"""Measuring placements on the shared network, chip after chip, in this process or in others.

Whatever process measures a placement, it reads the same files and computes on one thread, so the figures are
the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as record

from cnpass.compensation.kinds import Kind
from cnpass.document import Document
from cnpass.evaluation.pool import Pool
from cnpass.evaluation.statistics import surely_better
from cnpass.evaluation.work import Outcome, Runner
from cnpass.placement.sharing import Supernet
from cnpass.placement.space import Choice, Placement
from cnpass.records import Metric
from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import make_device
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples
from cnpass.training.lift import lift
from cnpass.training.rules.dtypes import from_array
from cnpass.training.validation import Validator

FEWEST_CHIPS = 4
"""Chips that every placement is measured on; then it ends early if it is surely worse than the best one."""


@record(frozen=True)
class Job:
    """What all placements of a search share; it travels as JSON.

    Attributes:
        base: file of the document without compensation.
        nodes: labels of the candidates, as for `Supernet`.
        kinds: kinds of compensation.
        ratios: widths.
        network: file of the shared network, trained, as samples reach it.
        rows: samples per call where that model fixes it, else None.
        inputs: files of the validation samples (.npy), in the order of the model's inputs.
        expected: file of what outputs are compared with (.npy).
        metric: what is measured.
        device: name of the device model.
        params: its parameters.
        streams: random stream by key of every weight on a crossbar.
        columns: axis of crossbar columns by key.
        copies: devices per weight by key.
        row_axes: axes that make up crossbar rows, by key of weights whose rows differ in devices.
        seed: seed of the chips.
        chips: numbers of the chips, from the first to before the second.
        torch_device: where the network runs.
    """

    base: str
    nodes: tuple[str, ...]
    kinds: tuple[Kind, ...]
    ratios: tuple[float, ...]
    network: str
    rows: int | None
    inputs: list[str]
    expected: str
    metric: Metric
    device: str
    params: dict[str, float]
    streams: dict[str, int]
    columns: dict[str, int]
    copies: dict[str, Copies]
    row_axes: dict[str, tuple[int, ...]]
    seed: int
    chips: tuple[int, int]
    torch_device: str


@record(frozen=True)
class Unit:
    """One placement to measure; it travels as JSON.

    Attributes:
        number: its place among those of a round.
        placement: what to measure.
        best: figures, chip by chip, of one to give up against; empty for none.
    """

    number: int
    placement: tuple[Choice, ...]
    best: tuple[float, ...]


class PlacementRunner(Runner[Job, Unit, list[float]]):
    """Measures placements with the weights that they share."""

    jobs = TypeAdapter(Job)
    units = TypeAdapter(Unit)

    def __init__(self, job: Job) -> None:
        base = Document.load(job.base)
        self._supernet = Supernet(base, job.nodes, job.kinds, job.ratios, seed=0)
        device = torch.device(job.torch_device)
        self._forward = Forward(lift(Document.load(job.network)).on(device), job.rows)
        inputs = tuple(from_array(np.load(path)).to(device) for path in job.inputs)
        programming = make_device(job.device, **job.params)
        self._validator = Validator(
            samples=Samples(inputs),
            expected=np.load(job.expected),
            metric=job.metric,
            crossbars=Crossbars(programming, job.streams, job.columns, job.copies, job.row_axes),
            seed=job.seed,
            chips=range(*job.chips),
        )

    def measure(self, unit: Unit) -> Outcome[Unit, list[float]]:
        """Return the figure of each chip, of fewer chips where the placement is given up."""
        start = time.perf_counter()
        with _one_thread(), torch.no_grad():
            forward, weights = self._supernet.variant(self._forward, unit.placement)
            values = until_worse(self._validator.figures(forward, weights), unit.best)
        return Outcome(unit, values, time.perf_counter() - start)


def until_worse(figures: Iterator[float], best: Sequence[float]) -> list[float]:
    """Take figures chip by chip, until they are surely worse than others on the same chips.

    Args:
        figures: of one placement.
        best: of another one, on the same chips; empty for none.
    """
    values: list[float] = []
    for figure in figures:
        values.append(figure)
        count = len(values)
        if best and count >= FEWEST_CHIPS and surely_better(best[:count], values):
            break
    return values


class Measurer:
    """Measures rounds of placements in several processes; use it in a ``with``."""

    def __init__(self, job: Job, workers: int, folder: Path) -> None:
        self._pool = Pool(PlacementRunner, job, workers, folder)

    def __call__(self, placements: Sequence[Placement], best: Sequence[float]) -> Iterator[list[float]]:
        """Give the figures of placements in their order, each as soon as it and all before it are there."""
        units = [Unit(number, placement, tuple(best)) for number, placement in enumerate(placements)]
        arrived: dict[int, list[float]] = {}
        given = 0
        for outcome in self._pool.run(units):
            arrived[outcome.unit.number] = outcome.value
            while given in arrived:
                yield arrived[given]
                given += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()


def write_job(
    folder: Path, supernet: Supernet, network: Document, rows: int | None, validator: Validator
) -> Job:
    """Write what a job needs into a folder.

    Args:
        folder: an existing one; files of the same names are replaced.
        supernet: the shared network.
        network: its document with trained weights, as samples reach it.
        rows: samples per call, as of `Forward`.
        validator: what placements are compared by.
    """
    supernet.base.save(folder / "base.onnx", force=True)
    network.save(folder / "network.onnx", force=True)
    inputs = [folder / f"input-{i}.npy" for i in range(len(validator.samples.inputs))]
    for path, samples in zip(inputs, validator.samples.inputs, strict=True):
        np.save(path, samples.cpu().numpy())
    np.save(folder / "expected.npy", validator.expected)
    crossbars = validator.crossbars
    return Job(
        base=str(folder / "base.onnx"),
        nodes=supernet.nodes,
        kinds=supernet.kinds,
        ratios=supernet.ratios,
        network=str(folder / "network.onnx"),
        rows=rows,
        inputs=[str(path) for path in inputs],
        expected=str(folder / "expected.npy"),
        metric=validator.metric,
        device=crossbars.device.name,
        params=crossbars.device.attributes(),
        streams=dict(crossbars.streams),
        columns=dict(crossbars.columns),
        copies=dict(crossbars.copies),
        row_axes=dict(crossbars.row_axes),
        seed=validator.seed,
        chips=(validator.chips.start, validator.chips.stop),
        torch_device=str(validator.samples.inputs[0].device),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
