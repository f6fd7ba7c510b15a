"""What ``optimize``, ``retrain`` and ``search`` have in common: model, data and run folder, and one record.

Each writes a model and, beside it, a record; each goes on where a killed run stopped; each, asked again when
it is done, gives its record back.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch

from cnpass import data as datasets
from cnpass.compensation.kinds import Kind
from cnpass.compensation.overhead import uncounted
from cnpass.data import Dataset, Split, data_files
from cnpass.document import Document
from cnpass.errors import DataError, ModelError, UsageError
from cnpass.evaluation import MonteCarlo
from cnpass.evaluation.chosen import analog_attributes, chosen_device, refuse_only_chip
from cnpass.files import check_output, sha256, write_text
from cnpass.functions import inline_products
from cnpass.mapping import plan
from cnpass.optimization.effort import Effort
from cnpass.optimization.job import Job
from cnpass.optimization.ladder import Ladder
from cnpass.optimization.replication import replicate, replication
from cnpass.optimization.stages import Placed
from cnpass.passes.analog import analog_nodes
from cnpass.passes.fold_batch_norm import FoldBatchNorm
from cnpass.passes.lower_analog import LowerAnalog
from cnpass.progress import Progress
from cnpass.recipe import SearchRecipe, TrainRecipe
from cnpass.records import Metric, Record, SplitSizes
from cnpass.runfolder import RunFolder
from cnpass.runtime import ops
from cnpass.runtime.devices import DeviceModel
from cnpass.saving import data_path
from cnpass.training.augmentation import NAMES, spatial_axes
from cnpass.training.retrain import TrainResult
from cnpass.training.writeback import unquantized

R = TypeVar("R", bound=TrainRecipe)
T = TypeVar("T", bound=Record)

_RECORD = "record.json"
_EFFORT = "effort.json"
_LAST = "last.json"
_TRAINING = 0.95
"""Fraction of the time left that the steps of the last training may take; checks take the rest."""
_NAMED = 5
"""Weights that a note names, at most."""


@dataclass(frozen=True)
class Call:
    """What a user asks for, beside the recipe.

    Attributes:
        model: The model.
        data: NPZ file, folder, or ``package.module:function``; None for the recipe's.
        output: The file to write; None for the default.
        force: Whether existing files may be replaced.
        run: Folder that keeps the state of a long run; None for none.
        restart: Drop what that folder holds.
        progress: Told what happens; None for silence.
        options: Single options of the recipe, which win over it.
    """

    model: Document
    data: str | Path | None
    output: str | Path | None
    force: bool
    run: str | Path | None
    restart: bool
    progress: Progress | None
    options: dict[str, Any]


class Setting(Generic[R]):
    """One call at work.

    Attributes:
        document: The model, in standard operators, with the copies that its weights are to have.
        dataset: The data.
        device: Device model.
        recipe: All options.
        folder: Where state is kept.
        output: The file to write.
        progress: Told what happens.
        store: Journal of finished chips.
        notes: What there is to say in the record.
        epochs: Epochs trained.
    """

    def __init__(
        self,
        document: Document,
        dataset: Dataset,
        device: DeviceModel,
        *,
        recipe: R,
        folder: RunFolder,
        output: Path,
        progress: Progress,
        warnings: Sequence[str],
        started: float,
    ) -> None:
        self.document, self.dataset, self.device, self.recipe = document, dataset, device, recipe
        self.folder, self.output, self.progress = folder, output, progress
        self.store = folder.journal("chips")
        self.notes: list[str] = [*dataset.notes, *warnings]
        self.epochs = 0
        self._started = self._training_since = started

    def chips(self, split: Split, name: str) -> MonteCarlo:
        """Return a Monte-Carlo over a part of the data."""
        return MonteCarlo(
            self.document,
            split,
            workers=self.recipe.workers,
            folder=self.folder.path / f"scratch-{name}",
            progress=self.progress,
        )

    def ladder(self, val: MonteCarlo) -> Ladder:
        """Return a ladder with its first rung measured."""
        ladder = Ladder(val, self.device, self.recipe.seed, self.store, self.progress, self.document)
        ladder.start()
        return ladder

    def job(self, metric: Metric) -> Job:
        """Return what the stages work on."""
        source = self.document.copy()
        FoldBatchNorm()(source)
        recipe = self.recipe
        return Job(
            source=source,
            base=source,
            train=self.dataset.train,
            val=self.dataset.val,
            metric=metric,
            device=self.device,
            recipe=recipe,
            max_overhead=recipe.max_overhead if isinstance(recipe, SearchRecipe) else 0.0,
            kinds=cast("tuple[Kind, ...]", recipe.kinds) if isinstance(recipe, SearchRecipe) else (),
            folder=self.folder.path,
            progress=self.progress,
            torch_device=_torch_device(recipe.train_on),
        )

    def effort(self, job: Job) -> Effort:
        """Return the length of every training; kept, so that a resumed run trains no other number.

        It warns of weights that no training changes.
        """
        idle = job.idle.describe()
        if idle is not None:
            self.warn(idle)
        self._training_since = time.perf_counter()
        path = self.folder.path / _EFFORT
        if path.exists():
            return Effort(**json.loads(path.read_text(encoding="utf-8")))
        effort = job.effort(self.recipe.trials if isinstance(self.recipe, SearchRecipe) else 0)
        write_text(path, json.dumps(asdict(effort)) + "\n")
        return effort

    def last(self, job: Job, document: Document, effort: Effort, missing: float) -> int:
        """Return the epochs of the last training: what is left of a time budget, or as `effort` says.

        What came before may have taken longer than planned, and steps of a compensated network do. The
        number is kept, so that a resumed run trains no other one.
        """
        budget = self.recipe.budget
        if budget is None or self.recipe.epochs is not None:
            return effort.last(missing)
        path = self.folder.path / _LAST
        if not path.exists():
            left = budget - (time.perf_counter() - self._training_since)
            write_text(path, f"{job.epochs_within(_TRAINING * left, document)}\n")
        return int(path.read_text(encoding="utf-8"))

    def begin(self, val: MonteCarlo) -> tuple[Job, Effort, Ladder]:
        """Return what a verb that does nothing but train works with.

        Raises:
            ModelError: The model has operators that cannot be trained.
        """
        job = self.job(val.metric)
        if job.untrainable is not None:
            raise ModelError(job.untrainable)
        return job, self.effort(job), self.ladder(val)

    def on_validation(self, val: MonteCarlo, ladder: Ladder) -> dict[str, Any]:
        """Return the fields of a record whose figures are of validation."""
        return {
            **self.common(ladder.document, val.notes),
            "metric": val.metric,
            "clean": val.clean,
            "after_clean": val.clean_of(ladder.document),
            "before": ladder.rungs[0].point,
            "after": ladder.point,
            "kept": any(rung.kept for rung in ladder.rungs[1:]),
        }

    def heed(self, outcome: TrainResult | Placed) -> None:
        """Take what there is to say of a stage into the record, and count its epochs."""
        self.notes.extend(outcome.notes)
        self.epochs += outcome.epochs

    def warn(self, text: str) -> None:
        """Tell something that may make the result useless, now and in the record."""
        self.progress.warn(text)
        self.notes.append(text)

    def common(self, best: Document, more: list[str]) -> dict[str, Any]:
        """Return the fields that every record has, but for the hash of the output, which is not written yet.

        Args:
            best: What will be written, before it is mapped.
            more: What else there is to say.
        """
        dataset = self.dataset
        blind = uncounted(best)
        if blind is not None:
            self.notes.append(
                f"multiply-accumulates of node {blind!r} are not known, since a shape is not; --max-overhead "
                "was on parameters alone"
            )
        floats = unquantized(self.document, best)
        if floats:
            self.notes.append(_stored_as_floats(floats))
        return {
            "input": str(self.document.path or ""),
            "output": str(self.output),
            "n": SplitSizes(train=len(dataset.train), val=len(dataset.val), test=len(dataset.test)),
            "epochs": self.epochs,
            "replication": replication(self.document, self.recipe.tile_rows, self.recipe.tile_cols),
            "recipe": _as_json(self.recipe),
            "hashes": {"model": self.document.sha256, "data": dataset.sha256},
            "seeds": {"chips": self.recipe.seed, "training": self.recipe.seed},
            "notes": list(dict.fromkeys([*self.notes, *more])),
            "seconds": round(time.perf_counter() - self._started, 3),
        }


def carry_out(
    call: Call,
    recipe: R,
    record: type[T],
    suffix: str,
    work: Callable[[Setting[R]], tuple[Document, T]],
    *,
    trains: bool = True,
) -> T:
    """Check everything that can be checked before the work, do it, and write what came of it.

    The record goes into the run folder when the output is about to take its place, so that whoever is killed
    between the two can ask again: an output with the hash that the record says is the run's own.

    Args:
        call: What is asked for.
        recipe: All options.
        record: Type of the record.
        suffix: What the output's name ends in, behind the stem of the model's.
        work: Returns what to write, and its record, in which the hash of that is missing.
        trains: Whether training and validation samples are needed.

    Raises:
        UsageError: An option, the output, or the run folder belongs to other inputs.
        ModelError: The model is invalid or has nothing to put on a crossbar.
        DataError: The data do not fit, or there are none to train on.
    """
    started = time.perf_counter()
    ready = prepare(call, recipe, suffix, trains=trains)
    progress, dataset, output = ready.progress, ready.dataset, ready.output
    identity = {
        "model": ready.document.sha256,
        "data": dataset.sha256,
        "recipe": recipe.identity(),
    }
    with (
        nullcontext(call.run) if call.run else tempfile.TemporaryDirectory(prefix="cnpass-") as root,
        RunFolder(Path(root), recipe.verb, identity, restart=call.restart) as folder,
    ):
        finished = _finished(record, folder.path / _RECORD, output)
        if finished is not None:
            progress.note(f"finished before; {output} is as it was written")
            # What is no part of the identity may differ from what the run was asked for.
            finished = finished.model_copy(update={"output": str(output), "recipe": _as_json(recipe)})
            if call.force or not record_path(output).exists():
                write_text(record_path(output), finished.to_json() + "\n")
            return finished
        check_outputs(output, force=call.force, sources=[*ready.document.sources, *data_files(dataset.name)])
        setting = Setting(
            ready.document,
            dataset,
            ready.device,
            recipe=recipe,
            folder=folder,
            output=output,
            progress=progress,
            warnings=ready.warnings,
            started=started,
        )
        document, result = work(setting)

        def keep(hashes: Mapping[str, str]) -> None:
            nonlocal result
            seconds = round(time.perf_counter() - started, 3)
            result = result.model_copy(update={"hashes": {**_hashes(result), **hashes}, "seconds": seconds})
            write_text(folder.path / _RECORD, result.to_json() + "\n")

        document.save(output, force=call.force, announce=keep)
        write_text(record_path(output), result.to_json() + "\n")
        return result


@dataclass(frozen=True)
class Ready:
    """What a verb starts from.

    Attributes:
        document: The model, in standard operators, with the copies that its weights are to have.
        warnings: What of the model is left out, and what of the recipe does nothing; told already.
        device: Device model.
        dataset: The data.
        output: The file to write.
        progress: Told what happens.
    """

    document: Document
    warnings: tuple[str, ...]
    device: DeviceModel
    dataset: Dataset
    output: Path
    progress: Progress


def prepare(call: Call, recipe: TrainRecipe, suffix: str, *, trains: bool) -> Ready:
    """Check everything that can be checked before the work; see `carry_out`."""
    progress = call.progress or Progress()
    given = call.model
    document = unmapped(given)
    output = output_path(document, call.output, suffix)
    if not (call.run and (Path(call.run) / recipe.verb / _RECORD).exists()):
        check_outputs(output, force=call.force, sources=document.sources)
    device = chosen_device(given, recipe.device, recipe.sigma, recipe.param)
    refuse_only_chip(given)
    _torch_device(recipe.train_on)
    plan(document).check()
    if recipe.replicate:
        document = replicate(document, recipe.tile_rows, recipe.tile_cols)
    dataset = datasets.prepare(document.proto, document.path, recipe)
    document.samples = dataset.shapes
    for note in dataset.notes:
        (progress.warn if dataset.random else progress.note)(note)
    if trains:
        _check_data(dataset)
        _check_augment(recipe, dataset)
        if dataset.train.y is not None and len(np.unique(dataset.train.y)) == 1:
            progress.warn(f"{dataset.name}: all training samples are of class {dataset.train.y[0]}")
    warnings = (*lost(given), *recipe.idle(), *_idle(recipe, document, dataset))
    for text in warnings:
        progress.warn(text)
    return Ready(document, warnings, device, dataset, output, progress)


def build(kind: type[R], recipe: R | None, call: Call) -> R:
    """Return a recipe with the single options of a call; the seed is a mapped model's own unless told."""
    own = analog_attributes(call.model) or {}
    given = {"seed": int(own.get("seed", 0))}
    given |= {} if recipe is None else recipe.model_dump(exclude_unset=True)
    data = {} if call.data is None else {"data": str(call.data)}
    return kind.build(None, given | call.options | data)


