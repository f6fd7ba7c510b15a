"""What the stages of an optimisation share: model, training data, device model, and how long to train.

There is no test data here. The stages see the training and the validation part, and chips from
`VALIDATION_CHIPS_START` on, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnpass.compensation import inputs, overhead
from cnpass.compensation.builder import NOTHING, Known
from cnpass.compensation.kinds import Kind
from cnpass.data import Split
from cnpass.data.dataset import shuffled
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.evaluation import VALIDATION_CHIPS_START, feeding, metrics
from cnpass.mapping import MappingPlan, plan
from cnpass.optimization.effort import Effort, Size
from cnpass.passes.mean_gain import intended
from cnpass.progress import Progress
from cnpass.recipe import OptimizeRecipe, RetrainRecipe, TrainRecipe, WeightsRecipe
from cnpass.records import Metric
from cnpass.runtime.devices import DeviceModel
from cnpass.training import augmentation
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples, samples_at_once
from cnpass.training.idle import Idle, find_idle
from cnpass.training.lift import lift
from cnpass.training.objective import Objective
from cnpass.training.retrain import Problem, TrainOptions, train
from cnpass.training.schedule import epochs_within
from cnpass.training.validation import Validator

CHECK_CHIPS = 10
"""Validation chips that a training looks at again and again."""
_FIRST_CHECK = 1000
"""Of validation chips those from here on are for checks; the first ones are the ladder's."""
TUNING_CHIPS = range(VALIDATION_CHIPS_START + 2000, VALIDATION_CHIPS_START + 2030)
"""Validation chips that options of training are chosen on, and nothing else is measured on."""
CHECK_SAMPLES = 1500
"""Validation samples that a training looks at, at most."""
SEARCH_SAMPLES = 600
"""Validation samples that each trial of the placement search looks at, at most."""
_CHUNK = 512
_PROBE_STEPS = 4
_PROBED = 64
"""Training samples that are looked at for weights without gradient."""


