"""How long trainings are, and what a user is told about it."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.evaluation.statistics import half_width, surely_better
from cnpass.optimization.effort import FEWEST_TRIALS, MOST_TIMES, Effort, Size
from cnpass.training.schedule import MOST_MACS

SMALL = Size(samples=1000, batch=128, macs=100_000, searched=6000)
LARGE = Size(samples=50_000, batch=128, macs=300_000_000, searched=6000)


def test_what_is_told_is_done() -> None:
    effort = Effort.told(12, trials=5)
    assert (effort.retrain, effort.together, effort.trials, effort.tuning) == (12, 12, 5, 3)
    assert effort.last(missing=0.9) == effort.last(missing=0.0) == 12


def test_the_last_training_follows_what_is_missing() -> None:
    effort = Effort.suited(SMALL, trials=5)
    assert effort.retrain == 300
    assert effort.last(0.0) == effort.last(0.01) == 300
    assert effort.last(0.035) == 1050
    assert effort.last(0.5) == MOST_TIMES * 300


def test_large_networks_train_as_long_as_they_can_afford() -> None:
    effort = Effort.suited(LARGE, trials=5)
    assert effort.retrain == effort.together == effort.shared == effort.compensation == 1
    medium = Size(50_000, 128, macs=int(MOST_MACS / 50_000 / 20), searched=6000)
    assert Effort.suited(medium, trials=5).retrain == 8
    assert Effort.suited(medium, trials=5).last(1.0) == 20


@pytest.mark.parametrize("verb", ["optimize", "retrain", "search"])
def test_a_budget_is_spent_and_not_exceeded_by_much(verb: str) -> None:
    step = 0.01
    effort = Effort.within(verb, 600, SMALL, step, trials=40)
    epochs = {
        "optimize": 2 * effort.retrain + effort.shared + effort.compensation + effort.together,
        "retrain": effort.together,
        "search": effort.shared + effort.compensation,
    }[verb]
    assert (0.65 if verb == "search" else 0.8) * 600 < epochs * 8 * step < 600
    assert effort.trials == (FEWEST_TRIALS if verb == "retrain" else 40)
    assert Effort.within(verb, 1, SMALL, step, trials=40).trials == FEWEST_TRIALS
    assert not effort.grows


@pytest.mark.parametrize("verb", ["optimize", "retrain"])
def test_tuning_takes_its_share_of_a_budget(verb: str) -> None:
    step = 0.01
    effort = Effort.within(verb, 600, SMALL, step, trials=40, tunings=20)
    trials = 20 * effort.tuning
    rest = 2 * effort.retrain + effort.shared + effort.compensation if verb == "optimize" else 0
    assert 0.35 * 600 < trials * 8 * step <= 0.4 * 600
    assert 0.8 * 600 < (trials + rest + effort.together) * 8 * step < 600


def test_the_announcement_says_how_long_it_takes() -> None:
    # 2 x 300 + 100 + 75 epochs and the last 300, of 7.8 steps; 5 trials of 6000 samples at a third of a step
    whole = {"firsts": 2, "places": True, "last": True, "tunings": 0}
    growing = Effort.suited(SMALL, 5).announcement(SMALL, 0.005, **whole)
    assert "1075 epochs, about 42 s; up to 8275, 5 min, where much accuracy is missing" in growing
    tuned = Effort.suited(SMALL, 5).announcement(SMALL, 0.005, **(whole | {"tunings": 4}))
    assert "1375 epochs" in tuned  # 4 trials of 75 more
    large = Size(50_000, 128, None, 600)
    assert "358 epochs, about 2.2 h (" in Effort.told(100, 5).announcement(large, 0.0578, **whole)
    assert "training: 1 epoch, about" in Effort.told(1, 0).announcement(
        large, 0.0578, firsts=0, places=False, last=True, tunings=0
    )
    alone = Effort.told(100, 0).announcement(large, 0.0578, firsts=0, places=False, last=True, tunings=0)
    assert "100 epochs, about 38 min (" in alone


def test_a_budget_is_announced_as_it_is_spent() -> None:
    effort = Effort.within("retrain", 600, SMALL, 0.01, trials=0)
    told = effort.announcement(SMALL, 0.01, firsts=0, places=False, last=True, tunings=0)
    assert f"training: {effort.together} epochs, about 9 min (" in told


def test_better_means_beyond_chance_on_the_same_chips() -> None:
    rng = np.random.default_rng(0)
    chips = rng.normal(0.5, 0.1, 30)
    slight = chips + rng.normal(0.004, 0.01, 30)
    differences = list(slight - chips)
    assert surely_better(list(slight), list(chips)) == (np.mean(differences) > half_width(differences))
    assert surely_better(list(chips + 0.001), list(chips))
    assert not surely_better(list(chips), list(chips))
    assert not surely_better(list(rng.permutation(chips)), list(chips))
    assert not surely_better([np.nan, 1.0], [0.0, 0.0])