def unmapped(document: Document) -> Document:
    """Return a copy in standard operators of the main graph, which is what training can change.

    Of what a mapped model's nodes say, it keeps the copies.
    """
    plain = document.copy()
    if analog_attributes(document) is not None:
        LowerAnalog()(plain)
    inline_products(plain)
    return plain


def lost(document: Document) -> list[str]:
    """Say what a mapped model has that what is made of it will not have, in a line; none if nothing."""
    found = {
        name
        for node in analog_nodes(document)
        for name in (ops.TILE_ROWS, ops.DAC_BITS, ops.ADC_BITS, ops.READ_NOISE)
        if node.attrs.get(name, 0)
    }
    if not found:
        return []
    names = ", ".join(sorted(name.replace("_", "-") for name in found))
    return [f"the model's {names} are left out: figures and output are of crossbars that are read ideally"]


def output_path(document: Document, output: str | Path | None, suffix: str) -> Path:
    """Return the file to write: as told, or beside the model with a suffix."""
    if output is not None:
        return Path(output)
    if document.path is None:
        raise UsageError("a model that is not a file needs an output path")
    return document.path.with_name(f"{document.path.stem.removesuffix('.cnpass')}.{suffix}.onnx")


def check_outputs(output: Path, *, force: bool, sources: Iterable[Path]) -> None:
    """Refuse an output that cannot be written, or its record, or that is one of the files that are read."""
    if record_path(output) == output:
        raise UsageError(f"{output}: is where the record goes; give the model another suffix, such as .onnx")
    sources = list(sources)
    for path in (output, record_path(output)):
        check_output(path, force=force, sources=sources)
    # Whether there will be external data, and may be older ones, is known when the model is written.
    check_output(data_path(output), force=True, sources=sources)


