"""Statistics over chips, and metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnpass.data import Split
from cnpass.errors import DataError
from cnpass.evaluation import metrics
from cnpass.evaluation.statistics import summarise, t_quantile


@pytest.mark.parametrize(
    ("freedom", "value"),
    [
        (1, 12.7062047362),
        (2, 4.3026527297),
        (3, 3.1824463053),
        (10, 2.2281388520),
        (249, 1.9695368676),
        (1000, 1.9623390808),
        (1001, 1.9623367053),
        (100_000, 1.9599877075),
    ],
)
def test_t_quantile(freedom: int, value: float) -> None:
    assert t_quantile(freedom) == pytest.approx(value, abs=1e-10)


def test_point() -> None:
    point = summarise("lognormal", {"sigma": 0.5}, 7, [0.5, 0.7, 0.6, 1.0])
    deviation = math.sqrt((0.04 + 0.0 + 0.01 + 0.09) / 3)
    assert point.mean == pytest.approx(0.7)
    assert point.std == pytest.approx(deviation)
    assert point.ci95[1] - point.mean == pytest.approx(3.1824463 * deviation / 2)
    assert point.mean - point.ci95[0] == pytest.approx(point.ci95[1] - point.mean)
    assert (point.min, point.p05) == (0.5, pytest.approx(0.515))


ROWS = np.array([[1.0, 2, 0], [3, 3, 1], [0, np.nan, 9], [0, 0, 5]], np.float32)


def test_predictions() -> None:
    assert metrics.predictions(ROWS).tolist() == [1, 0, -1, 2]
    assert metrics.predictions(ROWS[:, :, None, None]).tolist() == [1, 0, -1, 2]


def test_top1_counts_nan_as_wrong() -> None:
    meter = metrics.Meter("top1")
    meter.add(ROWS[:3], np.array([1, 1, 2]))
    meter.add(ROWS[3:], np.array([2]))
    assert meter.value() == 0.5


def test_agreement_counts_nan_as_wrong_where_the_clean_model_has_it_too() -> None:
    meter = metrics.Meter("agreement")
    meter.add(ROWS, metrics.predictions(ROWS))
    assert np.isnan(ROWS).any(axis=1).tolist() == [False, False, True, False]
    assert meter.value() == 0.75


@pytest.mark.parametrize(
    ("error", "decibel"),
    [(0.1, 20.0), (0.0, metrics.SER_LIMIT), (np.nan, -metrics.SER_LIMIT), (np.inf, -metrics.SER_LIMIT)],
)
def test_signal_to_error_ratio(error: float, decibel: float) -> None:
    wanted = np.array([1.0, -1.0, 1.0, -1.0])
    meter = metrics.Meter("ser")
    for part in (slice(0, 1), slice(1, 4)):
        meter.add(wanted[part] * (1 + error), wanted[part])
    assert meter.value() == pytest.approx(decibel)


@pytest.mark.parametrize(
    ("shape", "labels", "metric"),
    [
        ((4, 3), True, "top1"),
        ((4, 3, 1, 1), True, "top1"),
        ((4, 3), False, "agreement"),
        ((4, 1), False, "ser"),
        ((4,), False, "ser"),
        ((4, 3, 5), False, "ser"),
    ],
)
def test_choice_of_metric(shape: tuple[int, ...], labels: bool, metric: str) -> None:
    split = Split({"x": np.zeros((4, 2))}, np.array([0, 1, 2, 0]) if labels else None)
    assert metrics.choose(split, np.zeros(shape, np.float32), "y") == metric


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 1), "labels need class scores, but output 'y' has shape"),
        ((4, 2), "label 2 is outside .* 2 classes"),
    ],
)
def test_labels_that_do_not_fit_the_output(shape: tuple[int, ...], said: str) -> None:
    split = Split({"x": np.zeros((4, 2))}, np.array([0, 1, 2, 0]))
    with pytest.raises(DataError, match=said):
        metrics.choose(split, np.zeros(shape, np.float32), "y")


@pytest.mark.parametrize(("clean", "warned"), [(0.10, True), (0.12, True), (0.25, False), (0.98, False)])
def test_chance_level_is_warned_about(clean: float, warned: bool) -> None:
    split = Split({"x": np.zeros((1000, 2))}, np.arange(1000) % 10)
    assert (metrics.chance_warning("top1", split, clean, 10) is not None) == warned


def test_chance_level_of_skewed_labels() -> None:
    split = Split({"x": np.zeros((1000, 2))}, (np.arange(1000) % 10 == 0).astype(np.int64))
    assert metrics.chance_warning("top1", split, 0.9, 2) is not None
    assert metrics.chance_warning("agreement", split, 0.1, 2) is None
