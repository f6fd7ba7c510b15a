"""``--tune``: what it tries, what it chooses, that what follows uses it, and how it goes on after a kill."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest

import cnpass
from cnpass.optimization import stages, tuning
from cnpass.optimization.job import Job
from cnpass.recipe import OptimizeRecipe, RetrainRecipe, WeightsRecipe
from cnpass.records import SCHEMAS, RetrainRecord
from cnpass.runfolder import Journal
from cnpass.runtime.devices import DeviceModel, LogNormal

OPTIONS: dict[str, Any] = {"sigma": 1.2, "epochs": 8, "workers": 1}
DEVICE = LogNormal()
OWN = {"rate": 3e-3, "beta": 0, "k": 1, "clip-weights": None, "censor": None, "distillation": 0}
OWN |= {"ramp": [0.4, 0.7, 1.0]}


def _retrain(model: Path, output: Path, **options: Any) -> RetrainRecord:
    return cnpass.retrain(model, output=output, **(OPTIONS | options))


def test_a_killed_study_chooses_what_a_whole_one_does_and_that_is_what_is_trained(
    model: Path, tmp_path: Path, countdown, killed, monkeypatch
) -> None:
    monkeypatch.setattr("cnpass.training.retrain._SAVE_EVERY", 0.0)
    whole = _retrain(model, tmp_path / "whole.onnx", tune=4)
    beside = json.loads((tmp_path / "whole.json").read_text())
    jsonschema.validate(beside, json.loads((SCHEMAS / "retrain.json").read_text()))
    assert whole.tuned is not None
    assert (whole.tuned.epochs, [trial.epochs for trial in whole.tuned.trials]) == (2, [2] * 4)
    assert whole.epochs == 4 * 2 + 8

    run = tmp_path / "run"
    with pytest.raises(killed):
        _retrain(model, tmp_path / "killed.onnx", tune=4, run=run, progress=countdown("trial 2 of 4", 1))
    trained = countdown()
    resumed = _retrain(model, tmp_path / "killed.onnx", tune=4, run=run, progress=trained)
    assert "trial 1 of 4" not in trained.seen
    assert {"trial 2 of 4", "trial 4 of 4"} < set(trained.seen)
    assert not list(run.rglob("trial-*"))
    same = {"output", "seconds"}
    assert resumed.model_dump(exclude=same) == whole.model_dump(exclude=same)

    chosen = whole.tuned.trials[whole.tuned.chosen]
    assert chosen.point.mean >= whole.tuned.trials[0].point.mean
    given = {name.replace("-", "_"): value for name, value in chosen.options.items() if value is not None}
    again = _retrain(model, tmp_path / "given.onnx", **given)
    assert again.tuned is None
    assert again.epochs == 8
    assert again.after == whole.after
    written = {(tmp_path / f"{name}.onnx").read_bytes() for name in ("whole", "killed", "given")}
    assert len(written) == 1


@dataclass(frozen=True)
class _Job:
    """What a study needs of a job."""

    recipe: WeightsRecipe
    metric: str = "top1"
    device: DeviceModel = DEVICE

    def with_recipe(self, recipe: WeightsRecipe) -> _Job:
        return replace(self, recipe=recipe)


class _Trainings:
    """Stand in for the trainings of trials: figures that depend on which options are in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **worth: float) -> None:
        self.worth = worth
        self.recipes: list[WeightsRecipe] = []
        monkeypatch.setattr(stages, "try_out", self)

    def __call__(self, job: Any, epochs: int, beta: float, *, name: str, title: str) -> stages.TriedOut:
        assert (epochs, beta) == (3, job.recipe.beta)
        assert name.removeprefix("trial-") == str(int(title.split()[1]) - 1)
        self.recipes.append(job.recipe)
        used = sum(value for option, value in self.worth.items() if getattr(job.recipe, option))
        return stages.TriedOut([0.5 + used + 0.001 * (chip % 2) for chip in range(30)], epochs)


def _tune(recipe: WeightsRecipe, folder: Path, metric: str = "top1") -> tuning.Tuned[WeightsRecipe]:
    journal = Journal(folder / f"{recipe.verb}.jsonl")
    tuned = tuning.tune(cast(Job, _Job(recipe, metric)), recipe, 3, journal)
    journal.close()
    return tuned