def record_path(output: Path) -> Path:
    """Return where the record of an output goes: beside it."""
    return output.with_suffix(".json")


def _torch_device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("option --train-on: torch finds no CUDA device here; use cpu")
    return torch.device("cpu" if asked == "cpu" or not torch.cuda.is_available() else "cuda")


def _stored_as_floats(weights: list[str]) -> str:
    """Say which way trained weights went back that came in as integers."""
    named = ", ".join(map(repr, weights[:_NAMED])) + (", ..." if len(weights) > _NAMED else "")
    return (
        f"{len(weights)} weights behind DequantizeLinear went back as float initializers, not requantised: "
        f"{named}"
    )


def _check_data(dataset: Dataset) -> None:
    for name, split in (("training", dataset.train), ("validation", dataset.val)):
        if not len(split):
            raise DataError(
                f"{dataset.name}: has no {name} samples; give x_train, or only map with "
                "cnpass optimize --no-retrain --no-compensation"
            )


def _check_augment(recipe: TrainRecipe, dataset: Dataset) -> None:
    first = next(iter(dataset.train.inputs.values()))
    if set(recipe.augment) & set(NAMES) and spatial_axes(first.shape) is None:
        raise UsageError("option --augment: the model's first input is no image of 1, 3 or 4 channels")


