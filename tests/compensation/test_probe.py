"""Probe compensation: equal to a computation by hand, exact where it can be, and a help where it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from cnpass.compensation.kinds.probe import MOST_FEATURES, PROBES
from cnpass.compensation.overhead import overhead, weight_keys
from cnpass.document import Document
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.insert_compensation import InsertCompensation
from cnpass.training.lift import Lifted, lift

RIDGE, EPSILON = 1.01, 1e-5


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _smooth(*shape: int, seed: int) -> torch.Tensor:
    """Random images whose neighbouring pixels are alike, as those of the world are."""
    noise = torch.from_numpy(_random(*shape, seed=seed))
    pixels = functional.avg_pool2d(noise, 7, stride=1, padding=3)
    return (pixels + 0.02 * noise) / pixels.std() + 0.5


def _probed(single, x_shape, w_shape, ratio: float = 0.5, **attributes: Any) -> tuple[Lifted, np.ndarray]:
    """A convolution with probes, with its kernel; random values where training would put some."""
    kernel = _random(*w_shape) / 5
    document = Document.from_proto(single("Conv", x_shape, kernel, **attributes))
    InsertCompensation(node="site", kind="probe", ratio=ratio)(document)
    return lift(document), kernel


def _by_hand(module: Lifted, y: torch.Tensor, step: int, reference, pooled) -> np.ndarray:
    """The formula, sample by sample and channel by channel, in float64."""
    weights = {
        key.split(".", 1)[1]: w.detach().double().numpy() for key, w in module.weights.items() if "." in key
    }
    trust = weights["trust"].ravel()
    generator = weights["generator.weight"].reshape(len(weights["generator.weight"]), -1)
    result = np.empty(y.shape)
    at = (slice(None), *[slice(None, None, step)] * (y.ndim - 2))
    for n, sample in enumerate(y.double().numpy()):
        features = np.tensordot(generator, pooled[n], 1)
        probes = features[at].reshape(len(features), -1)
        for c, plane in enumerate(sample):
            seen = plane[at[1:]].ravel()
            error = reference[n, c].ravel() - seen
            correction = np.full(plane.shape, error.mean())
            error, level = error - error.mean(), seen - seen.mean()
            slopes = []
            for values in probes:
                centred = values - values.mean()
                slopes.append([_slope(target, centred) for target in (error, level)])
                error, level = error - slopes[-1][0] * centred, level - slopes[-1][1] * centred
            own = _slope(error, level)
            for feature, values, (of_error, of_level) in zip(features, probes, slopes, strict=True):
                correction += (of_error - own * of_level) * (feature - values.mean())
            result[n, c] = plane + trust[c] * (correction + own * (plane - seen.mean()))
    return result


def _slope(target: np.ndarray, seen: np.ndarray) -> float:
    return (target * seen).mean() / (RIDGE * (seen**2).mean() + EPSILON)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "attributes", "step"),
    [
        ((2, 3, 30, 30), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, 5),
        ((2, 2, 21), (3, 2, 4), {}, 3),
        ((2, 3, 5, 6), (2, 3, 1, 1), {}, 1),
    ],
)
def test_the_nodes_compute_the_formula(single, x_shape, w_shape, attributes, step) -> None:
    module, kernel = _probed(single, x_shape, w_shape, **attributes)
    with torch.no_grad():
        for number, key in enumerate(sorted(module.weights)):
            weight = module.weights[key]
            weight.add_(torch.from_numpy(_random(*weight.shape, seed=number) / 10))
    x = torch.from_numpy(_random(*x_shape, seed=1))
    convolve = functional.conv1d if len(x_shape) == 3 else functional.conv2d
    pool = functional.avg_pool1d if len(x_shape) == 3 else functional.avg_pool2d
    padding = attributes.get("pads", [0])[0]
    varied = torch.from_numpy(kernel * np.exp(_random(*w_shape, seed=9) / 2))
    y = convolve(x, varied, padding=padding)
    own = next(w for key, w in module.weights.items() if key.endswith("reference.weight"))
    reference = convolve(x, own, stride=step, padding=padding).detach().double().numpy()
    window = w_shape[2] if len(x_shape) == 3 else tuple(w_shape[2:])
    pooled = pool(x, window, stride=1, padding=padding, count_include_pad=False).double().numpy()
    expected = _by_hand(module, y, step, reference, pooled)
    found = module(x, weights={"w": varied})[0].detach().numpy()
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=2e-4, atol=2e-4)  # a Relu ends the model


def test_a_wrong_gain_and_an_offset_are_taken_away(single) -> None:
    module, kernel = _probed(single, (4, 1, 28, 28), (6, 1, 5, 5))
    x = _smooth(4, 1, 28, 28, seed=2)
    gain = torch.tensor([0.4, 0.7, 1.0, 1.5, 2.0, 3.0]).reshape(-1, 1, 1, 1)
    true = functional.conv2d(x, torch.from_numpy(kernel))
    found = module(x, weights={"w": torch.from_numpy(kernel) * gain})[0]
    scale = true.std()
    assert (found - true.clamp(min=0)).abs().max() < 0.05 * scale
    assert (gain[:, 0] * true - true).abs().max() > scale


def test_untrained_it_takes_away_most_of_the_error_of_varied_filters_on_images(single) -> None:
    module, kernel = _probed(single, (32, 3, 32, 32), (6, 3, 5, 5), ratio=1.0)
    x = _smooth(32, 3, 32, 32, seed=3)
    kernel = torch.from_numpy(kernel)
    true = functional.conv2d(x, kernel).clamp(min=0)
    ratios = []
    for chip in range(20):
        varied = kernel * torch.from_numpy(np.exp(0.5 * _random(*kernel.shape, seed=100 + chip)))
        before = functional.conv2d(x, varied).clamp(min=0) - true
        after = module(x, weights={"w": varied})[0].detach() - true
        ratios.append(float(after.square().mean() / before.square().mean()))
    assert max(ratios) < 0.7
    assert np.mean(ratios) < 0.4


def test_samples_do_not_see_each_other(single) -> None:
    module, kernel = _probed(single, ("n", 3, 14, 14), (4, 3, 3, 3))
    varied = {"w": torch.from_numpy(kernel * np.exp(_random(*kernel.shape, seed=5) / 2))}
    x = torch.from_numpy(_random(5, 3, 14, 14, seed=1))
    together = module(x, weights=varied)[0]
    alone = torch.cat([module(x[i : i + 1], weights=varied)[0] for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_without_samples_stays_one(single, ort) -> None:
    document = Document.from_proto(single("Conv", ("n", 3, 20, 17), _random(4, 3, 3, 3)))
    InsertCompensation(node="site", kind="probe")(document)
    assert ort(document.to_proto(), [_random(0, 3, 20, 17)])[0].shape == (0, 4, 18, 15)


def test_in_the_oldest_ir_versions_every_initializer_is_a_graph_input(single) -> None:
    model = single("Conv", (1, 3, 9, 9), _random(4, 3, 3, 3), 9)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3, 3, 3)))
    document = Document.from_proto(model)
    InsertCompensation(node="site", kind="probe")(document)
    onnx.checker.check_model(document.to_proto(), full_check=True)


def test_an_image_of_one_colour_does_no_harm(single) -> None:
    module, kernel = _probed(single, (2, 3, 14, 14), (4, 3, 3, 3))
    x = torch.ones(2, 3, 14, 14) * torch.tensor([0.0, 3.0]).reshape(-1, 1, 1, 1)
    true = functional.conv2d(x, torch.from_numpy(kernel)).clamp(min=0)
    found = module(x, weights={"w": torch.from_numpy(kernel * 1.7)})[0]
    torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "ratio", "width"), [(1, 1.0, 1), (3, 1.0, 3), (16, 1.0, MOST_FEATURES), (16, 0.1, 1)]
)
def test_there_are_few_features(single, channels: int, ratio: float, width: int) -> None:
    document = Document.from_proto(single("Conv", (1, channels, 24, 24), _random(8, channels, 3, 3)))
    InsertCompensation(node="site", kind="probe", ratio=ratio)(document)
    shapes = {key: lift(document).weights[key].shape for key in weight_keys(document)}
    assert shapes["h.generator.weight"] == (width, channels, 1, 1)
    found, layer, places = overhead(document), 8 * channels * 9, 22 * 22
    assert found.params == pytest.approx((layer + width * channels + 8) / layer)
    products = layer * PROBES**2 + width * channels * places + 8 * width * places
    assert found.macs == pytest.approx(products / (layer * places))


@pytest.mark.parametrize(
    ("op", "x_shape", "w_shape", "attributes", "message"),
    [
        ("MatMul", (2, 6, 7), (7, 5), {}, "need a convolution"),
        (
            "Conv",
            (1, 3, 9, 9),
            (4, 3, 3, 3),
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            "need explicit pads",
        ),
        ("Conv", (1, 3, "h", "w"), (4, 3, 3, 3), {}, "need to know the size"),
    ],
)
def test_where_there_can_be_none_it_says_why(single, op, x_shape, w_shape, attributes, message) -> None:
    document = Document.from_proto(single(op, x_shape, _random(*w_shape), **attributes))
    with pytest.raises(PassPreconditionError, match=f"'site': probes {message}"):
        InsertCompensation(node="site", kind="probe")(document)
