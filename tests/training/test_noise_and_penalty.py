"""Injected variation and the Lipschitz penalty against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnpass.runtime.devices import DeviceModel, LogNormal, make_device
from cnpass.training import lipschitz
from cnpass.training.crossbars import Crossbars
from cnpass.training.schedule import MOST_MACS, epochs_for, epochs_within, one_cycle, ramp, seed_of

LAMBDA = {0.1: 0.765, 0.2: 0.610, 0.3: 0.498, 0.4: 0.410, 0.5: 0.340, 0.6: 0.281, 0.8: 0.189, 1.0: 0.123}


@pytest.mark.parametrize(("sigma", "value"), LAMBDA.items())
def test_lambda_is_that_of_the_table(sigma: float, value: float) -> None:
    assert lipschitz.target_norm(LogNormal(sigma=sigma)) == pytest.approx(value, abs=6e-4)
    assert lipschitz.target_norm(LogNormal(sigma=sigma), k=2.0) == pytest.approx(2 * value, abs=12e-4)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_penalty_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    w = np.random.default_rng(0).normal(size=shape)
    values = np.linalg.svd(w, compute_uv=False)
    got = lipschitz.penalty([torch.from_numpy(w)[None]], 0.34)
    assert got.item() == pytest.approx(float(((values**2 - 0.34**2) ** 2).sum()), rel=1e-10)


def test_the_smaller_gram_matrix_differs_from_the_formula_by_a_constant() -> None:
    rng = np.random.default_rng(1)
    differences = []
    for _ in range(2):
        w = rng.normal(size=(9, 4))
        formula = float(((w @ w.T - 0.34**2 * np.eye(9)) ** 2).sum())
        differences.append(formula - lipschitz.penalty([torch.from_numpy(w)[None]], 0.34).item())
    assert differences == pytest.approx([0.34**4 * 5] * 2, rel=1e-9)


def test_groups_are_separate_matrices_and_gradients_are_right() -> None:
    w = torch.randn(
        2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    total = lipschitz.penalty([w], 0.5)
    parts = [lipschitz.penalty([w[i : i + 1]], 0.5) for i in range(2)]
    assert total.item() == pytest.approx(sum(p.item() for p in parts))
    assert torch.autograd.gradcheck(lambda t: lipschitz.penalty([t], 0.5), w)


def test_a_scaled_isometry_costs_nothing() -> None:
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    assert lipschitz.penalty([torch.from_numpy(0.7 * q[:4])[None]], 0.7).item() == pytest.approx(0, abs=1e-24)


def _crossbars(device: DeviceModel, columns: int | None = None) -> Crossbars:
    return Crossbars(device, {"w": 0}, {} if columns is None else {"w": columns})


def test_injected_variation_has_the_moments_of_the_device_model() -> None:
    device = LogNormal(sigma=0.5)
    w = {"w": torch.full((400_000,), -2.0), "other": torch.ones(3)}
    chip = _crossbars(device).draw(w, torch.Generator().manual_seed(1))
    assert set(chip) == {"w"}
    assert chip["w"].mean().item() == pytest.approx(float(device.mean(-2.0)), rel=5e-3)
    assert chip["w"].std().item() == pytest.approx(float(device.std(-2.0)), rel=2e-2)


def test_strength_scales_sigma_and_zero_is_the_ideal_chip() -> None:
    w = {"w": torch.ones(200_000)}
    half = _crossbars(LogNormal(sigma=0.6)).draw(w, torch.Generator().manual_seed(1), 0.5)
    assert half["w"].log().std().item() == pytest.approx(0.3, rel=1e-2)
    none = _crossbars(LogNormal(sigma=0.6)).draw(w, torch.Generator().manual_seed(1), 0.0)
    assert torch.equal(none["w"], w["w"])


def test_gradients_flow_through_the_factor() -> None:
    w = torch.tensor([1.0, -3.0], requires_grad=True)
    chip = _crossbars(LogNormal()).draw({"w": w}, torch.Generator().manual_seed(1))["w"]
    chip.sum().backward()
    torch.testing.assert_close(w.grad, (chip / w).detach())


def test_faults_are_drawn_at_their_rates_and_grow_with_the_strength() -> None:
    crossbars = _crossbars(LogNormal(sigma=0.0, stuck_low=0.1, stuck_high=0.2))
    w = {"w": torch.linspace(0.1, 1.0, 100_000)}
    for strength in (1.0, 0.5):
        chip = crossbars.draw(w, torch.Generator().manual_seed(1), strength)["w"]
        low, high = (chip == 0).float().mean(), ((chip == 1) & (w["w"] < 1)).float().mean()
        assert low.item() == pytest.approx(0.1 * strength, abs=5e-3)
        assert high.item() == pytest.approx(0.2 * strength, abs=5e-3)


def test_columns_have_a_full_scale_of_their_own_in_training_too() -> None:
    device = make_device("gaussian", sigma=0.1, scale_floor=0.0)
    w = {"w": torch.tensor([[1.0], [100.0]]).repeat(1, 50_000)}
    chip = _crossbars(device, columns=0).draw(w, torch.Generator().manual_seed(1))["w"]
    assert (chip - w["w"]).std(1).tolist() == pytest.approx([0.1, 10.0], rel=2e-2)
    numbered = _crossbars(device, columns=0).chip(w, 5, seed=1)["w"]
    assert (numbered - w["w"]).std(1).tolist() == pytest.approx([0.1, 10.0], rel=2e-2)


def test_the_ramp_climbs_in_steps_and_holds() -> None:
    levels = [ramp(p, (0.4, 0.7, 1.0), 0.4) for p in (0, 0.19, 0.2, 0.39, 0.4, 0.99)]
    assert levels == [0.4, 0.4, 0.7, 0.7, 1.0, 1.0]
    assert ramp(0.0, (1.0,), 0.4) == 1.0


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    total = 101
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total, cycle_momentum=False)
    for step in range(total):
        progress = step / (total - 1)
        warm, seen = 0.3 * total - 1, schedule.get_last_lr()[0]
        ours = 0.3 * step / warm if step <= warm else 0.3 + 0.7 * (step - warm) / (total - 1 - warm)
        assert one_cycle(min(ours, 1.0)) == pytest.approx(seen, abs=2e-6), progress
        optimizer.step()
        schedule.step()


def test_epochs_follow_the_size_of_the_data_and_of_the_model_or_the_time() -> None:
    assert epochs_for(1000, 128) == 300
    assert epochs_for(60_000, 128) == 8
    assert epochs_for(60_000, 128, macs=int(MOST_MACS / 60_000 / 3)) == 3
    assert epochs_for(60_000, 128, macs=int(MOST_MACS)) == 1
    assert epochs_within(30, 1280, 128, seconds_per_step=0.1) == 30
    assert epochs_within(0.1, 1280, 128, seconds_per_step=0.1) == 1


def test_seeds_differ_by_purpose_and_fit_a_generator() -> None:
    seeds = {seed_of(s, name, e) for s in range(3) for name in ("order", "noise") for e in range(50)}
    assert len(seeds) == 300
    assert all(0 <= s < 2**63 for s in seeds)
