"""Pairs of conductances: published figures, presets, time, levels."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.errors import UsageError
from cnpass.runtime import program_weight
from cnpass.runtime.devices import (
    Conductance,
    PairModel,
    Pcm,
    Reram,
    TorchDraws,
    device_from_attributes,
    device_names,
    get_device,
    make_device,
)

CHIP = {"seed": 11, "stream": 1, "chip": 4}
COUNT = 2**20
PRESETS = [f"{name}:{preset}" for name in device_names() for preset in get_device(name).presets]


def devices_of(device, level: float) -> np.ndarray:
    """Programmed weights of one level, the full scale being 1."""
    weight = np.full(COUNT + 1, level, np.float32)
    weight[0] = 1.0
    return program_weight(weight, device, **CHIP)[1:].astype(np.float64)


def check_moments(device, level: float) -> None:
    programmed = devices_of(device, level)
    mean, std = float(device.mean(level, 1.0)), float(device.std(level, 1.0))
    assert abs(programmed.mean() - mean) < 5 * std / np.sqrt(COUNT)
    squares = (programmed - mean) ** 2
    assert abs(squares.mean() - std**2) < 5 * squares.std() / np.sqrt(COUNT)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    """Each is legal, comes back from a node's attributes, and has the moments that it says."""
    device = make_device(name)
    assert isinstance(device, PairModel)
    attributes = {key: float(np.float32(value)) for key, value in device.attributes().items()}
    again = device_from_attributes({"device": device.name, **attributes})
    assert again.attributes() == pytest.approx(device.attributes())
    check_moments(device, 0.4)


def test_presets_are_named_in_errors():
    with pytest.raises(UsageError, match="device 'pcm' has no preset 'x'; it has: joshi, crosssim, hermes-1"):
        make_device("pcm:x")
    with pytest.raises(UsageError, match="device 'lognormal' has no preset 'x'; it has: none"):
        make_device("lognormal:x")
    assert make_device("reram:wan-1d", t=5.0).attributes()["c0"] == 0.701


@pytest.mark.parametrize("device", [Pcm(t=0.0), Pcm(t=86400.0), Pcm(t=3e7, compensated_nu=0.06)])
@pytest.mark.parametrize("level", [-0.03, 0.5, 1.0])
def test_pcm_over_time(device, level):
    """A time of 0 is legal; drift and its compensation follow the closed form at every conductance."""
    check_moments(device, level)


def test_pcm_drifts_without_a_sign():
    """Both devices of a pair lose conductance: weights of either sign shrink, and zero stays."""
    late = Pcm(t=1e7, program_scale=0.0, read_scale=0.0)
    for level in (-0.5, 0.5):
        kept = devices_of(late, level) / level
        assert 0.3 < kept.mean() < 0.6
        assert kept.max() <= 1
    noisy = devices_of(Pcm(t=1e7), 0.0)
    assert abs(noisy.mean()) < 5 * noisy.std() / np.sqrt(COUNT)


def test_pcm_published_points():
    """Programming noise at half of the range: both fits of the figure give 0.95 uS, to 0.3 %."""
    at = np.array([0.5])
    quiet = {"drift_scale": 0.0, "read_scale": 0.0}
    ours, other = (
        np.sqrt(device.conductance_moments(at)[1])
        for device in (Pcm(**quiet), make_device("pcm:crosssim", on_off=1e6))
    )
    np.testing.assert_allclose(ours, 0.26348 + 1.9650 / 2 - 1.1731 / 4, rtol=1e-6)
    np.testing.assert_allclose(other, ours, rtol=3e-3)


def test_reram_published_points():
    """2.02 uS at 20 uS, 1 second after programming; the noise scales with g_max, not with aihwkit's 25 uS."""
    for g_max in (25.0, 40.0):
        device = Reram(g_max=g_max)
        deviation = np.sqrt(device.conductance_moments(np.array([0.5]))[1])
        np.testing.assert_allclose(deviation, 2.023 * g_max / 40, rtol=2e-3)


def test_reram_relaxes():
    shifted = Reram(t=1e6, shift=-0.1, relaxation=0.4, relaxation_rate=0.05)
    check_moments(shifted, 0.5)
    assert shifted.std(0.5, 1.0) > Reram().std(0.5, 1.0)


@pytest.mark.parametrize("levels", [2, 5, 16])
def test_levels(levels):
    """Without noise a weight is one of the levels, the nearest, with its sign."""
    weight = np.linspace(-1, 1, 1001, dtype=np.float32)
    programmed = program_weight(weight, Conductance(levels=levels, noise=0.0), **CHIP)
    steps = levels - 1
    nearest = np.sign(weight) * np.floor(np.abs(weight) * np.float32(steps) + np.float32(0.5)) / steps
    np.testing.assert_allclose(programmed, nearest, atol=1e-6)
    assert len(np.unique(np.abs(programmed).round(5))) == levels


def test_levels_are_whole():
    with pytest.raises(UsageError, match="parameter 'levels'"):
        make_device("conductance", levels=2.5)


def test_levels_let_gradients_through():
    torch = pytest.importorskip("torch")
    weight = torch.linspace(-1, 1, 101, requires_grad=True)
    draws = TorchDraws(weight, torch.Generator().manual_seed(0))
    programmed = Conductance(levels=4, noise=0.0).program(weight, draws, torch)
    (gradient,) = torch.autograd.grad(programmed[1:50].sum(), weight)
    np.testing.assert_allclose(gradient[1:50], 1, rtol=1e-5)


def test_one_device_of_a_pair_can_be_stuck():
    """Four faulty cases of a positive weight: its device at either end, and its partner at the high end."""
    device = Conductance(on_off=100.0, levels=65536, noise=0.0, stuck_low=0.1, stuck_high=0.2)
    programmed = devices_of(device, 0.5)
    values, counts = np.unique(programmed.round(3), return_counts=True)
    np.testing.assert_allclose(values, [-1, -0.5, 0, 0.5, 1], atol=2e-3)
    p, low, high = 0.7, 0.1, 0.2
    rates = [low * high, p * high, low * (1 - high) + high * high, p * (1 - high), high * (1 - high)]
    np.testing.assert_allclose(counts / COUNT, rates, atol=3e-3)
