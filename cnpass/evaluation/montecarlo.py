"""Monte-Carlo over chips: the same samples on many simulated chips of one model."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import DataError, ModelError
from cnpass.evaluation import feeding, metrics
from cnpass.evaluation.chosen import analog_attributes, own_device
from cnpass.evaluation.pool import Pool, default_workers
from cnpass.evaluation.runner import ChipRunner, Job, Unit
from cnpass.evaluation.statistics import half_width, summarise
from cnpass.passes.lower_analog import LowerAnalog
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.passes.mean_gain import intended
from cnpass.progress import Progress, Task
from cnpass.records import Metric, Point
from cnpass.runfolder import Journal
from cnpass.runtime.devices import DeviceModel
from cnpass.runtime.library import has_library

VALIDATION_CHIPS_START = 1_000_000
"""Chips from here on serve validation and search; final figures use those from 0."""

_STOP_FROM = 20
_STOP_EVERY = 10
"""Chip counts at which a tight interval may end a point early; fixed, so that the result is repeatable."""


@dataclass(frozen=True)
class Target:
    """A model mapped to chips of one kind.

    Attributes:
        source: the model before that, which names it in journals.
        mapped: the model that runs.
        device: name of the device model.
        params: its parameters.
        seed: seed of the chips.
    """

    source: Document
    mapped: Document
    device: str
    params: dict[str, float]
    seed: int


class MonteCarlo:
    """Measures models on simulated chips over one split; use it in a ``with``.

    Several models of one origin may be measured (before and after retraining, say): the metric and what
    outputs are compared with come from the clean model given first.

    Args:
        clean: the model that came in, mapped or not; where its weights are made for a device's mean factor,
            it is taken with that.
        split: the samples; with labels the metric is top-1 accuracy, without it is agreement with ``clean``.
        workers: processes; None for one per core.
        folder: for temporary files; None for one in the system's temporary folder.
        progress: told what happens.

    Attributes:
        metric: what is measured.
        clean: that figure of the clean model in ONNX Runtime.
        notes: how samples are fed, where not the usual way.

    Raises:
        DataError: samples or labels do not fit the model.
        ModelError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        clean: Document,
        split: Split,
        *,
        workers: int | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not len(split):
            raise DataError("there are no samples to evaluate on")
        self._split = split
        self._workers = workers or default_workers()
        self._progress = progress or Progress()
        self._folder = _scratch(folder)
        self._pools: dict[feeding.Feed, Pool[Job, Unit, float]] = {}
        self._arranged: dict[str, tuple[Document, feeding.Feed]] = {}
        self._saved = 0
        self.notes: list[str] = []
        try:
            plain = intended(self._plain(clean))
            with self._naming(clean):
                outputs = self._outputs(plain)
            self._check(outputs)
            name = str(plain.graph.outputs[0].name)
            self.metric: Metric = metrics.choose(split, outputs, name)
            self._expected = metrics.reference(self.metric, split, outputs)
            self.clean = self._score(outputs)
            rows = metrics.scores(outputs)
            warning = metrics.chance_warning(
                self.metric, split, self.clean, 0 if rows is None else rows.shape[1]
            )
            if warning:
                self._warn(warning)
        except BaseException:
            self.close()
            raise

    def _check(self, outputs: metrics.Outputs) -> None:
        if outputs.dtype.kind != "f":
            return
        total = len(outputs)
        broken = int(np.count_nonzero(np.isnan(outputs).reshape(total, -1).any(axis=1)))
        text = f"the clean model gives NaN on {broken} of {total} samples"
        if broken == total:
            raise ModelError(f"{text}; its weights, or the data's range, are broken")
        if broken:
            self._warn(text)

    def _warn(self, text: str) -> None:
        self._progress.warn(text)
        self.notes.append(text)

    @contextmanager
    def _naming(self, document: Document) -> Iterator[None]:
        """Errors that speak of our temporary files speak of the model instead."""
        try:
            yield
        except (ModelError, DataError) as error:
            ours = re.escape(str(self._folder)) + r"/[\w-]+\.onnx"
            said = re.sub(ours, str(document.path or "the model"), str(error))
            if said == str(error):
                raise
            raise type(error)(said) from error

    # clean figures

    def clean_of(self, document: Document) -> float:
        """The figure of another model without variation, in ONNX Runtime."""
        return self._score(self._outputs(self._plain(document)))

    def _plain(self, document: Document) -> Document:
        if analog_attributes(document) is None:
            return document
        plain = document.copy()
        LowerAnalog()(plain)
        return plain

    def _outputs(self, document: Document) -> metrics.Outputs:
        document, feed = self._arrange(document)
        session = feeding.open_session(document, self._folder, "clean")
        return np.concatenate(list(feeding.sample_outputs(session, self._split.inputs, feed)))

    def _score(self, outputs: metrics.Outputs) -> float:
        meter = metrics.Meter(self.metric)
        meter.add(outputs, self._expected)
        return meter.value()

    def _arrange(self, document: Document) -> tuple[Document, feeding.Feed]:
        key = _digest(document)
        if key not in self._arranged:
            found, feed, note = feeding.arrange(document, self._split.inputs, self._folder)
            self._arranged = {key: (found, feed)}
            if note and note not in self.notes:
                self.notes.append(note)
                self._progress.note(note)
        return self._arranged[key]

    # chips

    def prepare(
        self, document: Document, device: DeviceModel | None = None, seed: int | None = None
    ) -> Target:
        """Map a model, or retarget a mapped one.

        Args:
            document: the model; not changed.
            device: device model; None keeps that of a mapped model.
            seed: seed of the chips; None keeps that of a mapped model, and is 0 for others.

        Raises:
            ModelError: no node of the model can run on a crossbar.
        """
        attributes = analog_attributes(document)
        if device is None:
            if attributes is None:
                raise ModelError("the model is not mapped to analog chips, so a device model is needed")
            device = own_device(attributes)
            if device is None:  # programmed upstream, by nodes of a third party
                return Target(
                    document, document, str(attributes["device"]), {}, int(attributes.get("seed", 0))
                )
        if seed is None:
            seed = 0 if attributes is None else int(attributes.get("seed", 0))
        mapped = document.copy()
        MapCrossbar(device=device, seed=seed, portable="auto" if has_library() else "always")(mapped)
        if not has_library() and _SLOWER not in self.notes:
            self.notes.append(_SLOWER)
            self._progress.note(_SLOWER)
        return Target(document, mapped, device.name, device.attributes(), seed)

    def point(
        self,
        target: Target,
        chips: Sequence[int],
        *,
        store: Journal | None = None,
        until_ci: float | None = None,
        task: Task | None = None,
    ) -> Point:
        """Figures over chips; arguments as for ``values``."""
        values = self.values(target, chips, store=store, until_ci=until_ci, task=task)
        return summarise(target.device, target.params, target.seed, values)

    def values(
        self,
        target: Target,
        chips: Sequence[int],
        *,
        store: Journal | None = None,
        until_ci: float | None = None,
        task: Task | None = None,
    ) -> list[float]:
        """The metric of each chip.

        Args:
            target: what ``prepare`` gave.
            chips: numbers of the chips.
            store: journal that finished chips are read from and written to; chips of other models, data,
                devices or seeds in it do no harm.
            until_ci: stop once the 95 % confidence interval of the mean is this tight on either side.
            task: advanced by one per chip.

        Returns:
            Values in the order of ``chips``; fewer if stopped early.

        Raises:
            CnpassError: a worker process died.
        """
        key = {
            "model": _digest(target.source),
            "data": self._data_digest,
            "device": target.device,
            "params": target.params,
            "seed": target.seed,
            "metric": self.metric,
        }
        found = _stored(store, key)
        values = {chip: found[chip] for chip in chips if chip in found}
        stopper = _Stop(chips, until_ci)
        stop = stopper.count(values)
        task = task or Task()
        task.advance(len(values))
        if stop is None and len(values) < len(chips):
            outcomes = self._measure(target, [chip for chip in chips if chip not in values])
            for chip, value, seconds in outcomes:
                values[chip] = value
                task.advance()
                if store is not None:
                    store.append({**key, "chip": chip, "value": value, "seconds": round(seconds, 4)})
                stop = stopper.count(values)
                if stop is not None:
                    break
        return [values[chip] for chip in chips[:stop]]

    def _measure(self, target: Target, chips: Sequence[int]) -> Iterator[tuple[int, float, float]]:
        with self._naming(target.source):
            document, feed = self._arrange(target.mapped)
            self._saved += 1
            path = feeding.save(document, self._folder, f"model-{self._saved}")
            for outcome in self._pool(feed).run([Unit(str(path), chip) for chip in chips]):
                yield outcome.unit.chip, outcome.value, outcome.seconds

    def _pool(self, feed: feeding.Feed) -> Pool[Job, Unit, float]:
        if feed not in self._pools:
            inputs = {}
            for i, (name, array) in enumerate(self._split.inputs.items()):
                inputs[name] = str(self._folder / f"input-{i}.npy")
                np.save(inputs[name], array)
            expected = self._folder / "expected.npy"
            np.save(expected, self._expected)
            job = Job(inputs, str(expected), self.metric, feed.batch, feed.padded)
            self._pools[feed] = Pool(ChipRunner, job, self._workers, self._folder)
        return self._pools[feed]

    @cached_property
    def _data_digest(self) -> str:
        digest = hashlib.sha256(self._split.sha256.encode())
        digest.update(np.ascontiguousarray(self._expected).tobytes())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        """End worker processes and remove temporary files."""
        while self._pools:
            self._pools.popitem()[1].close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_SLOWER = "the native library is not installed, so analog nodes run as function bodies, which is slower"


