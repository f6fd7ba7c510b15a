"""``--tune``: a small study of short trainings that chooses how the analog weights are trained.

Every trial trains the source for the same number of epochs with the same seed, and is measured on the same
validation samples and chips, so that two figures differ by the options alone. No rung of the ladder is
measured on these chips. The first trial has the recipe's own options; others replace them only if they are
better chip by chip, and not by chance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from cnpass.evaluation.statistics import summarise, surely_better
from cnpass.optimization import stages
from cnpass.optimization.job import Job
from cnpass.recipe import OptimizeRecipe, WeightsRecipe
from cnpass.records import Tuning, TuningTrial
from cnpass.runfolder import Journal
from cnpass.training.schedule import seed_of

if TYPE_CHECKING:
    import optuna

W = TypeVar("W", bound=WeightsRecipe)
Options = dict[str, Any]
"""Fields of a recipe that a study chooses, with their values."""

_FIRST_TPE = 6
"""Trials before the sampler's own, those that are given counted."""
_RATE, _BETA, _K = (3e-4, 1e-2), (1e-5, 1e-1), (0.25, 8.0)
_CLIP, _CENSOR, _STRENGTH, _DISTILLATION = (1.5, 4.0), (0.5, 2.5), (0.7, 1.3), (0.1, 0.9)
_DIGITS = 3


@dataclass(frozen=True)
class Tuned(Generic[W]):
    """What a study came to.

    Attributes:
        recipe: The recipe with the options that were chosen.
        job: The job with that recipe.
        record: Every trial, and which was chosen.
    """

    recipe: W
    job: Job
    record: Tuning

    @property
    def epochs(self) -> int:
        """Epochs of all trials together."""
        return sum(trial.epochs for trial in self.record.trials)


def tune(job: Job, recipe: W, epochs: int, journal: Journal) -> Tuned[W]:
    """Choose options of training by a study (Optuna's TPE sampler; J. Bergstra et al., 2011).

    The second trial is the first one with the Lipschitz penalty of ``optimize``, or without if it has one.
    Every trial has a seed of its own and depends on the figures before it only, so a study that was
    interrupted asks again what it asked, and takes what was trained already from the journal.

    Args:
        job: The job.
        recipe: Its recipe; ``tune`` is the number of trials, at least 1.
        epochs: Epochs of every trial.
        journal: Keeps what finished trials came to.
    """
    return _Study(job, recipe, epochs, journal).run()