@dataclass(frozen=True)
class Job:
    """One optimisation, as its stages see it.

    Attributes:
        source: The model that came in, with BatchNormalization folded where that is possible.
        base: What is trained and compensated: the source, or what computes the same with centred inputs.
        train: Training samples.
        val: Validation samples.
        metric: What is measured.
        device: Device model to optimise for.
        recipe: Options of training.
        max_overhead: Digital parameters and MACs allowed on top, as a fraction of the model's.
        kinds: Kinds of compensation to choose from.
        folder: Where stages keep their state.
        progress: Told what happens.
        torch_device: Where training runs.
    """

    source: Document
    base: Document
    train: Split
    val: Split
    metric: Metric
    device: DeviceModel
    recipe: TrainRecipe
    max_overhead: float
    kinds: tuple[Kind, ...]
    folder: Path
    progress: Progress
    torch_device: torch.device

    @cached_property
    def plan(self) -> MappingPlan:
        """The mapping plan of the source."""
        return plan(self.source)

    def forward(self, document: Document) -> Forward:
        """Lift a variant of the source, with its batch size freed where that is safe."""
        arranged, rows = self.arranged(document)
        return Forward(lift(arranged).on(self.torch_device), rows)

    def arranged(self, document: Document) -> tuple[Document, int | None]:
        """Return a variant of the source as samples reach it, and samples per call where it fixes them."""
        arranged, feed, note = feeding.arrange(document, self.val.inputs, self._scratch)
        if note and note not in self._told:
            self._told.append(note)
            self.progress.note(f"training: {note}")
        return arranged, feed.batch if feed.padded or feed.batch == 1 else None

    def with_recipe(self, recipe: TrainRecipe) -> Job:
        """Return the same job with other options for training its analog weights.

        What was computed from the model and the data is kept; of that, only the objective depends on these
        options.
        """
        objective = replace(self.problem.objective, distillation=recipe.distillation)
        return self._changed({"problem": replace(self.problem, objective=objective)}, recipe=recipe)

    def with_base(self, base: Document) -> Job:
        """Return the same job with another document to train and compensate."""
        return self._changed({}, base=base)

    def _changed(self, computed: Mapping[str, Any], **fields: Any) -> Job:
        job = replace(self, **fields)
        kept = {**vars(self), **computed}
        vars(job).update({name: value for name, value in kept.items() if name not in vars(job)})
        return job

    def left(self, document: Document) -> float:
        """Return the overhead that is still allowed on top of a variant's own."""
        return overhead.left(document, self.max_overhead)

    def known(self, document: Document) -> Known:
        """Return what compensation of a variant profits from knowing, as it runs on chips."""
        if "bypass" not in self.kinds:
            return NOTHING
        samples = self.train.take(slice(inputs.SAMPLES)).inputs
        return inputs.look(document, self.device, samples, seed=self.recipe.seed)

    @cached_property
    def untrainable(self) -> str | None:
        """Why nothing of the source can be trained in torch; None if something can."""
        try:
            idle = self.idle
        except ModelError as error:
            return str(error)
        return idle.describe() if idle.count == idle.total else None

    @cached_property
    def idle(self) -> Idle:
        """The weights of the source that no training changes.

        Raises:
            ModelError: The source has operators that cannot be lifted.
        """
        few = self.train.few(_PROBED)
        samples = Samples.of(few, self._clean.module.input_names, self.torch_device)
        return find_idle(self._clean, samples, self.recipe.seed)

    @cached_property
    def _told(self) -> list[str]:
        return []

    @cached_property
    def _scratch(self) -> Path:
        path = self.folder / "lift"
        path.mkdir(exist_ok=True)
        return path

    @cached_property
    def _clean(self) -> Forward:
        return self.forward(intended(self.source))

    @cached_property
    def problem(self) -> Problem:
        """The training problem of the source and all its variants, whose analog weights are the same."""
        clean = self._clean
        samples = Samples.of(self.train, clean.module.input_names, self.torch_device)
        checked = self.val.few(CHECK_SAMPLES)
        validation = Samples.of(checked, clean.module.input_names, self.torch_device)
        expected = metrics.reference(self.metric, checked, self._outputs(validation).cpu().numpy())
        crossbars = Crossbars.of(self.plan, self.device, clean.module.weights)
        outputs = self._outputs(samples)
        validator = Validator(
            samples=validation,
            expected=np.asarray(expected),
            metric=self.metric,
            crossbars=crossbars,
            seed=self.recipe.seed,
            chips=_check_chips(0),
        )
        names = self._augmentations(validator)
        return Problem(
            samples=samples,
            objective=Objective.of(self.metric, outputs, self.recipe.distillation),
            clean=outputs,
            validator=validator,
            crossbars=crossbars,
            teacher=clean,
            augment=augmentation.augmentation(names) if names else None,
        )

    def problem_after(self, trainings: int) -> Problem:
        """Return the problem with check chips of its own for a training that goes on from another's result.

        Weights that were chosen as the best on some chips look better there than they are, so that on those
        hardly anything would be better.

        Args:
            trainings: How many chose before.
        """
        problem = self.problem
        return replace(problem, validator=replace(problem.validator, chips=_check_chips(trainings)))

    def _outputs(self, samples: Samples) -> torch.Tensor:
        chunk = min(_CHUNK, samples_at_once(self._clean, samples))
        with torch.no_grad():
            parts = [
                self._clean(samples.take(slice(start, start + chunk)))
                for start in range(0, len(samples), chunk)
            ]
        return torch.cat(parts)

    def _augmentations(self, validator: Validator) -> Sequence[augmentation.Name]:
        """Choose how training samples are augmented: as told, or as the clean model bears it."""
        asked = self.recipe.augment
        if asked == ("none",):
            return ()
        if asked != ("auto",):
            return [name for name in augmentation.NAMES if name in asked]
        images = augmentation.spatial_axes(validator.samples.inputs[0].shape) is not None
        if not images or self.metric != "top1":
            return ()
        ideal = replace(validator, crossbars=validator.crossbars.only(()), chips=validator.chips[:1])
        generator = torch.Generator().manual_seed(self.recipe.seed)
        flipped = augmentation.augmentation(("flip",))(ideal.samples, generator)
        kept = replace(ideal, samples=flipped).score(self._clean)
        if kept < augmentation.KEEPS * ideal.score(self._clean):
            return ()
        self.progress.note("training: images are mirrored at random, since the model does not mind that")
        return ("flip",)

    @cached_property
    def search_validator(self) -> Validator:
        """The figure that the placement search compares by."""
        validator = self.problem.validator
        few = np.sort(shuffled(len(validator.samples))[:SEARCH_SAMPLES])
        samples = validator.samples.take(torch.from_numpy(few).to(self.torch_device))
        return replace(validator, samples=samples, expected=validator.expected[few])

    @property
    def tuning_validator(self) -> Validator:
        """The figure that options of training are chosen by.

        Its chips are its own: on those that it was chosen on, a choice looks better than it is.
        """
        return replace(self.problem.validator, chips=TUNING_CHIPS)

    def options(self, epochs: int) -> TrainOptions:
        """How the analog weights are trained, without penalty."""
        recipe = self.recipe
        options = TrainOptions(epochs=epochs, draws=recipe.draws, seed=recipe.seed)
        if isinstance(recipe, WeightsRecipe):
            options = replace(
                options,
                rate=recipe.rate,
                levels=recipe.ramp if recipe.injection else (0.0,),
                censor=recipe.censor,
                clip_weights=recipe.clip_weights,
                k=recipe.k,
            )
        return options

    def effort(self, trials: int = 0) -> Effort:
        """Decide how long to train: as told, from the time allowed, or from model and data.

        Args:
            trials: Placements to try, at most.
        """
        samples, batch, recipe = len(self.train), self.options(1).batch, self.recipe
        macs = overhead.cost(self.plan.nodes).macs
        searched = min(len(self.val), SEARCH_SAMPLES) * CHECK_CHIPS
        size = Size(samples, batch, macs, searched)
        step = self.seconds_per_step(self.source)
        retrains = recipe.retrain if isinstance(recipe, OptimizeRecipe) else isinstance(recipe, RetrainRecipe)
        tunings = recipe.tune if isinstance(recipe, WeightsRecipe) else 0
        if recipe.epochs is not None:
            effort = Effort.told(recipe.epochs, trials)
        elif recipe.budget is not None:
            effort = Effort.within(recipe.verb, recipe.budget, size, step, trials, tunings)
        else:
            effort = Effort.suited(size, trials)
        firsts = len(dict.fromkeys((0.0, recipe.beta))) if isinstance(recipe, OptimizeRecipe) else 0
        places = recipe.compensation if isinstance(recipe, OptimizeRecipe) else not retrains
        told = effort.announcement(
            size, step, firsts=retrains * firsts, places=places, last=retrains, tunings=tunings
        )
        self.progress.note(told)
        return effort

    def seconds_per_step(self, document: Document) -> float:
        """Time a few training steps of a document, the first one not counted; it stays as it is."""
        options = replace(self.options(1), checks=0)
        few = torch.arange(min(len(self.train), options.batch))
        problem = replace(self.problem, samples=self.problem.samples.take(few), clean=self.problem.clean[few])
        forward = self.forward(document)
        train(forward, problem, options)
        start = time.perf_counter()
        train(forward, problem, replace(options, epochs=_PROBE_STEPS))
        return (time.perf_counter() - start) / _PROBE_STEPS

    def epochs_within(self, seconds: float, document: Document) -> int:
        """Return how many epochs of training a document fit in a time, at least one."""
        step = self.seconds_per_step(document)
        return epochs_within(seconds, len(self.train), self.options(1).batch, step)


def _check_chips(trainings: int) -> range:
    start = VALIDATION_CHIPS_START + _FIRST_CHECK + trainings * CHECK_CHIPS
    return range(start, start + CHECK_CHIPS)
