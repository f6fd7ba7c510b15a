"""Stuck devices: exact rates, never both kinds, one draw for a chip's life; several devices per weight."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.errors import ModelError, UsageError
from cnpass.runtime import LogNormal, Proportional, program_weight
from cnpass.runtime.devices import Draws, make_device
from cnpass.runtime.ops import Purpose
from cnpass.runtime.philox import ChipDraws, threshold, words

HERE = {"seed": 5, "stream": 2, "chip": 7}
COUNT = 2**22


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.05), (0.001, 0.2), (0.0, 0.01), (0.7, 0.0), (0.3, 0.7)])
def test_rates(low, high):
    """Both rates are met, by 5 standard deviations over 4 million devices; the rest is as without faults."""
    weight = np.full(COUNT, -0.5, np.float32)
    weight[0] = 2.0
    programmed = program_weight(weight, Proportional(sigma=0.1, stuck_low=low, stuck_high=high), **HERE)[1:]
    healthy = program_weight(weight, Proportional(sigma=0.1), **HERE)[1:]
    is_low, is_high = programmed == 0, programmed == -2.0
    for found, rate in ((is_low, low), (is_high, high)):
        assert abs(found.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / COUNT)
    np.testing.assert_array_equal(programmed[~is_low & ~is_high], healthy[~is_low & ~is_high])


def test_decided_on_integers():
    """The same devices as the words say: those below one threshold, and those below the next."""
    drawn = words(1000, **HERE)
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    low, high = (np.array([rate], np.float32) for rate in (0.25, 0.5))
    is_low, is_high = ChipDraws((1000,), HERE["seed"], HERE["chip"], HERE["stream"]).stuck(low, high)
    np.testing.assert_array_equal(is_low, drawn < 2**30)
    np.testing.assert_array_equal(is_high, (drawn >= 2**30) & (drawn < 3 * 2**30))
    assert threshold(0.25) == 2**30


def test_words_are_uniform_and_depend_on_the_purpose():
    one, other = words(COUNT, **HERE), words(COUNT, **HERE, purpose=Purpose.SECOND_FAULTS)
    counts = np.bincount(one >> 24, minlength=256)
    chi_square = ((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(COUNT)


def test_faults_do_not_follow_the_programming_noise():
    weight = np.ones(2**20, np.float32)
    stuck = program_weight(weight, LogNormal(sigma=0.0, stuck_low=0.5), **HERE) == 0
    noise = program_weight(weight, LogNormal(sigma=0.1), **HERE)
    assert abs(np.corrcoef(stuck, noise)[0, 1]) < 5 / 2**10


def test_every_copy_has_its_own_faults():
    weight = np.ones(2**16, np.float32)
    programmed = program_weight(weight, LogNormal(sigma=0.0, stuck_low=0.5), **HERE, copies=2)
    values, counts = np.unique(programmed, return_counts=True)
    np.testing.assert_array_equal(values, [0, 0.5, 1])
    np.testing.assert_allclose(counts / weight.size, [0.25, 0.5, 0.25], atol=0.01)


def test_ideal_chip_has_no_faults():
    weight = np.linspace(-1, 1, 100, dtype=np.float32)
    device = LogNormal(stuck_low=0.5, stuck_high=0.5)
    np.testing.assert_array_equal(program_weight(weight, device, **{**HERE, "chip": -1}), weight)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"stuck_low": 0.6, "stuck_high": 0.5}, "more than 1 together"),
        ({"stuck_low": -0.1}, "parameter 'stuck_low'"),
        ({"stuck_high": float("nan")}, "parameter 'stuck_high'"),
    ],
)
def test_impossible_rates(rates, message):
    with pytest.raises(UsageError, match=message):
        make_device("lognormal", **rates)


@pytest.mark.parametrize("copies", [0, -1, 2**16 + 1])
def test_impossible_copies(copies):
    with pytest.raises(ModelError, match=f"copies is {copies}; it must be between 1 and 65536"):
        program_weight(np.ones(3, np.float32), LogNormal(), **HERE, copies=copies)


def test_draws_that_know_no_faults_are_refused():
    class Normals(Draws):
        def normals(self, purpose=Purpose.PROGRAMMING):  # noqa: ARG002
            return np.zeros(3, np.float32)

    from cnpass.runtime.numerics import ExactMath

    with pytest.raises(UsageError, match="stuck_low and stuck_high cannot be simulated here"):
        LogNormal(stuck_low=0.1).program(np.ones(3, np.float32), Normals(), ExactMath(np))
