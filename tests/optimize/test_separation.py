"""What decides anything: never a test sample, never a test chip, never a seed of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cnpass
from cnpass import data as datasets
from cnpass.compensation.activations import Runs, Tap
from cnpass.data import Split
from cnpass.errors import UsageError
from cnpass.evaluation import MonteCarlo
from cnpass.optimization import calibrating
from cnpass.optimization import run as optimizing
from cnpass.optimization.job import TUNING_CHIPS
from cnpass.recipe import EvaluateRecipe, OptimizeRecipe
from cnpass.runtime.ops import IDEAL_CHIP
from cnpass.training.crossbars import Crossbars

TRAINING: dict[str, Any] = {"sigma": 1.2, "epochs": 2, "workers": 1}
SEARCH: dict[str, Any] = TRAINING | {"trials": 3, "max_overhead": 0.5}
VALIDATION, FITTING = range(1_000_000, 2_000_000), range(2_000_000, 3_000_000)
"""Chips that choices may look at, and those that closed forms may."""
VERBS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "optimize": (cnpass.optimize, SEARCH | {"chips": 4, "tune": 2}),
    "retrain": (cnpass.retrain, TRAINING | {"tune": 2}),
    "search": (cnpass.search, SEARCH),
    "calibrate": (cnpass.calibrate, {"sigma": 0.8, "chip": 7, "max_overhead": 1.0, "samples": 160}),
}


class _Sealed:
    """Test samples that may be counted, and read only while they are not locked."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self.locked = False
        self.read = False

    def __len__(self) -> int:
        return len(self._split)

    def __getattr__(self, name: str) -> Any:
        assert not self.locked, f"a choice read {name} of the test samples"
        self.read = True
        return getattr(self._split, name)


@dataclass
class _Watch:
    """What a run looked at and drew while choices were open, which is not so for its final figures.

    Attributes:
        open: Whether they are.
        sealed: The test samples, once there are any.
        training: Seeds of torch generators that chips to train on were drawn from.
        validation: Chips that trainings, studies and searches chose by.
        ladder: Chips that Monte-Carlo runs chose by.
        fitting: Chips on which activations were looked at, as closed forms and directions need them.
        measured: Samples that Monte-Carlo runs measured on.
    """

    open: bool = False
    sealed: list[_Sealed] = field(default_factory=list)
    training: set[int] = field(default_factory=set)
    validation: set[int] = field(default_factory=set)
    ladder: set[int] = field(default_factory=set)
    fitting: set[int] = field(default_factory=set)
    measured: list[np.ndarray] = field(default_factory=list)

    def turn(self, *, choosing: bool) -> None:
        """Open or close the time of choices."""
        self.open = choosing
        for sealed in self.sealed:
            sealed.locked = choosing


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], _Watch]:
    """Watches a verb from now on."""

    def start(name: str) -> _Watch:
        seen = _Watch()
        prepare, rows, tensors = datasets.prepare, Tap.rows, Runs.tensors
        draw, chip, values = Crossbars.draw, Crossbars.chip, MonteCarlo.values

        def prepared(*arguments: Any) -> Any:
            dataset = prepare(*arguments)
            seen.sealed.append(_Sealed(dataset.test))
            dataset = replace(dataset, test=seen.sealed[0])
            assert dataset.sha256  # all arrays are hashed once, before anything else
            seen.sealed[0].read = False
            seen.turn(choosing=name in {"retrain", "search"})  # they never need a test sample
            return dataset

        def drawn(self: Crossbars, weights: Any, generator: torch.Generator, *more: Any) -> Any:
            seen.training.add(generator.initial_seed())
            return draw(self, weights, generator, *more)

        def numbered(self: Crossbars, weights: Any, number: int, seed: int) -> Any:
            seen.validation.add(number)
            return chip(self, weights, number, seed)

        def measured(self: MonteCarlo, target: Any, chips: Any, **named: Any) -> Any:
            if seen.open:
                seen.ladder.update(chips)
                seen.measured.append(self._split.x)
            return values(self, target, chips, **named)

        def looked(work: Callable[..., Any]) -> Callable[..., Any]:
            def looking(self: Any, inputs: Any, chip: int = IDEAL_CHIP) -> Any:
                seen.fitting.add(chip)
                return work(self, inputs, chip)

            return looking

        def choosing(owner: type, method: str) -> None:
            work = getattr(owner, method)

            def opened(*arguments: Any) -> Any:
                seen.turn(choosing=True)
                result = work(*arguments)
                seen.turn(choosing=False)
                return result

            monkeypatch.setattr(owner, method, opened)

        monkeypatch.setattr(datasets, "prepare", prepared)
        monkeypatch.setattr(Crossbars, "draw", drawn)
        monkeypatch.setattr(Crossbars, "chip", numbered)
        monkeypatch.setattr(MonteCarlo, "values", measured)
        monkeypatch.setattr(Tap, "rows", looked(rows))
        monkeypatch.setattr(Runs, "tensors", looked(tensors))
        choosing(optimizing._Optimization, "_climb")
        choosing(calibrating._Calibration, "_fit")
        choosing(calibrating._Calibration, "_figure")
        return seen

    return start


