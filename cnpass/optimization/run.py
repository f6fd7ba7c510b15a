"""``optimize``: from a model to one that stays accurate on analog chips, with the proof as a record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from cnpass.compensation.kinds import UNTRAINED
from cnpass.compensation.overhead import overhead
from cnpass.document import Document, as_document
from cnpass.errors import UsageError
from cnpass.evaluation import MonteCarlo
from cnpass.optimization import stages
from cnpass.optimization.effort import Effort
from cnpass.optimization.job import Job
from cnpass.optimization.ladder import Ladder
from cnpass.optimization.setting import Call, Setting, build, carry_out, prepare
from cnpass.optimization.tuning import tune
from cnpass.placement import space
from cnpass.progress import Progress
from cnpass.recipe import OptimizeRecipe
from cnpass.records import OptimizeRecord, Placement, Point, Tuning, retention

_SUFFIX = "cnpass"


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
        ModelError: The model is invalid, or has nothing to put on a crossbar.
        DataError: The data do not fit, or there are none to train on.
    """
    call = Call(as_document(model), data, output, force, run, restart, progress, options)
    chosen = build(OptimizeRecipe, recipe, call)
    return carry_out(call, chosen, OptimizeRecord, _SUFFIX, _Optimization.result, trains=_trains(chosen))


def check(call: Call, recipe: OptimizeRecipe) -> None:
    """Raise what `optimize` would before it begins to work; nothing is written."""
    prepare(call, recipe, _SUFFIX, trains=_trains(recipe))


def _trains(recipe: OptimizeRecipe) -> bool:
    return recipe.retrain or recipe.compensation


