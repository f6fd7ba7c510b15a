"""Placement search: each sampler finds good ones within the limit, resumes, and pays for nothing twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from cnpass.compensation.overhead import Cost
from cnpass.placement.measuring import FEWEST_CHIPS, until_worse
from cnpass.placement.search import ROUND, search
from cnpass.placement.space import Choice, Placement, Space
from cnpass.recipe import Sampler

NODES = ("a", "b", "c")
RATIOS = (0.1, 0.25, 0.5)
WORTH = {"a": 0.2, "b": 0.9, "c": 0.4}


def space(limit: float = 0.06) -> Space:
    """Gain costs 100 ratio parameters of 1000, residual twice that and as many of 2000 operations."""
    costs = {
        Choice(node, kind, ratio): Cost(
            round(100 * ratio) * (1 + (kind == "residual")), round(100 * ratio) * (kind == "residual")
        )
        for node, kind, ratio in product(NODES, ("gain", "residual"), RATIOS)
    }
    return Space(NODES, ("gain", "residual"), RATIOS, costs, Cost(1000, 2000), limit)


def everything(where: Space) -> list[Placement]:
    """All placements within the limit."""
    options = [[None, *(c for c in where.costs if c.node == node)] for node in where.nodes]
    found = [tuple(c for c in choices if c) for choices in product(*options)]
    return [placement for placement in found if where.excess(placement) <= 0]


def worth(placement: Placement) -> float:
    return sum(WORTH[c.node] * c.ratio**0.5 * (1.2 if c.kind == "residual" else 1) for c in placement)


SAMPLERS = get_args(Sampler)
CHIPS = 6


def figures(placement: Placement) -> tuple[float, ...]:
    """Figures whose mean is the worth; chips differ, and are alike for all placements."""
    return tuple(worth(placement) + chip - (CHIPS - 1) / 2 for chip in range(CHIPS))


class _Measure:
    """Gives figures one by one; may be killed, and may give up against the figures it is told."""

    def __init__(self, fail_after: int | None = None, *, prunes: bool = False) -> None:
        self.asked: list[Placement] = []
        self.rounds: list[int] = []
        self.fail_after, self.prunes = fail_after, prunes

    def __call__(self, placements, best):
        self.rounds.append(len(placements))
        for placement in placements:
            if len(self.asked) == self.fail_after:
                raise KeyboardInterrupt
            self.asked.append(placement)
            whole = figures(placement)
            yield until_worse(iter(whole), best) if self.prunes else whole


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", range(2))
def test_good_placements_are_found_within_the_limit(sampler, seed) -> None:
    where = space(0.1)
    measure = _Measure()
    found = search(where, measure, trials=60, seed=seed, sampler=sampler)
    allowed = everything(where)
    assert len(allowed) > 150
    ranked = sorted({worth(p) for p in allowed}, reverse=True)
    assert found.value >= ranked[4 if sampler == "tpe" else len(ranked) // 10]
    assert found.value == pytest.approx(worth(found.placement))
    assert found.value == max(np.mean(f) for f in found.figures.values())
    assert set(measure.asked) <= set(allowed)
    assert len(measure.asked) == len(set(measure.asked)) == len(found.figures) == 60


def test_the_first_trials_are_nothing_the_cheapest_and_each_kind_alone() -> None:
    for sampler in SAMPLERS:
        measure = _Measure()
        where = space()
        found = search(where, measure, trials=4, seed=0, sampler=sampler)
        alone = [replace(where, kinds=(kind,)).widest() for kind in where.kinds]
        assert measure.asked == [(), where.cheapest(), *alone]
        assert [{choice.kind for choice in placement} for placement in alone] == [{"gain"}, {"residual"}]
        assert where.cheapest() == tuple(Choice(node, "gain", 0.1) for node in NODES)
        assert found.nothing == 0.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.03, 0.2])
def test_what_costs_too_much_is_never_measured_nor_returned(sampler, limit) -> None:
    where = space(limit)
    measure = _Measure()
    found = search(where, measure, trials=30, seed=5, sampler=sampler)
    assert all(where.excess(placement) <= 0 for placement in measure.asked)
    assert where.overhead(found.placement).params <= limit
    assert (found.placement == ()) == (limit == 0.0)


def test_a_proposal_above_the_limit_is_narrowed_and_one_within_stays() -> None:
    where = space(0.06)
    for choices in product(*[[c for c in where.costs if c.node == node] for node in where.nodes]):
        for first in NODES:
            fitted = where.fitted(choices, first)
            assert where.excess(fitted) <= 0
            if where.excess(choices) <= 0:
                assert fitted == where.ordered(choices)
            chosen = {choice.node: choice for choice in choices}
            assert all(c.kind == chosen[c.node].kind and c.ratio <= chosen[c.node].ratio for c in fitted)
    wide = (Choice("a", "residual", 0.5), Choice("b", "gain", 0.1), Choice("c", "gain", 0.25))
    assert where.fitted(wide, "a") == (Choice("a", "residual", 0.25), Choice("b", "gain", 0.1))
    assert where.fitted(wide, "b") == (
        Choice("a", "residual", 0.1),
        Choice("b", "gain", 0.1),
        Choice("c", "gain", 0.25),
    )


def test_harmful_compensation_gives_the_empty_placement_and_ties_the_cheapest() -> None:
    def harmful(placements, _):
        return [[-float(len(p))] * CHIPS for p in placements]

    assert search(space(), harmful, trials=20, seed=0).placement == ()
    assert search(space(), lambda some, _: [[0.5] * CHIPS for _ in some], trials=20, seed=0).placement == ()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_asks_the_same(sampler) -> None:
    one, two, other = _Measure(), _Measure(), _Measure()
    for measure, seed in ((one, 5), (two, 5), (other, 6)):
        search(space(), measure, trials=20, seed=seed, sampler=sampler)
    assert one.asked == two.asked != other.asked


def test_a_round_is_proposed_before_any_of_it_is_measured() -> None:
    """However figures arrive, one by one or all at once, the sampler has seen the same."""
    lazy, eager = _Measure(), _Measure()
    found = search(space(), lazy, trials=22, seed=5)
    assert search(space(), lambda some, best: list(eager(some, best)), trials=22, seed=5) == found
    assert lazy.asked == eager.asked
    assert lazy.rounds == [ROUND] * 5 + [2]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stop", [1, 13])
@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_search_goes_on_where_it_stopped(sampler, stop, seed, tmp_path) -> None:
    whole = _Measure(prunes=True)
    expected = search(space(), whole, trials=24, seed=seed, sampler=sampler)
    first = _Measure(fail_after=stop, prunes=True)
    storage = tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        search(space(), first, trials=24, seed=seed, sampler=sampler, storage=storage)
    rest = _Measure(prunes=True)
    assert search(space(), rest, trials=24, seed=seed, sampler=sampler, storage=storage) == expected
    assert first.asked + rest.asked == whole.asked
    again = _Measure()
    assert search(space(), again, trials=24, seed=seed, sampler=sampler, storage=storage) == expected
    assert not again.asked


def test_more_trials_add_to_a_stored_study(tmp_path) -> None:
    whole, first, rest = _Measure(), _Measure(), _Measure()
    search(space(), whole, trials=20, seed=2)
    search(space(), first, trials=10, seed=2, storage=tmp_path / "study.db")
    search(space(), rest, trials=20, seed=2, storage=tmp_path / "study.db")
    assert first.asked + rest.asked == whole.asked


@pytest.mark.parametrize("sampler", ["tpe", "reinforce", "random"])
def test_what_is_given_up_is_worse_and_never_the_best(sampler, tmp_path) -> None:
    where, storage = space(0.1), tmp_path / "study.db"
    found = search(where, _Measure(prunes=True), trials=40, seed=3, sampler=sampler, storage=storage)
    given_up = [p for p, f in found.figures.items() if len(f) < CHIPS]
    assert given_up
    assert {len(found.figures[p]) for p in given_up} == {FEWEST_CHIPS}
    assert all(worth(p) < worth(found.placement) for p in given_up)
    assert not set(given_up) & {found.placement, found.compensated, *found.front}
    trials = optuna.load_study(study_name="placement", storage=f"sqlite:///{storage}").trials
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    assert len(pruned) >= len(given_up)
    expected = [pytest.approx(worth(p)) for p in given_up]  # chips differ alike, so the estimate is exact
    assert all(any(t.intermediate_values[FEWEST_CHIPS] == e for e in expected) for t in pruned)


def test_with_two_objectives_nothing_is_given_up(tmp_path) -> None:
    storage = tmp_path / "study.db"
    found = search(space(0.1), _Measure(prunes=True), trials=40, seed=3, sampler="nsga2", storage=storage)
    assert {len(f) for f in found.figures.values()} == {CHIPS}
    study = optuna.load_study(study_name="placement", storage=f"sqlite:///{storage}")
    best = {tuple(trial.values) for trial in study.best_trials}
    ours = {(np.mean(found.figures[p]), space(0.1).share(p)) for p in found.front}
    assert ours == best


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_front_is_what_a_comparison_of_all_pairs_finds(sampler) -> None:
    where = space(0.1)
    found = search(where, _Measure(), trials=40, seed=1, sampler=sampler)
    points = {p: (worth(p), where.share(p)) for p in found.figures}

    def beaten(p: Placement) -> bool:
        value, share = points[p]
        return any(v >= value and s <= share and (v, s) != (value, share) for v, s in points.values())

    assert {points[p] for p in found.front} == {points[p] for p in points if not beaten(p)}
    shares = [where.share(p) for p in found.front]
    assert shares == sorted(shares)
    assert found.front[0] == ()
    assert found.placement in found.front


def test_figures_are_taken_until_they_are_surely_worse() -> None:
    best = [0.9, 0.8, 0.95, 0.85, 0.9, 0.9]
    worse = [b - 0.1 - 0.01 * i for i, b in enumerate(best)]
    seen = iter(worse)
    assert until_worse(seen, best) == worse[:FEWEST_CHIPS]
    assert list(seen) == worse[FEWEST_CHIPS:]  # the others were not even asked for
    assert until_worse(iter(worse), ()) == worse
    assert until_worse(iter(best), worse) == best
    noisy = [b + 0.2 * (-1) ** i - 0.01 for i, b in enumerate(best)]
    assert until_worse(iter(noisy), best) == noisy


def test_a_database_that_was_killed_half_made_does_no_harm(tmp_path: Path) -> None:
    storage, half = tmp_path / "study.db", tmp_path / "study.db.new"
    half.write_bytes(b"SQLite format 3\0 and no more")
    (tmp_path / "study.db.new-journal").write_bytes(b"begun")
    search(space(), _Measure(), trials=4, seed=2, storage=storage)
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
