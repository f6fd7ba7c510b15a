"""Injected variation and the Lipschitz penalty against independent computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from cnpass.document import Document
from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import DeviceModel, LogNormal, make_device
from cnpass.training import lipschitz
from cnpass.training.crossbars import Crossbars
from cnpass.training.lift import lift
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


def _by_loops(w: np.ndarray, norm: float) -> float:
    """The penalty of one matrix [out, in], entry by entry of the smaller Gram matrix, in float64."""
    rows = [[float(v) for v in row] for row in (w if w.shape[0] <= w.shape[1] else w.T)]
    total = 0.0
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            product = sum(a * b for a, b in zip(first, second, strict=True))
            total += (product - (norm**2 if i == j else 0.0)) ** 2
    return total


def test_value_and_gradient_for_a_whole_network_are_those_of_loops_and_differences(convnet) -> None:
    """Layers as the lift names them, one of them a grouped convolution, against NumPy alone."""
    rng = np.random.default_rng(4)
    convnet.graph.node[3].attribute.append(helper.make_attribute("group", 2))
    grouped = rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    convnet.graph.initializer[2].CopyFrom(numpy_helper.from_array(grouped, "conv2.weight"))
    module, keys = lift(Document.from_proto(convnet)).double(), {"conv1.weight", "conv2.weight", "fc.weight"}
    values = {key: module.weights[key].detach().numpy().copy() for key in keys}

    def expected() -> float:
        first, second = values["conv1.weight"].reshape(6, 9), values["conv2.weight"].reshape(2, 4, 27)
        return sum(_by_loops(matrix, 0.34) for matrix in (first, *second, values["fc.weight"]))

    total = lipschitz.penalty((m for _, m in module.matrices(keys)), 0.34)
    assert total.item() == pytest.approx(expected(), rel=1e-10)
    total.backward()
    for key in sorted(keys):
        flat, gradient = values[key].reshape(-1), module.weights[key].grad.numpy().reshape(-1)
        for position in rng.choice(flat.size, 4, replace=False):
            kept, step = flat[position], 1e-5
            sides = []
            for side in (step, -step):
                flat[position] = kept + side
                sides.append(expected())
            flat[position] = kept
            slope = (sides[0] - sides[1]) / (2 * step)
            assert gradient[position] == pytest.approx(slope, rel=1e-6, abs=1e-6), key


@pytest.mark.parametrize(
    "device",
    [LogNormal(sigma=0.3), LogNormal(sigma=0.5), LogNormal(sigma=0.5, stuck_low=0.05)]
    + [make_device(name, sigma=0.2) for name in ("gaussian", "proportional")],
    ids=lambda device: f"{device.name}-{device.sigma}-{device.stuck_low}",
)
def test_lambda_is_that_of_moments_over_draws(device: DeviceModel) -> None:
    """2.5 million draws in 100 parts, whose spread gives the standard error; 4 of it is once in 16,000."""
    ones = {"w": torch.ones(25_000, dtype=torch.float64)}
    generator, crossbars = torch.Generator().manual_seed(7), _crossbars(device)
    draws = np.stack([crossbars.draw(ones, generator)["w"].numpy() for _ in range(100)])
    parts = 1 / (draws.mean(1) + 3 * draws.std(1))
    error = parts.std(ddof=1) / np.sqrt(len(parts))
    whole = 1 / (draws.mean() + 3 * draws.std())
    assert error < 2e-3 * whole
    assert lipschitz.target_norm(device) == pytest.approx(whole, abs=4 * error)


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


COPIED = [
    LogNormal(sigma=0.5),
    LogNormal(sigma=0.5, stuck_low=0.05, stuck_high=0.02),
    make_device("conductance", stuck_low=0.05),
    make_device("pcm"),
]


@pytest.mark.parametrize("device", COPIED, ids=lambda device: f"{device.name}-{device.stuck_low}")
def test_copies_share_their_variation(device: DeviceModel) -> None:
    """The mean of three devices has their mean and a third of their variance, and so has lambda."""
    crossbars = replace(_crossbars(device), copies={"w": Copies(3)})
    w = {"w": torch.cat([torch.full((200_000,), -0.7), torch.ones(1)]).requires_grad_()}
    chip = crossbars.draw(w, torch.Generator().manual_seed(1))["w"]
    assert chip.shape == w["w"].shape
    error = float(device.std(-0.7, 1.0)) / math.sqrt(3)
    assert chip[:-1].mean().item() == pytest.approx(float(device.mean(-0.7, 1.0)), abs=4e-2 * error)
    assert chip[:-1].std().item() == pytest.approx(error, rel=2e-2)
    chip.sum().backward()
    assert torch.isfinite(w["w"].grad).all()
    mean, deviation = float(device.mean(1.0)), float(device.std(1.0)) / math.sqrt(3)
    assert lipschitz.target_norm(device, k=2.0, copies=3) == pytest.approx(2 / (mean + 3 * deviation))


@pytest.mark.parametrize("device", COPIED, ids=lambda device: f"{device.name}-{device.stuck_low}")
def test_some_rows_have_one_copy_more(device: DeviceModel) -> None:
    """Two rows of five vary by a third of a device's variance, the others by a half; the mean is the same."""
    crossbars = replace(_crossbars(device), copies={"w": Copies(2, 2, 5)}, row_axes={"w": (1, 2)})
    w = {"w": torch.full((40_000, 3, 5), -0.7).index_fill(0, torch.tensor(0), 1.0).requires_grad_()}
    chip = crossbars.draw(w, torch.Generator().manual_seed(1))["w"]
    held = chip.detach()[1:].reshape(-1, 5)
    deviation = float(device.std(-0.7, 1.0))
    for columns, count in ((held[:, :2], 3), (held[:, 2:], 2)):
        error = deviation / math.sqrt(count)
        assert columns.mean().item() == pytest.approx(float(device.mean(-0.7, 1.0)), abs=4e-2 * error)
        assert columns.std().item() == pytest.approx(error, rel=2e-2)
    chip.sum().backward()
    assert torch.isfinite(w["w"].grad).all()


