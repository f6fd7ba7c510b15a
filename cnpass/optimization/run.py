"""``optimize``: from a model to one that stays accurate on analog chips, with the proof as a record."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch

from cnpass import data as datasets
from cnpass.compensation.overhead import overhead
from cnpass.data import Dataset, Split
from cnpass.document import Document
from cnpass.errors import DataError, ModelError, UsageError
from cnpass.evaluation import MonteCarlo
from cnpass.evaluation.montecarlo import analog_attributes
from cnpass.files import check_output, write_text
from cnpass.mapping import plan
from cnpass.optimization import stages
from cnpass.optimization.effort import Effort
from cnpass.optimization.job import Job
from cnpass.optimization.ladder import Ladder
from cnpass.passes.fold_batch_norm import FoldBatchNorm
from cnpass.passes.lower_analog import LowerAnalog
from cnpass.progress import Progress
from cnpass.recipe import OptimizeRecipe
from cnpass.records import BeforeAfter, Metric, OptimizeRecord, Placement, Point, Rung, SplitSizes
from cnpass.runfolder import RunFolder
from cnpass.runtime.devices import DeviceModel, make_device

_VERB = "optimize"
_RECORD = "record.json"
_EFFORT = "effort.json"


def optimize(
    model: str | Path | onnx.ModelProto | Document,
    data: str | Path | None = None,
    *,
    recipe: OptimizeRecipe | None = None,
    output: str | Path | None = None,
    force: bool = False,
    run: str | Path | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> OptimizeRecord:
    """Retrain and compensate a model for analog chips, and write it mapped, with a record beside it.

    Every choice is made on validation samples and chips; the final figures are of test samples and fresh
    chips. What does not help on validation is left out, down to the model that came in.

    Args:
        model: Any ONNX model.
        data: NPZ file, folder, or ``package.module:function``; default: the NPZ of the model's name beside
            it, else random inputs.
        recipe: All options; default: every default.
        output: The file to write; default: ``{stem}.cnpass.onnx`` beside the model. The record goes beside it
            as JSON.
        force: Whether existing files may be replaced.
        run: Folder that keeps the state of a long run, so that a killed one goes on; default: none is kept.
        restart: Drop what that folder holds.
        progress: Told what happens; default: silence.
        options: Single options of ``OptimizeRecipe``, which win over the recipe: ``sigma=0.5``.

    Returns:
        The record; with the same seed on the same machine the same, but for ``seconds``.

    Raises:
        UsageError: An option, the output, or the run folder belongs to other inputs.
        ModelError: The model is invalid, has nothing to put on a crossbar, or has operators that cannot be
            trained.
        DataError: The data do not fit, or there are none to train on.
    """
    start = time.perf_counter()
    given = {} if recipe is None else recipe.model_dump(exclude_unset=True)
    chosen = OptimizeRecipe.build(None, given | options | ({} if data is None else {"data": str(data)}))
    progress = progress or Progress()
    document = _unmapped(_document(model))
    target = _output(document, output)
    if not (run and (Path(run) / _VERB / _RECORD).exists()):
        _check_outputs(target, force=force)
    device = _device(chosen)
    if not plan(document).analog:
        raise ModelError(f"no node of the model can run on a crossbar: {plan(document).why_none()}")
    dataset = datasets.prepare(document.proto, document.path, chosen)
    for note in dataset.notes:
        (progress.warn if dataset.random else progress.note)(note)
    _check_data(dataset, chosen)
    identity = {"model": document.sha256, "data": dataset.sha256, "recipe": chosen.identity()}
    with (
        nullcontext(run) if run else tempfile.TemporaryDirectory(prefix="cnpass-") as root,
        RunFolder(Path(root), _VERB, identity, restart=restart) as folder,
    ):
        finished = _finished(folder.path / _RECORD, target)
        if finished is not None:
            progress.note(f"finished before; {target} is as it was written")
            return finished
        _check_outputs(target, force=force)
        job = _Run(document, dataset, device, recipe=chosen, folder=folder, progress=progress)
        record = job.record(target, started=start, force=force)
        text = record.to_json() + "\n"
        write_text(folder.path / _RECORD, text)
        write_text(_record_path(target), text)
        return record


class _Run:
    """One call of ``optimize``: the stages in their order, and the figures around them."""

    def __init__(
        self,
        document: Document,
        dataset: Dataset,
        device: DeviceModel,
        *,
        recipe: OptimizeRecipe,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        self.document, self.dataset, self.device = document, dataset, device
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self.store = folder.journal("chips")
        self.notes: list[str] = list(dataset.notes)
        self.placement: list[Placement] = []
        self.rungs: list[Rung] = []

    def record(self, output: Path, *, started: float, force: bool) -> OptimizeRecord:
        """Run all stages, write the output, and say what it brought."""
        with self._chips(self.dataset.test, "test") as test:
            before = self._point(test, self.document, "chips before")
            best = self._climb(test.metric)
            after = self._point(test, best, "chips after")
            test.prepare(best, self.device, self.recipe.seed).mapped.save(output, force=force)
            dataset = self.dataset
            return OptimizeRecord(
                input=str(self.document.path or ""),
                output=str(output),
                metric=test.metric,
                n=SplitSizes(train=len(dataset.train), val=len(dataset.val), test=len(dataset.test)),
                clean=test.clean,
                after_clean=test.clean_of(best),
                before=before,
                after=after,
                retention=BeforeAfter(
                    before=_retention(before, test.clean), after=_retention(after, test.clean)
                ),
                overhead=overhead(best),
                placement=self.placement,
                ladder=self.rungs,
                recipe=json.loads(self.recipe.model_dump_json(by_alias=True)),
                hashes={
                    "model": self.document.sha256,
                    "data": dataset.sha256,
                    "output": hashlib.sha256(output.read_bytes()).hexdigest(),
                },
                seeds={"chips": self.recipe.seed, "training": self.recipe.seed},
                notes=list(dict.fromkeys([*self.notes, *test.notes])),
                seconds=round(time.perf_counter() - started, 3),
            )

    def _chips(self, split: Split, name: str) -> MonteCarlo:
        return MonteCarlo(
            self.document,
            split,
            workers=self.recipe.workers,
            folder=self.folder.path / f"scratch-{name}",
            progress=self.progress,
        )

    def _point(self, chips: MonteCarlo, document: Document, title: str) -> Point:
        numbers = range(self.recipe.chips)
        target = chips.prepare(document, self.device, self.recipe.seed)
        with self.progress.task(title, len(numbers)) as task:
            return chips.point(target, numbers, store=self.store, task=task)

    def _climb(self, metric: Metric) -> Document:
        """Climb the ladder on training and validation data; return the best model."""
        recipe = self.recipe
        if not recipe.retrain and not recipe.compensation:
            return self.document
        job = self._job(metric)
        with self._chips(self.dataset.val, "val") as val:
            ladder = Ladder(val, self.device, recipe.seed, self.store, self.progress, self.document)
            ladder.start()
            self._fit(job, ladder)
            if job.untrainable is None:
                self._train(job, ladder)
            else:
                self._warn(f"nothing is trained: {job.untrainable}")
            self.rungs = ladder.rungs
            self.placement = [Placement(**asdict(choice)) for choice in ladder.placement]
            return ladder.document

    def _fit(self, job: Job, ladder: Ladder) -> None:
        """The rungs that take seconds and no gradients."""
        corrected = stages.correct_mean_gain(job)
        if corrected is not None:
            ladder.climb("mean-gain correction", corrected)
        if self.recipe.compensation:
            fitted = stages.fit_closed_form(job)
            self.notes.extend(fitted.notes)
            if fitted.placement:
                ladder.climb("closed-form compensation", fitted.document, fitted.placement)

    def _train(self, job: Job, ladder: Ladder) -> None:
        """The rungs that are trained; each goes on from the one before, whether that was kept or not."""
        recipe, effort = self.recipe, self._effort(job)
        base, hardened = job.source, False
        if recipe.retrain:
            base, result = stages.retrain(job, effort)
            self.notes.extend(result.notes)
            ladder.climb(_retraining(recipe), base)
            hardened = result.score > result.first_score
        placed = stages.place(job, base, effort) if recipe.compensation else stages.Placed(base, ())
        self.notes.extend(placed.notes)
        kinds = " and ".join(dict.fromkeys(choice.kind for choice in placed.placement))
        if placed.placement:
            base, result = stages.compensate(job, placed.document, effort)
            self.notes.extend(result.notes)
            ladder.climb(f"{kinds} compensation", base, placed.placement)
        if recipe.retrain:
            epochs = effort.last(ladder.missing)
            document, result = stages.train_together(job, base, epochs, hardened=hardened)
            self.notes.extend(result.notes)
            step = f"analog weights and {kinds} compensation together" if kinds else "more of the same"
            ladder.climb(step, document, placed.placement)

    def _warn(self, text: str) -> None:
        self.progress.warn(text)
        self.notes.append(text)

    def _job(self, metric: Metric) -> Job:
        source = self.document.copy()
        FoldBatchNorm()(source)
        dataset = self.dataset
        return Job(
            source=source,
            train=dataset.train,
            val=dataset.val,
            metric=metric,
            device=self.device,
            recipe=self.recipe,
            max_overhead=self.recipe.max_overhead,
            folder=self.folder.path,
            progress=self.progress,
            torch_device=_torch_device(self.recipe.train_on),
        )

    def _effort(self, job: Job) -> Effort:
        """Length of every training; kept, so that a resumed run trains no other number of epochs."""
        path = self.folder.path / _EFFORT
        if path.exists():
            return Effort(**json.loads(path.read_text(encoding="utf-8")))
        effort = job.effort(self.recipe.trials)
        write_text(path, json.dumps(asdict(effort)) + "\n")
        return effort


def _retraining(recipe: OptimizeRecipe) -> str:
    parts = [
        "noise injection" if recipe.injection else "",
        "Lipschitz penalty" if recipe.beta else "",
        "distillation" if recipe.distillation else "",
    ]
    return " and ".join(filter(None, parts)) or "plain retraining"


def _torch_device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("option --train-on: torch finds no CUDA device here; use cpu")
    return torch.device("cpu" if asked == "cpu" or not torch.cuda.is_available() else "cuda")


def _document(model: str | Path | onnx.ModelProto | Document) -> Document:
    if isinstance(model, Document):
        return model
    return Document.from_proto(model) if isinstance(model, onnx.ModelProto) else Document.load(model)


def _unmapped(document: Document) -> Document:
    """A mapped model back in standard operators, since that is what training and compensation change."""
    if analog_attributes(document) is None:
        return document
    plain = document.copy()
    LowerAnalog()(plain)
    return plain


def _output(document: Document, output: str | Path | None) -> Path:
    if output is not None:
        return Path(output)
    if document.path is None:
        raise UsageError("a model that is not a file needs an output path")
    return document.path.with_name(f"{document.path.stem.removesuffix('.cnpass')}.cnpass.onnx")


def _check_outputs(output: Path, *, force: bool) -> None:
    for path in (output, _record_path(output)):
        check_output(path, force=force)


def _record_path(output: Path) -> Path:
    return output.with_suffix(".json")


def _device(recipe: OptimizeRecipe) -> DeviceModel:
    sigma = {} if recipe.sigma is None else {"sigma": recipe.sigma}
    if sigma and "sigma" in recipe.param:
        raise UsageError("option --param: sigma is given by --sigma already")
    return make_device(recipe.device, **recipe.param, **sigma)


def _check_data(dataset: Dataset, recipe: OptimizeRecipe) -> None:
    if not recipe.retrain and not recipe.compensation:
        return
    for name, split in (("training", dataset.train), ("validation", dataset.val)):
        if not len(split):
            raise DataError(
                f"{dataset.name}: has no {name} samples; give x_train, or only map with "
                "--no-retrain --no-compensation"
            )


def _finished(path: Path, output: Path) -> OptimizeRecord | None:
    """The record of a run that was finished, if its output is still there."""
    if not path.exists():
        return None
    record = OptimizeRecord.model_validate_json(path.read_text(encoding="utf-8"))
    if not output.exists() or hashlib.sha256(output.read_bytes()).hexdigest() != record.hashes["output"]:
        return None
    return record


def _retention(point: Point, clean: float) -> float:
    return point.mean / clean if clean else 0.0
