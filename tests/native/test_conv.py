"""AnalogConv against ORT's own Conv and the NumPy reference, both on the programmed weight."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.runtime.devices import LogNormal
from cnpass.runtime.reference import analog_conv, program_weight

NODE = {"device": "lognormal", "sigma": 0.4, "seed": 5, "stream": 2}
DEVICE = LogNormal(sigma=0.4)


def floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def assert_close(y: np.ndarray, expected: np.ndarray) -> None:
    assert y.shape == expected.shape
    assert np.abs(y - expected).max(initial=0) <= 2e-6 * max(1.0, np.abs(expected).max(initial=0))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(25))
def test_random_convolutions(run_op, random_case, axes, seed):
    generator = np.random.default_rng([axes, seed])
    x, w, b, attributes = random_case(generator, axes)
    chip = int(generator.integers(-1, 3))
    threads = int(generator.integers(1, 3))
    y = run_op("AnalogConv", {"x": x, "w": w, "b": b}, chip=chip, threads=threads, **NODE, **attributes)
    programmed = program_weight(w, DEVICE, seed=5, stream=2, chip=chip)
    assert_close(y, run_op("Conv", {"x": x, "w": programmed, "b": b}, chip=None, **attributes))
    assert_close(y, analog_conv(x, w, b, device=DEVICE, seed=5, stream=2, chip=chip, **attributes))


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 300, 5, 5), (3, 300, 3, 3), {}),  # a sum over several blocks, and no whole one at the end
        ((2, 300, 4, 4), (1, 300, 3, 3), {"pads": [1] * 4}),  # the same on the direct path
        ((1, 3, 8, 8), (700, 3, 3, 3), {}),  # several blocks of filters
        ((3, 4, 40, 40), (2, 4, 1, 1), {}),
        ((3, 16, 9, 9), (32, 16, 1, 1), {"strides": [2, 2]}),
        ((2, 6, 7), (6, 1, 3), {"group": 6, "strides": [5]}),
        ((1, 1, 3000), (4, 1, 7), {"strides": [3], "pads": [3, 3]}),
        ((1, 2, 5, 1500), (2, 1, 3, 3), {"group": 2, "pads": [1] * 4}),  # rows longer than what is joined
        ((70, 1, 100, 200), (2, 1, 3, 3), {"pads": [1] * 4}),  # images in portions
        ((1, 1, 4, 4), (5, 1, 2, 2), {"strides": [10**12, 10**12]}),  # a stride that is never taken
        ((1, 1, 1, 1), (1, 1, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ],
)
def test_particular_shapes(run_op, x, w, attributes):
    generator = np.random.default_rng(0)
    inputs = {"x": floats(generator, *x), "w": floats(generator, *w), "b": floats(generator, w[0])}
    y = run_op("AnalogConv", inputs, chip=1, threads=2, **NODE, **attributes)
    expected = analog_conv(*inputs.values(), device=DEVICE, seed=5, stream=2, chip=1, **attributes)
    scale = np.sqrt(np.prod(w[1:]))
    assert_close(y / scale, expected / scale)


def test_dilation_with_same_padding(run_op):
    generator = np.random.default_rng(1)
    inputs = {"x": floats(generator, 2, 3, 11, 9), "w": floats(generator, 4, 3, 3, 2)}
    attributes = {"auto_pad": "SAME_UPPER", "dilations": [2, 3], "strides": [2, 1]}
    y = run_op("AnalogConv", inputs | {"b": None}, **NODE, **attributes)
    assert_close(y, analog_conv(*inputs.values(), device=DEVICE, seed=5, stream=2, chip=0, **attributes))


@pytest.mark.parametrize("perm", [(0, 1, 2, 3), (3, 2, 0, 1), (1, 0, 2, 3)])
@pytest.mark.parametrize("filters", [2, 7])
def test_weight_perm_follows_the_stored_layout(run_op, perm, filters):
    generator = np.random.default_rng(2)
    effective = (filters, 3, 2, 5)
    stored_shape = [0] * 4
    for axis, source in enumerate(perm):
        stored_shape[source] = effective[axis]
    x, stored = floats(generator, 2, 3, 8, 8), floats(generator, *stored_shape)
    y = run_op("AnalogConv", {"x": x, "w": stored, "b": None}, chip=4, **NODE, weight_perm=list(perm))
    programmed = program_weight(stored, DEVICE, seed=5, stream=2, chip=4)
    plain = np.ascontiguousarray(programmed.transpose(perm))
    assert_close(y, run_op("Conv", {"x": x, "w": plain, "b": None}, chip=None))


@pytest.mark.parametrize("attributes", [{}, {"pads": [1] * 4}, {"group": 3}])
def test_empty_batch(run_op, attributes):
    w = np.ones((6, 3 // attributes.get("group", 1), 3, 3), np.float32)
    x = np.ones((0, 3, 8, 8), np.float32)
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, **NODE, **attributes)
    assert y.shape[:2] == (0, 6)


def test_special_weights_stay_in_their_filter(run_op):
    generator = np.random.default_rng(3)
    x, w = floats(generator, 1, 2, 20, 20), floats(generator, 9, 2, 3, 3)
    clean = run_op("AnalogConv", {"x": x, "w": w, "b": None}, **NODE)
    w[4, 0, 1, 1], w[6, 1, 0, 0] = np.nan, np.inf
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, **NODE)
    others = [i for i in range(9) if i not in (4, 6)]
    assert np.array_equal(y[:, others], clean[:, others])
    assert np.isnan(y[:, 4]).all()
    assert np.isinf(y[:, 6]).all()