@pytest.mark.parametrize("name", VERBS)
def test_neither_test_samples_nor_test_chips_decide_anything(
    model: Path, tmp_path: Path, monkeypatch, watch, name: str
) -> None:
    verb, options = VERBS[name]
    seen = watch(name)
    first = verb(model, output=tmp_path / "a.onnx", **options)
    monkeypatch.undo()
    with np.load(model.with_suffix(".npz")) as arrays:
        kept = dict(arrays)
    assert seen.measured
    assert all(np.array_equal(x, kept["x_val"]) for x in seen.measured)
    assert seen.sealed[0].read == (name in {"optimize", "calibrate"})
    fitting = seen.fitting - {IDEAL_CHIP}
    if name == "calibrate":  # its one chip is what it is about
        assert seen.ladder == fitting == {7}
        assert not seen.training
        assert not seen.validation
    else:
        assert seen.validation | seen.ladder <= set(VALIDATION)
        assert not seen.validation & seen.ladder  # so no rung is flattered by a choice before it
        assert (set(TUNING_CHIPS) < seen.validation) == (name != "search")
        assert fitting <= set(FITTING)
        assert bool(fitting) == (name != "retrain")
        # Chips to train on have no number: their generators are seeded by hashes, far from any chip's number.
        assert min(seen.training) > 2**32

    # Other test samples: fewer, of noise, with labels that the result always misses, and the source does not.
    x = np.random.default_rng(3).normal(size=(2000, 1, 8, 8)).astype(np.float32)
    outputs = (cnpass.Session(path).run(x)[0] for path in (tmp_path / "a.onnx", model))
    wrong, right = (np.asarray(output).argmax(1) for output in outputs)
    told = np.flatnonzero(wrong != right)[:50]
    kept |= {"x_test": x[told], "y_test": right[told]}
    np.savez(model.with_suffix(".npz"), **kept)
    second = verb(model, output=tmp_path / "b.onnx", **options)
    assert (first.n.test, second.n.test) == (80, 50)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    for part in ("ladder", "tuned", "history", "trials", "placement", "nodes", "kept"):
        assert getattr(first, part, None) == getattr(second, part, None), part


@pytest.mark.parametrize("recipe", [EvaluateRecipe, OptimizeRecipe])
def test_final_figures_cannot_be_asked_for_chips_that_choices_looked_at(recipe: Any) -> None:
    assert recipe.build(None, {"chips": VALIDATION.start}).chips == VALIDATION.start
    with pytest.raises(UsageError, match="chips"):
        recipe.build(None, {"chips": VALIDATION.start + 1})
