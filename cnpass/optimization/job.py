"""What the stages of an optimisation share: model, training data, device model, and how long to train.

There is no test data here. The stages see the training and the validation part, and chips from
`VALIDATION_CHIPS_START` on, and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cnpass.data import Split
from cnpass.document import Document
from cnpass.evaluation import VALIDATION_CHIPS_START, feeding, metrics
from cnpass.mapping import MappingPlan, plan
from cnpass.progress import Progress
from cnpass.recipe import OptimizeRecipe
from cnpass.records import Metric
from cnpass.runtime.devices import DeviceModel
from cnpass.training.forward import Forward, Samples
from cnpass.training.lift import lift
from cnpass.training.objective import Objective
from cnpass.training.retrain import Problem, TrainOptions, train
from cnpass.training.schedule import epochs_for
from cnpass.training.validation import Validator

CHECK_CHIPS = 10
"""Validation chips that a training looks at again and again."""
CHECK_SAMPLES = 1500
"""Validation samples that a training looks at, at most."""
SEARCH_SAMPLES = 600
"""Validation samples that each trial of the placement search looks at, at most."""
FEWEST_TRIALS = 3
"""Placements to try even where time is short: none, the cheapest, and one more."""
_CHUNK = 512
_PROBE_STEPS = 4
_SHARES = {"retrain": 0.6, "shared": 0.15, "trials": 0.1, "compensation": 0.15}
"""How a time budget is divided."""
_FRACTIONS = {"shared": 1 / 3, "compensation": 1 / 4}
"""Epochs of the shared compensation, and of that which was chosen, as fractions of those of retraining."""
_FORWARD = 1 / 3
"""Time of a forward pass as a fraction of that of a training step with as many samples."""


@dataclass(frozen=True)
class Epochs:
    """How long each training is, in epochs, and how many placements are tried between them."""

    retrain: int
    shared: int
    compensation: int
    trials: int


@dataclass(frozen=True)
class Job:
    """One optimisation, as its stages see it.

    Attributes:
        source: The model that came in, with BatchNormalization folded where that is possible.
        train: Training samples.
        val: Validation samples.
        metric: What is measured.
        device: Device model to optimise for.
        recipe: All options.
        folder: Where stages keep their state.
        progress: Told what happens.
        torch_device: Where training runs.
    """

    source: Document
    train: Split
    val: Split
    metric: Metric
    device: DeviceModel
    recipe: OptimizeRecipe
    folder: Path
    progress: Progress
    torch_device: torch.device

    @cached_property
    def plan(self) -> MappingPlan:
        """The mapping plan of the source."""
        return plan(self.source)

    def forward(self, document: Document) -> Forward:
        """Lift a variant of the source, with its batch size freed where that is safe."""
        arranged, feed, note = feeding.arrange(document, self.val.inputs, self._scratch)
        if note and note not in self._told:
            self._told.append(note)
            self.progress.note(f"training: {note}")
        rows = feed.batch if feed.padded or feed.batch == 1 else None
        return Forward(lift(arranged).to(self.torch_device), rows)

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
        return self.forward(self.source)

    @cached_property
    def problem(self) -> Problem:
        """The training problem of the source and all its variants, whose analog weights are the same."""
        names = self._clean.module.input_names
        samples = Samples.of(self.train, names, self.torch_device)
        checked = self.val.take(slice(CHECK_SAMPLES))
        validation = Samples.of(checked, names, self.torch_device)
        expected = metrics.reference(self.metric, checked, self._outputs(validation).cpu().numpy())
        streams = {key: s for key, s in self.plan.streams.items() if key in self._clean.module.weights}
        chips = range(VALIDATION_CHIPS_START, VALIDATION_CHIPS_START + CHECK_CHIPS)
        return Problem(
            samples=samples,
            objective=Objective.of(self.metric, self._outputs(samples)),
            validator=Validator(
                validation, np.asarray(expected), self.metric, self.device, self.recipe.seed, streams, chips
            ),
            device=self.device,
            analog=frozenset(streams),
        )

    def _outputs(self, samples: Samples) -> torch.Tensor:
        with torch.no_grad():
            parts = [
                self._clean(samples.take(slice(start, start + _CHUNK)))
                for start in range(0, len(samples), _CHUNK)
            ]
        return torch.cat(parts)

    @cached_property
    def search_validator(self) -> Validator:
        """The figure that the placement search compares by."""
        validator = self.problem.validator
        few = slice(SEARCH_SAMPLES)
        return replace(validator, samples=validator.samples.take(few), expected=validator.expected[few])

    def options(self, epochs: int) -> TrainOptions:
        """How the analog weights are trained."""
        recipe = self.recipe
        return TrainOptions(epochs=epochs, beta=recipe.beta, k=recipe.k, seed=recipe.seed)

    def epochs(self) -> Epochs:
        """Decide how long to train: as told, from the time allowed, or from the number of samples."""
        recipe, options = self.recipe, self.options(1)
        samples = len(self.train)
        if recipe.epochs is not None or recipe.budget is None:
            whole = recipe.epochs or epochs_for(samples, options.batch)
            shared, compensation = (max(1, round(whole * share)) for share in _FRACTIONS.values())
            return Epochs(whole, shared, compensation, recipe.trials)
        step, budget = self._seconds_per_step(), recipe.budget

        def within(part: str) -> int:
            seconds = budget * _SHARES[part]
            return epochs_for(samples, options.batch, seconds=seconds, seconds_per_step=step)

        passes = min(len(self.val), SEARCH_SAMPLES) * CHECK_CHIPS / options.batch
        trials = int(budget * _SHARES["trials"] / (passes * _FORWARD * step))
        trials = min(recipe.trials, max(FEWEST_TRIALS, trials))
        return Epochs(within("retrain"), within("shared"), within("compensation"), trials)

    def _seconds_per_step(self) -> float:
        """Time a few steps on a copy, the first one not counted."""
        options = self.options(1)
        few = torch.arange(min(len(self.train), options.batch))
        samples = self.problem.samples.take(few)
        objective = replace(self.problem.objective, clean=self.problem.objective.clean[few])
        problem = replace(self.problem, samples=samples, objective=objective)
        forward = self.forward(self.source)
        train(forward, problem, replace(options, checks=1))
        start = time.perf_counter()
        train(forward, problem, replace(options, epochs=_PROBE_STEPS, checks=1))
        return (time.perf_counter() - start) / _PROBE_STEPS
