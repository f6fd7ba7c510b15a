"""Convolutions that the library computes square by square (runtime/native/winograd.h)."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.runtime.devices import LogNormal
from cnpass.runtime.periphery import Periphery
from cnpass.runtime.reference import analog_conv

NODE = {"device": "lognormal", "sigma": 0.4, "seed": 5, "stream": 2}
WHERE = {"device": LogNormal(sigma=0.4), "seed": 5, "stream": 2}
SAME = {"pads": [1] * 4}
NOISE = {"read_noise": 0.01, "output_range": 20.0}
KINDS: dict[str, dict] = {
    "adc": {"adc_bits": 9},
    "tiles": {"adc_bits": 9, "tile_rows": 288},  # of 32 channels
    "tiles that cut channels": {"adc_bits": 8, "tile_rows": 100},
    "noise": {"read_noise": 0.01},
    "noise in tiles": {"read_noise": 0.01, "tile_rows": 130},
    "all": {"dac_bits": 7, "input_range": 2.5, "adc_bits": 8, "tile_rows": 160, "read_noise": 0.02},
}


def floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def assert_close(y: np.ndarray, expected: np.ndarray) -> None:
    """The same values that are no numbers, and the others to rounding."""
    assert y.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    y, expected = y[finite], expected[finite]
    assert np.abs(y - expected).max(initial=0) <= 2e-6 * np.abs(expected).max(initial=0)


def reference(x, w, b=None, **attributes) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return analog_conv(x, w, b, **WHERE, chip=1, **attributes)


@pytest.mark.parametrize(
    ("x", "w", "attributes", "squares"),
    [
        ((1, 32, 8, 8), (32, 32, 3, 3), SAME, True),
        ((1, 32, 9, 7), (32, 32, 3, 3), SAME, True),
        ((1, 256, 2, 2), (256, 256, 3, 3), SAME, True),
        ((1, 64, 32, 32), (64, 32, 3, 3), SAME | {"group": 2}, True),
        ((1, 3, 32, 32), (64, 3, 3, 3), SAME, False),  # transforms cost more than they save
        ((1, 64, 8, 8), (64, 1, 3, 3), SAME | {"group": 64}, False),
        ((1, 256, 1, 1), (256, 256, 3, 3), SAME, False),  # three of four outputs for nothing
        ((1, 64, 8, 8), (64, 64, 3, 3), SAME | {"tile_rows": 288} | NOISE, True),
        (
            (1, 64, 8, 8),
            (64, 64, 3, 3),
            SAME | {"tile_rows": 60} | NOISE,
            False,
        ),  # too often transformed back
        ((1, 32, 8, 8), (32, 32, 3, 3), SAME | {"strides": [1, 2]}, False),
        ((1, 32, 8, 8), (32, 32, 3, 3), SAME | {"dilations": [2, 1]}, False),
        ((1, 32, 8, 8), (32, 32, 3, 5), SAME, False),
        ((1, 32, 8), (32, 32, 3), {}, False),
        ((1, 32, 3, 8, 8), (32, 32, 3, 3, 3), {}, False),
    ],
)
def test_where_it_pays(run_op, x, w, attributes, squares):
    """Elsewhere each output is a sum of products, and the answer to an impulse is the weights' own bits."""
    weight = floats(np.random.default_rng(0), *w)
    impulse = np.zeros(x, np.float32)
    impulse[(0, 0, *(size // 2 for size in x[2:]))] = 1.0
    y = run_op("AnalogConv", {"x": impulse, "w": weight, "b": None}, chip=-1, **NODE, **attributes)
    exact = np.isin(y, [0, *weight[:, 0].ravel()])
    assert exact.all() != squares


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((3, 20, 9, 8), (30, 20, 3, 3), SAME),
        ((2, 20, 3, 14), (17, 20, 3, 3), {}),  # a single row of outputs, and an odd number of filters
        ((2, 64, 14, 3), (64, 64, 3, 3), {}),  # a single column
        ((2, 16, 11, 7), (16, 16, 3, 3), {"pads": [0, 2, 3, 1]}),
        ((2, 16, 6, 6), (20, 16, 3, 3), {"auto_pad": "SAME_LOWER"}),
        ((2, 60, 7, 7), (84, 20, 3, 3), SAME | {"group": 3}),
        ((2, 300, 5, 5), (32, 300, 3, 3), SAME),  # a sum over several blocks of channels
        ((1, 16, 8, 8), (700, 16, 3, 3), SAME),  # several blocks of filters
        ((70, 16, 32, 48), (16, 16, 3, 3), SAME),  # images in portions
        ((0, 32, 8, 8), (32, 32, 3, 3), SAME),
    ],
)
def test_particular_shapes(run_op, x, w, attributes):
    generator = np.random.default_rng(0)
    inputs = {"x": floats(generator, *x), "w": floats(generator, *w), "b": floats(generator, w[0])}
    y = run_op("AnalogConv", inputs, chip=1, threads=2, **NODE, **attributes)
    assert_close(y, reference(*inputs.values(), **attributes))


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(run_op, seed):
    generator = np.random.default_rng([7, seed])
    group = int(generator.integers(1, 3))
    channels, filters = generator.integers(16, 60, 2)
    size = generator.integers(3, 30, 2)
    x = floats(generator, int(generator.integers(1, 5)), group * channels, *size)
    w = floats(generator, group * filters, channels, 3, 3)
    attributes = {"group": group, "pads": generator.integers(0, 4, 4).tolist()}
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, chip=1, **NODE, **attributes)
    assert_close(y, reference(x, w, **attributes))