class _Study(Generic[W]):
    def __init__(self, job: Job, recipe: W, epochs: int, journal: Journal) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.job, self.recipe, self.epochs, self.journal = job, recipe, epochs, journal
        self.study = optuna.create_study(direction="maximize")
        own = _options(recipe)
        penalty = OptimizeRecipe.model_fields["beta"].default
        self.given: list[Options] = [own, own | {"beta": 0.0 if recipe.beta else penalty}]
        self.known = {_key(line["options"]): stages.TriedOut(**line["outcome"]) for line in journal.lines}

    def run(self) -> Tuned[W]:
        """Train and measure all trials, and choose."""
        trials: list[tuple[Options, stages.TriedOut]] = []
        for number in range(self.recipe.tune):
            trial, options = self._ask(number)
            outcome = self._outcome(number, options)
            self.study.tell(trial, float(np.mean(outcome.values)))
            trials.append((options, outcome))
        chosen = _best([outcome.values for _, outcome in trials])
        recipe = self.recipe.model_copy(update=trials[chosen][0])
        device, seed = self.job.device, recipe.seed
        record = Tuning(
            epochs=self.epochs,
            chosen=chosen,
            trials=[
                TuningTrial(
                    options=self._shown(options),
                    epochs=outcome.epochs,
                    point=summarise(device.name, device.attributes(), seed, outcome.values),
                )
                for options, outcome in trials
            ],
        )
        return Tuned(recipe, self.job.with_recipe(recipe), record)

    def _ask(self, number: int) -> tuple[optuna.Trial, Options]:
        """Return the next trial and its options; what is given may lie beyond the ranges of the others."""
        from optuna.samplers import TPESampler

        seed = seed_of(self.recipe.seed, "tuning", number)
        self.study.sampler = TPESampler(n_startup_trials=_FIRST_TPE, seed=seed % 2**32)
        if number >= len(self.given):
            trial = self.study.ask()
            return trial, self._suggest(trial)
        options = self.given[number]
        self.study.enqueue_trial(self._params(options))
        trial = self.study.ask()
        self._suggest(trial)
        return trial, options

    def _suggest(self, trial: optuna.Trial) -> Options:
        recipe = self.recipe
        options = _options(recipe) | {"beta": 0.0, "clip_weights": None}
        options["rate"] = _rounded(trial.suggest_float("rate", *_RATE, log=True))
        if trial.suggest_categorical("penalty", [False, True]):
            options["beta"] = _rounded(trial.suggest_float("beta", *_BETA, log=True))
            options["k"] = _rounded(trial.suggest_float("k", *_K, log=True))
        if trial.suggest_categorical("clipping", [False, True]):
            options["clip_weights"] = _rounded(trial.suggest_float("clip-weights", *_CLIP))
        if recipe.injection:
            strength = trial.suggest_float("strength", *_STRENGTH)
            options["ramp"] = tuple(_rounded(level * strength) for level in recipe.ramp)
            censored = trial.suggest_categorical("censoring", [False, True])
            options["censor"] = _rounded(trial.suggest_float("censor", *_CENSOR)) if censored else None
        if self.job.metric == "top1":
            distilled = trial.suggest_categorical("distilled", [False, True])
            weight = trial.suggest_float("distillation", *_DISTILLATION) if distilled else 0.0
            options["distillation"] = _rounded(weight)
        return options

    def _params(self, options: Options) -> dict[str, Any]:
        """Write options as parameters of the study, as near as its ranges allow."""
        limited = {
            "rate": (options["rate"], _RATE),
            "beta": (options["beta"], _BETA),
            "k": (options["k"], _K),
            "clip-weights": (options["clip_weights"], _CLIP),
            "strength": (1.0, _STRENGTH),
            "censor": (options["censor"], _CENSOR),
            "distillation": (options["distillation"], _DISTILLATION),
        }
        params = {
            name: float(np.clip(value, *r)) for name, (value, r) in limited.items() if value is not None
        }
        return params | {
            "penalty": options["beta"] > 0,
            "clipping": options["clip_weights"] is not None,
            "censoring": options["censor"] is not None,
            "distilled": options["distillation"] > 0,
        }

    def _outcome(self, number: int, options: Options) -> stages.TriedOut:
        """Return what a trial's training came to; none is done twice."""
        outcome = self.known.get(_key(options))
        if outcome is None:
            job = self.job.with_recipe(self.recipe.model_copy(update=options))
            title = f"trial {number + 1} of {self.recipe.tune}"
            outcome = stages.try_out(job, self.epochs, options["beta"], name=f"trial-{number}", title=title)
            self.journal.append({"options": options, "outcome": asdict(outcome)})
            self.known[_key(options)] = outcome
        return outcome

    def _shown(self, options: Options) -> Options:
        """Options as they stand in a recipe."""
        recipe = self.recipe.model_copy(update=options)
        return recipe.model_dump(mode="json", by_alias=True, include=set(_CHOSEN))


_CHOSEN = ("rate", "beta", "k", "clip_weights", "censor", "ramp", "distillation")


def _options(recipe: WeightsRecipe) -> Options:
    return {name: getattr(recipe, name) for name in _CHOSEN}


def _best(trials: Sequence[Sequence[float]]) -> int:
    """Return the trial with the best mean, or the first one where that is not better beyond chance."""
    best = max(range(len(trials)), key=lambda number: (np.mean(trials[number]), -number))
    return best if surely_better(trials[best], trials[0]) else 0


def _rounded(value: float) -> float:
    """Few digits, so that a user can repeat a trial by its flags."""
    return float(f"{value:.{_DIGITS}g}")


def _key(options: Options) -> str:
    return json.dumps(options, sort_keys=True)