class _Optimization:
    """The stages in their order, and the figures around them."""

    def __init__(self, setting: Setting[OptimizeRecipe]) -> None:
        self.setting = setting
        self.recipe = setting.recipe
        self.tuned: Tuning | None = None

    @classmethod
    def result(cls, setting: Setting[OptimizeRecipe]) -> tuple[Document, OptimizeRecord]:
        """Run all stages; return the model that came of it, mapped, and what it brought."""
        self = cls(setting)
        with setting.chips(setting.dataset.test, "test") as test:
            if test.metric == "ser" and self.recipe.min_retention is not None:
                raise UsageError(
                    "option --min-retention: the model's figure is a signal-to-error ratio, and of decibels "
                    "no fraction means anything"
                )
            before = self._point(test, setting.document, "chips before")
            ladder = self._climb(setting.job(test.metric))
            best = setting.document if ladder is None else ladder.document
            after = self._point(test, best, "chips after")
            mapped = test.prepare(best, setting.device, self.recipe.seed).mapped
            return mapped, OptimizeRecord(
                **setting.common(best, test.notes),
                metric=test.metric,
                clean=test.clean,
                after_clean=test.clean_of(best),
                before=before,
                after=after,
                retention=retention(before.mean, after.mean, test.clean, test.metric),
                overhead=overhead(best),
                placement=[Placement(**asdict(choice)) for choice in ladder.placement] if ladder else [],
                ladder=ladder.rungs if ladder else [],
                tuned=self.tuned,
            )

    def _point(self, chips: MonteCarlo, document: Document, title: str) -> Point:
        setting, numbers = self.setting, range(self.recipe.chips)
        target = chips.prepare(document, setting.device, self.recipe.seed)
        with setting.progress.task(title, len(numbers)) as task:
            return chips.point(target, numbers, store=setting.store, task=task)

    def _climb(self, job: Job) -> Ladder | None:
        """Climb the ladder on training and validation data; None if nothing is to be done."""
        setting = self.setting
        if not self.recipe.retrain and not self.recipe.compensation:
            return None
        with setting.chips(setting.dataset.val, "val") as val:
            ladder = setting.ladder(val)
            job = self._fit(job, ladder)
            if job.untrainable is None:
                self._train(job, ladder)
            else:
                setting.warn(f"nothing is trained: {job.untrainable}")
            return ladder

    def _fit(self, job: Job, ladder: Ladder) -> Job:
        """The rungs that take seconds and no gradients; returns what those that are trained go on from."""
        corrected = stages.correct_mean_gain(job, job.source)
        if corrected is not None:
            ladder.climb("mean-gain correction", corrected)
        if self.recipe.compensation:
            fitted = stages.fit_closed_form(job)
            self.setting.heed(fitted)
            if fitted.placement:
                ladder.climb("closed-form compensation", fitted.document, fitted.placement)
            centred = stages.centre_inputs(job)
            if centred is not None:
                ladder.climb("centred inputs", centred)
                if ladder.better(centred, corrected or job.source):
                    job = job.with_base(centred)
            known = job.known(job.base)
            for kind in UNTRAINED:
                inserted = stages.insert_untrained(job, kind, known)
                if inserted.placement:
                    ladder.climb(f"{kind} compensation, untrained", inserted.document, inserted.placement)
        return job

    def _train(self, job: Job, ladder: Ladder) -> None:
        """The rungs that are trained; each goes on from the one before, whether that was kept or not."""
        setting, effort = self.setting, self.setting.effort(job)
        if self.recipe.tune:
            tuned = tune(job, self.recipe, effort.tuning, setting.folder.journal("tuning"))
            setting.epochs += tuned.epochs
            job, self.recipe, self.tuned = tuned.job, tuned.recipe, tuned.record
        placed = self._compensate(job, ladder, effort) if self.recipe.compensation else None
        job = job if placed is None else job.with_base(placed.document)
        if self.recipe.retrain:
            self._retrain(job, ladder, effort, () if placed is None else placed.placement)

    def _compensate(self, job: Job, ladder: Ladder, effort: Effort) -> stages.Placed:
        """Place compensation and train it; returns what all weights are trained with."""
        placed = stages.place(job, job.base, effort).placed
        self.setting.heed(placed)
        if not placed.placement:
            return placed
        document, result = stages.compensate(job, placed.document, effort)
        self.setting.heed(result)
        ladder.climb(f"{_kinds(placed.placement)} compensation", document, placed.placement)
        return stages.extend(job, document, placed.placement) if self.recipe.retrain else placed

    def _retrain(self, job: Job, ladder: Ladder, effort: Effort, placement: space.Placement) -> None:
        """Train all weights: without the penalty, then with it, and then the better of the two for longer."""
        setting, recipe = self.setting, self.recipe
        base, beta, hardened = job.base, 0.0, False
        for tried in dict.fromkeys((0.0, recipe.beta)):
            document, result = stages.retrain(job, effort.retrain, tried)
            setting.heed(result)
            ladder.climb(_retraining(recipe, tried, placement), document, placement)
            if ladder.better(document, base):
                base, beta, hardened = document, tried, True
        epochs = setting.last(job, base, effort, ladder.missing)
        document, result = stages.train_on(job, base, epochs, beta=beta, hardened=hardened)
        setting.heed(result)
        name = _retraining(recipe, beta, placement)
        ladder.climb(f"{name}, {'trained on' if hardened else 'for longer'}", document, placement)


def _kinds(placement: space.Placement) -> str:
    return " and ".join(dict.fromkeys(choice.kind for choice in placement))


def _retraining(recipe: OptimizeRecipe, beta: float, placement: space.Placement) -> str:
    """What a retraining is called after what it consists of."""
    injected = "noise injection" if recipe.censor is None else "censored noise injection"
    further = {
        "Lipschitz penalty": beta,
        "weight clipping": recipe.clip_weights,
        "distillation": recipe.distillation,
    }
    given = [name for name, value in further.items() if value]
    given += [f"{_kinds(placement)} compensation"] if placement else []
    return " and ".join([injected if recipe.injection else "plain retraining", *given])