@pytest.mark.parametrize("device", COPIED, ids=lambda device: f"{device.name}-{device.stuck_low}")
def test_a_numbered_chip_holds_the_same_in_any_type(device: DeviceModel) -> None:
    weight = torch.linspace(-1, 1, 40).reshape(5, 8)
    narrow, wide = (_crossbars(device).chip({"w": w}, 5, seed=1)["w"] for w in (weight, weight.double()))
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert torch.equal(narrow.double(), wide)


def test_strength_scales_sigma_and_zero_is_the_ideal_chip() -> None:
    w = {"w": torch.ones(200_000)}
    half = _crossbars(LogNormal(sigma=0.6)).draw(w, torch.Generator().manual_seed(1), 0.5)
    assert half["w"].log().std().item() == pytest.approx(0.3, rel=1e-2)
    none = _crossbars(LogNormal(sigma=0.6)).draw(w, torch.Generator().manual_seed(1), 0.0)
    assert torch.equal(none["w"], w["w"])


def test_censored_deviates_end_where_they_are_told_and_the_others_stay() -> None:
    crossbars, w = _crossbars(LogNormal(sigma=0.5)), {"w": torch.ones(200_000)}
    whole, censored = (
        crossbars.draw(w, torch.Generator().manual_seed(1), 0.8, censor)["w"].log() / (0.5 * 0.8)
        for censor in (None, 1.0)
    )
    above = whole > 1.0
    torch.testing.assert_close(censored[~above], whole[~above])
    torch.testing.assert_close(censored[above], torch.ones(int(above.sum())))
    expected = 0.5 * math.erfc(1 / math.sqrt(2))
    error = math.sqrt(expected * (1 - expected) / len(above))
    assert above.float().mean().item() == pytest.approx(expected, abs=4 * error)


def test_gradients_flow_through_censored_factors_too() -> None:
    w = torch.full((1000,), 2.0, requires_grad=True)
    chip = _crossbars(LogNormal()).draw({"w": w}, torch.Generator().manual_seed(1), censor=0.0)["w"]
    assert chip.max().item() == 2.0
    chip.sum().backward()
    torch.testing.assert_close(w.grad, (chip / w).detach())


def test_weights_on_crossbars_are_clipped_at_their_deviations_and_others_never() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(50, 40, generator=generator) for name in ("w", "frozen", "digital")}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    crossbars = Crossbars(LogNormal(), {"w": 0, "frozen": 1}, {})
    crossbars.clip(tensors, ["w", "digital"], 1.5)
    largest = 1.5 * np.sqrt(np.mean(np.square(before["w"].numpy(), dtype=np.float64)))
    np.testing.assert_allclose(tensors["w"], np.clip(before["w"].numpy(), -largest, largest), rtol=1e-5)
    assert 0 < (tensors["w"] != before["w"]).float().mean() < 0.3
    assert all(torch.equal(tensors[name], before[name]) for name in ("frozen", "digital"))


def test_alike_weights_and_zeros_survive_clipping() -> None:
    tensors = {"w": torch.tensor([0.3, -0.3, 0.3]), "zero": torch.zeros(4), "one": torch.tensor([[2.0]])}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    Crossbars(LogNormal(), dict.fromkeys(tensors, 0), {}).clip(tensors, list(tensors), 1.01)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


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