def test_the_recipes_own_options_come_first_then_the_penalty_then_everything(
    tmp_path: Path, monkeypatch
) -> None:
    trainings = _Trainings(monkeypatch)
    tuned = _tune(RetrainRecipe(tune=16), tmp_path)
    own, penalty, *others = (trial.options for trial in tuned.record.trials)
    assert own == OWN
    assert penalty == OWN | {"beta": 1e-3}
    assert len({json.dumps(options) for options in (own, penalty, *others)}) == 16
    for name in ("beta", "clip_weights", "censor", "distillation"):
        assert {bool(getattr(recipe, name)) for recipe in trainings.recipes} == {False, True}, name
    for recipe in trainings.recipes:  # every trial is a recipe that could have been given
        assert RetrainRecipe.build(None, recipe.model_dump()) == recipe
        assert (recipe.k == 1) or recipe.beta
    assert len({recipe.ramp for recipe in trainings.recipes}) > 8
    assert len({recipe.rate for recipe in trainings.recipes}) > 8
    assert tuned.record.chosen == 0  # all alike
    assert tuned.recipe == tuned.job.recipe == RetrainRecipe(tune=16)
    optimized = _tune(OptimizeRecipe(tune=2), tmp_path)
    assert [trial.options["beta"] for trial in optimized.record.trials] == [1e-3, 0]


def test_what_is_better_is_used_and_looked_for(tmp_path: Path, monkeypatch) -> None:
    trainings = _Trainings(monkeypatch, clip_weights=0.1, censor=-0.05)
    tuned = _tune(RetrainRecipe(tune=30), tmp_path)
    assert tuned.recipe.clip_weights is not None
    assert tuned.recipe.censor is None
    late = trainings.recipes[15:]
    assert sum(recipe.clip_weights is not None for recipe in late) > 0.6 * len(late)
    again = _tune(RetrainRecipe(tune=30), tmp_path)  # all of it is in the journal
    assert again.record == tuned.record
    assert len(trainings.recipes) == 30


def test_the_users_own_options_are_tried_even_beyond_the_ranges(tmp_path: Path, monkeypatch) -> None:
    trainings = _Trainings(monkeypatch)
    own = RetrainRecipe(tune=8, beta=3.0, clip_weights=9.0, ramp=(0.5,), injection=False, distillation=1.0)
    tuned = _tune(own, tmp_path, metric="agreement")
    assert trainings.recipes[0] == own
    assert [recipe.beta for recipe in trainings.recipes[:2]] == [3.0, 0.0]
    assert tuned.record.trials[0].options["ramp"] == 0.5
    # No injection: its strength is nothing to choose. No labels: nor is the weight beside them.
    assert {(recipe.ramp, recipe.censor, recipe.distillation) for recipe in trainings.recipes} == {
        ((0.5,), None, 1.0)
    }


def test_a_better_mean_by_chance_is_no_reason_to_change() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0.5, 0.1, 30)
    noise = rng.normal(0, 0.05, 30)
    by_chance = list(own + noise - noise.mean() + 0.002)
    assert np.mean(by_chance) > np.mean(own)
    assert tuning._best([list(own), by_chance]) == 0
    assert tuning._best([list(own), list(own + 0.001), list(own + 0.002)]) == 2
    assert tuning._best([list(own), list(own)]) == 0


def test_optimize_climbs_with_what_was_chosen(model: Path, tmp_path: Path, monkeypatch) -> None:
    def try_out(job: Any, *_: Any, **__: Any) -> stages.TriedOut:
        recipe = job.recipe
        return stages.TriedOut(
            [0.5 + 0.1 * (recipe.clip_weights is not None) + 0.1 * (recipe.k != 1)] * 30, 1
        )

    used = []
    train = stages.train

    def record_options(forward: Any, problem: Any, options: Any, **named: Any) -> Any:
        used.append((named["title"], options, problem.objective.distillation))
        return train(forward, problem, options, **named)

    monkeypatch.setattr(stages, "try_out", try_out)
    monkeypatch.setattr(stages, "train", record_options)
    options: dict[str, Any] = {"sigma": 1.2, "epochs": 1, "trials": 2, "chips": 2, "max_overhead": 0.5}
    options |= {"draws": 2}
    record = cnpass.optimize(model, tune=16, workers=1, output=tmp_path / "o.onnx", **options)
    beside = json.loads((tmp_path / "o.json").read_text())
    jsonschema.validate(beside, json.loads((SCHEMAS / "optimize.json").read_text()))
    chosen = record.tuned.trials[record.tuned.chosen].options
    assert chosen["clip-weights"] is not None
    assert chosen["k"] != 1
    for title, trained, distillation in used:
        if "compensation" in title:
            assert trained.clip_weights is trained.censor is None
            assert trained.rate == OWN["rate"]
        else:
            assert trained.rate == chosen["rate"]
            assert trained.clip_weights == chosen["clip-weights"]
            assert trained.censor == chosen["censor"]
            assert list(trained.levels) in (chosen["ramp"], chosen["ramp"][-1:])
            assert trained.k == chosen["k"]
            assert trained.beta in (0, chosen["beta"])
            assert (trained.beta > 0) == ("penalty" in title) or title == "training on"
        assert trained.draws == 2
        assert distillation == chosen["distillation"]
    assert {title for title, *_ in used} >= {"retraining", "retraining with penalty", "training on"}
    assert any("weight clipping" in rung.step for rung in record.ladder)