def _idle(recipe: TrainRecipe, document: Document, dataset: Dataset) -> Iterator[str]:
    """Name options that do nothing for this model or these data, a line per cause."""
    if recipe.distillation and dataset.train.y is None:
        yield "--distillation does nothing: without labels training follows the clean model's outputs alone"
    tiles = {name: getattr(recipe, name) for name in ("tile_rows", "tile_cols")}
    changed = [name for name, value in tiles.items() if value != type(recipe).model_fields[name].default]
    if not (recipe.replicate or changed) or replication(document, **tiles) is not None:
        return
    if recipe.replicate:
        size = " x ".join(map(str, tiles.values()))
        yield f"--replicate does nothing: tiles of {size} have no room for copies"
    else:
        flags = ", ".join(f"--{recipe.flag(name)}" for name in changed)
        yield f"{flags} {'do' if len(changed) > 1 else 'does'} nothing: no weight has copies"


def _as_json(recipe: TrainRecipe) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(recipe.model_dump_json(by_alias=True))
    return fields


def _finished(kind: type[T], path: Path, output: Path) -> T | None:
    """The record of a run that was finished, if its output is still there as it was written."""
    if not path.exists():
        return None
    record = kind.model_validate_json(path.read_text(encoding="utf-8"))
    for name, file in (("output", output), ("output_data", data_path(output))):
        digest = _hashes(record).get(name)
        if digest is not None and not (file.is_file() and sha256(file) == digest):
            return None
    return record


def _hashes(record: Record) -> dict[str, str]:
    hashes: dict[str, str] = getattr(record, "hashes")  # noqa: B009 (every record of a call has them)
    return hashes
