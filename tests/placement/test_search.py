"""Placement search: it finds the best, resumes, and pays for nothing twice."""

from __future__ import annotations

import pytest

from cnpass.placement.search import Choice, Space, search

SPACE = Space(nodes=("a", "b", "c"), kinds=("residual", "gain"), ratios=(0.1, 0.5))
WORTH = {"a": 0.2, "b": 0.9, "c": 0.4}


class _Scorer:
    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[Choice] = []
        self.fail_after = fail_after

    def __call__(self, choice: Choice) -> float | None:
        if len(self.asked) == self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(choice)
        if choice.ratio > 0.3:
            return None
        return WORTH[choice.node] + (0.05 if choice.kind == "gain" else 0)


def test_the_best_affordable_placement_is_found_and_nothing_is_trained_twice() -> None:
    scorer = _Scorer()
    assert search(SPACE, scorer, trials=40, seed=1) == (Choice("b", "gain", 0.1), pytest.approx(0.95))
    assert len(scorer.asked) == len(set(scorer.asked)) <= 12


def test_nothing_affordable_gives_none() -> None:
    assert search(Space(("a",), ratios=(0.5,)), _Scorer(), trials=3, seed=0) is None


def test_the_same_seed_asks_the_same() -> None:
    one, two, other = _Scorer(), _Scorer(), _Scorer()
    for scorer, seed in ((one, 5), (two, 5), (other, 6)):
        search(SPACE, scorer, trials=8, seed=seed)
    assert one.asked == two.asked != other.asked


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path) -> None:
    whole = _Scorer()
    expected = search(SPACE, whole, trials=10, seed=2)
    first = _Scorer(fail_after=3)
    storage = tmp_path / "study.db"
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, first, trials=10, seed=2, storage=storage)
    rest = _Scorer()
    assert search(SPACE, rest, trials=10, seed=2, storage=storage) == expected
    assert first.asked + rest.asked == whole.asked
    again = _Scorer()
    assert search(SPACE, again, trials=10, seed=2, storage=storage) == expected
    assert not again.asked