def monte_carlo(
    document: Document,
    split: Split,
    devices: Sequence[DeviceModel],
    chips: Sequence[int],
    seed: int = 0,
    *,
    workers: int | None = None,
    store: Journal | None = None,
    progress: Progress | None = None,
) -> list[Point]:
    """Figures of one model with each device model over the same chip numbers; see ``MonteCarlo``."""
    with MonteCarlo(document, split, workers=workers, progress=progress) as run:
        return [run.point(run.prepare(document, device, seed), chips, store=store) for device in devices]


def _scratch(folder: Path | None) -> Path:
    """An empty folder for temporary files; what a killed run left in it goes."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="cnpass-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _digest(document: Document) -> str:
    """Hash of a document in its present state."""
    digest = hashlib.sha256(document.sha256.encode())
    digest.update(document.to_proto().SerializeToString(deterministic=True))
    return digest.hexdigest()[:16]


def _stored(store: Journal | None, key: dict[str, Any]) -> dict[int, float]:
    """Values by chip number that a journal holds for a key."""
    lines = store.lines if store is not None else []
    return {line["chip"]: line["value"] for line in lines if all(line.get(k) == v for k, v in key.items())}


class _Stop:
    """Finds the first count of chips, in their order, at which the interval of the mean is tight enough."""

    def __init__(self, chips: Sequence[int], until_ci: float | None) -> None:
        self._chips = chips
        self._until = until_ci
        self._next = _STOP_FROM

    def count(self, values: Mapping[int, float]) -> int | None:
        """That count, or None as long as the chips known do not show it."""
        while self._until is not None and self._next <= len(self._chips):
            first = self._chips[: self._next]
            if not all(chip in values for chip in first):
                return None
            if half_width([values[chip] for chip in first]) <= self._until:
                return self._next
            self._next += _STOP_EVERY
        return None