def assert_agree(y: np.ndarray, expected: np.ndarray, attributes: dict) -> None:
    """Without ADC to rounding; with it at most 1 % of elements differ, each by one step."""
    if not attributes.get("adc_bits"):
        assert_close(y, expected)
        return
    off = np.abs(y - expected)
    near = 3e-6 * np.abs(expected).max()
    assert np.mean(off > near) <= 0.01
    assert off.max() <= attributes["output_range"] / (2 ** (attributes["adc_bits"] - 1) - 1) + near


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((3, 48, 9, 8), (50, 48, 3, 3), SAME),
        ((9, 60, 2, 2), (64, 60, 3, 3), SAME),  # squares of many samples in a block
        ((2, 48, 5, 70), (48, 48, 3, 3), SAME),  # long rows of noise
        ((1, 48, 4, 201), (48, 48, 3, 3), {"pads": [1, 0, 0, 2]}),  # longer than a block of squares
        ((2, 96, 13, 11), (100, 48, 3, 3), SAME | {"group": 2}),
        ((1, 300, 7, 7), (64, 300, 3, 3), {}),
        ((1, 48, 6, 6), (600, 48, 3, 3), SAME),
    ],
)
def test_tiles_converters_and_noise(run_op, x, w, attributes, kind):
    generator = np.random.default_rng(9)
    x, w, b = floats(generator, *x), floats(generator, *w), floats(generator, w[0])
    more = {"output_range": float(np.float32(2.0 * np.sqrt(9 * w.shape[1])))} | KINDS[kind]
    inputs = {"x": x, "w": w, "b": b, "first_sample": np.array(77)}
    for chip in (-1, 1):
        y = run_op("AnalogConv", inputs, chip=chip, threads=2, **NODE, **attributes, **more)
        how = {"periphery": Periphery.from_attributes(more), "first_sample": 77}
        expected = analog_conv(x, w, b, **WHERE, chip=chip, **how, **attributes)
        assert_agree(y, expected, more)


@pytest.mark.parametrize("perm", [(3, 2, 0, 1), (1, 0, 2, 3)])
def test_weight_perm(run_op, perm):
    generator = np.random.default_rng(2)
    effective = (40, 24, 3, 3)
    stored = floats(generator, *(effective[perm.index(axis)] for axis in range(4)))
    x = floats(generator, 2, 24, 10, 10)
    y = run_op("AnalogConv", {"x": x, "w": stored, "b": None}, chip=1, **NODE, weight_perm=list(perm))
    assert_close(y, reference(x, stored, weight_perm=perm))


def test_maps_of_any_size_in_one_session(make_model, make_session):
    """The same node, on the same chip, where it pays and where it does not."""
    generator = np.random.default_rng(8)
    w = floats(generator, 32, 32, 3, 3)
    maps = [floats(generator, 2, 32, *size) for size in ((8, 8), (1, 1), (9, 8), (1, 2))]
    inputs = {"x": maps[0], "w": w, "b": None, "chip": np.array(0)}
    session = make_session(make_model("AnalogConv", inputs, {"x", "chip"}, NODE | SAME))
    for x in (*maps, *maps):
        assert_close(session.run(None, {"x": x, "chip": np.array(1)})[0], reference(x, w, **SAME))


CASE = ((4, 24, 10, 11), (30, 24, 3, 3))
ODD = (np.nan, np.inf, -np.inf, np.float32(3e38))


