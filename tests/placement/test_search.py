"""Placement search: it finds the best, stays within the limit, resumes, and pays for nothing twice."""

from __future__ import annotations

from itertools import product

import pytest

from cnpass.compensation.overhead import Cost
from cnpass.placement.search import search
from cnpass.placement.space import Choice, Placement, Space

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


class _Scorer:
    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[Placement] = []
        self.fail_after = fail_after

    def __call__(self, placement: Placement) -> float:
        if len(self.asked) == self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(placement)
        return worth(placement)


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_optimum_is_found_within_the_limit(seed) -> None:
    where = space(0.1)
    scorer = _Scorer()
    found = search(where, scorer, trials=60, seed=seed)
    allowed = everything(where)
    assert len(allowed) > 150
    ranked = sorted({worth(p) for p in allowed}, reverse=True)
    assert found.value >= ranked[4]
    assert found.value == worth(found.placement)
    assert set(scorer.asked) <= set(allowed)
    assert len(scorer.asked) == len(set(scorer.asked)) == len(found.figures)


def test_the_first_trials_are_nothing_and_the_cheapest_everywhere() -> None:
    scorer = _Scorer()
    where = space()
    found = search(where, scorer, trials=4, seed=0)
    assert scorer.asked[:2] == [(), where.cheapest()]
    assert where.cheapest() == tuple(Choice(node, "gain", 0.1) for node in NODES)
    assert found.nothing == 0.0


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.03, 0.2])
def test_what_costs_too_much_is_never_measured_nor_returned(limit) -> None:
    where = space(limit)
    scorer = _Scorer()
    found = search(where, scorer, trials=30, seed=5)
    assert all(where.excess(placement) <= 0 for placement in scorer.asked)
    assert where.overhead(found.placement).params <= limit
    assert (found.placement == ()) == (limit == 0.0)


def test_harmful_compensation_gives_the_empty_placement_and_ties_the_cheapest() -> None:
    assert search(space(), lambda p: -float(len(p)), trials=20, seed=0).placement == ()
    assert search(space(), lambda _: 0.5, trials=20, seed=0).placement == ()


def test_the_same_seed_asks_the_same() -> None:
    one, two, other = _Scorer(), _Scorer(), _Scorer()
    for scorer, seed in ((one, 5), (two, 5), (other, 6)):
        search(space(), scorer, trials=20, seed=seed)
    assert one.asked == two.asked != other.asked


@pytest.mark.parametrize("stop", [1, 4, 13])
def test_an_interrupted_search_goes_on_where_it_stopped(stop, tmp_path) -> None:
    whole = _Scorer()
    expected = search(space(), whole, trials=20, seed=2)
    first = _Scorer(fail_after=stop)
    storage = tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        search(space(), first, trials=20, seed=2, storage=storage)
    rest = _Scorer()
    assert search(space(), rest, trials=20, seed=2, storage=storage) == expected
    assert first.asked + rest.asked == whole.asked
    again = _Scorer()
    assert search(space(), again, trials=20, seed=2, storage=storage) == expected
    assert not again.asked


def test_more_trials_add_to_a_stored_study(tmp_path) -> None:
    whole, first, rest = _Scorer(), _Scorer(), _Scorer()
    search(space(), whole, trials=20, seed=2)
    search(space(), first, trials=12, seed=2, storage=tmp_path / "study.db")
    search(space(), rest, trials=20, seed=2, storage=tmp_path / "study.db")
    assert first.asked + rest.asked == whole.asked