@pytest.mark.parametrize("odd", ODD)
def test_odd_inputs_stay_where_they_are(run_op, odd):
    """Only outputs whose window holds the value see it; those of other samples have the same bits."""
    generator = np.random.default_rng(3)
    x, w = (floats(generator, *shape) for shape in CASE)
    clean = run_op("AnalogConv", {"x": x, "w": w, "b": None}, chip=1, threads=2, **NODE, **SAME)
    x[1, 3, 4, 5] = x[3, 0, 0, 0] = odd
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, chip=1, threads=2, **NODE, **SAME)
    expected = reference(x, w, **SAME)
    assert np.array_equal(y[[0, 2]], clean[[0, 2]])
    assert_close(y[1, :, 3:6, 4:7], expected[1, :, 3:6, 4:7])
    assert_close(y[3, :, :2, :2], expected[3, :, :2, :2])
    y[1, :, 3:6, 4:7] = expected[1, :, 3:6, 4:7] = 0
    y[3, :, :2, :2] = expected[3, :, :2, :2] = 0
    assert_close(y, expected)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("perm", [None, (1, 0, 2, 3)])
def test_odd_weights_stay_in_their_filter(run_op, odd, perm):
    generator = np.random.default_rng(4)
    x, w = (floats(generator, *shape) for shape in CASE)
    node = NODE | {"device": "programmed"} | ({"weight_perm": perm} if perm else {})

    def run(weight: np.ndarray) -> np.ndarray:
        stored = weight if perm is None else weight.transpose(perm)
        return run_op("AnalogConv", {"x": x, "w": np.ascontiguousarray(stored), "b": None}, **node, **SAME)

    clean = run(w)
    w[7, 5, 1, 1] = w[29, 0, 0, 2] = odd
    y, others = run(w), [i for i in range(30) if i not in (7, 29)]
    assert np.array_equal(y[:, others], clean[:, others])
    with np.errstate(invalid="ignore", over="ignore"):
        expected = analog_conv(x, w, device=None, chip=0, **SAME)
    assert_close(y[:, [7, 29]], expected[:, [7, 29]])


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e14, 1e15, 1e36])
def test_any_magnitude(run_op, scale):
    """Finite sums of the products are finite outputs, however large the inputs or the weights."""
    generator = np.random.default_rng(5)
    x, w = (floats(generator, *shape) for shape in CASE)
    factor = np.float32(scale)
    for values in ((x * factor, w), (x, w * factor)):
        y = run_op("AnalogConv", {"x": values[0], "w": values[1], "b": None}, chip=1, **NODE, **SAME)
        assert_close(y, reference(*values, **SAME))


def test_converted_inputs(run_op):
    """The DAC comes first: infinities saturate, and only NaN is odd behind it."""
    generator = np.random.default_rng(6)
    x, w = (floats(generator, *shape) for shape in CASE)
    x[0, 2, 4, 4], x[1, 2, 4, 4] = np.inf, np.nan
    dac = {"dac_bits": 6, "input_range": 2.0}
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, chip=1, **NODE, **SAME, **dac)
    assert_close(y, reference(x, w, periphery=Periphery.from_attributes(dac), **SAME))


@pytest.mark.parametrize("kind", KINDS)
def test_odd_values_in_tiles(run_op, kind):
    """NaN and infinities come out as in the reference; other samples and filters keep their bits."""
    generator = np.random.default_rng(10)
    x, w = floats(generator, 3, 48, 8, 8), floats(generator, 50, 48, 3, 3)
    more = {"output_range": 30.0} | KINDS[kind]
    clean = run_op("AnalogConv", {"x": x, "w": w, "b": None}, chip=1, **NODE, **SAME, **more)
    x[1, 20, 4, 4], w[5, 30, 1, 1], w[6, 0, 0, 0] = np.nan, np.nan, np.inf
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, chip=1, **NODE, **SAME, **more)
    expected = reference(x, w, periphery=Periphery.from_attributes(more), **SAME)
    others = [i for i in range(50) if i not in (5, 6)]
    assert np.array_equal(y[[0, 2]][:, others], clean[[0, 2]][:, others])
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    assert_agree(y[finite], expected[finite], more)


def test_one_order_of_weights_with_and_without_noise(make_model, make_session):
    """A weight programmed upstream stays packed from chip to chip; the ideal one has no noise."""
    generator = np.random.default_rng(11)
    x, w = floats(generator, 2, 48, 8, 8), floats(generator, 50, 48, 3, 3)
    inputs = {"x": x, "w": w, "b": None, "chip": np.array(0)}
    more = {"tile_rows": 100, "read_noise": 0.01, "output_range": 30.0}
    attributes = {"device": "programmed", "seed": 5, "stream": 2} | SAME | more
    session = make_session(make_model("AnalogConv", inputs, {"x", "chip"}, attributes))
    for chip in (-1, 3, -1, 4):
        y = session.run(None, {"x": x, "chip": np.array(chip)})[0]
        where = {"device": None, "seed": 5, "stream": 2, "chip": chip}
        assert_close(y, analog_conv(x, w, **where, periphery=Periphery.from_attributes(more), **SAME))
