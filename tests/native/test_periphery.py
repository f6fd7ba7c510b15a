"""Tiles, converters and read noise: against the float64 reference, over splits and threads, and in misuse."""

from __future__ import annotations

import itertools
import platform
import re

import numpy as np
import pytest

from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import LogNormal
from cnpass.runtime.periphery import Periphery
from cnpass.runtime.reference import analog_conv, analog_matmul

NODE = {"device": "lognormal", "sigma": 0.4, "seed": 5, "stream": 2}
WHERE = {"device": LogNormal(sigma=0.4), "seed": 5, "stream": 2}
KINDS: dict[str, dict] = {
    "adc": {"adc_bits": 7},
    "tiles": {"adc_bits": 8, "tile_rows": 12},
    "dac": {"dac_bits": 5},
    "both": {"dac_bits": 6, "adc_bits": 6, "tile_rows": 7},
    "noise": {"read_noise": 0.02},
    "noise in tiles": {"read_noise": 0.02, "tile_rows": 9},
    "all": {"dac_bits": 7, "adc_bits": 8, "tile_rows": 11, "read_noise": 0.01},
}


def floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def ranged(kind: str, y: np.ndarray) -> dict:
    """Attributes whose ranges clip a little."""
    ranges = {"input_range": 2.0, "output_range": float(2.5 * np.std(y))}
    return KINDS[kind] | {name: float(np.float32(value)) for name, value in ranges.items()}


def copies_in(tile_rows: int, generator: np.random.Generator) -> Copies:
    """Copies that fit into a tile, in every second case with some for a part of the rows only."""
    count, depth = int(generator.integers(1, 4)), int(generator.integers(2, 5))
    extra = int(generator.integers(1, depth))
    partly = Copies(count, extra, depth)
    return partly if generator.random() < 0.5 and partly.fit(tile_rows) else Copies(count)


def assert_agree(y: np.ndarray, expected: np.ndarray, attributes: dict, tiles: int) -> None:
    """Without ADC to rounding; with it at most 1 % of elements differ, each by one step in a tile or two."""
    assert y.shape == expected.shape
    difference = np.abs(y - expected)
    near = 3e-6 * max(1.0, np.abs(expected).max(initial=0))
    if not attributes.get("adc_bits"):
        assert difference.max(initial=0) <= near
        return
    off = difference > near
    assert np.mean(off) <= max(0.01, 1.5 / max(1, y.size))
    step = attributes["output_range"] / (2 ** (attributes["adc_bits"] - 1) - 1)
    assert difference.max(initial=0) <= step * min(2, tiles) + near


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_random_convolutions(run_op, random_case, axes, seed, kind):
    generator = np.random.default_rng([axes, seed, len(kind)])
    x, w, b, attributes = random_case(generator, axes)
    chip, threads = int(generator.integers(-1, 3)), int(generator.integers(1, 3))
    first = int(generator.integers(0, 2**32 - len(x)))
    copies = copies_in(KINDS[kind].get("tile_rows", 20), generator)
    exact = analog_conv(x, w, b, **WHERE, chip=chip, copies=copies, **attributes)
    more = ranged(kind, exact)
    inputs = {"x": x, "w": w, "b": b, "first_sample": np.array(first)}
    y = run_op(
        "AnalogConv", inputs, chip=chip, threads=threads, **NODE, **copies.attributes(), **attributes, **more
    )
    periphery = Periphery.from_attributes(more)
    expected = analog_conv(
        x, w, b, **WHERE, chip=chip, copies=copies, periphery=periphery, first_sample=first, **attributes
    )
    assert_agree(y, expected, more, len(periphery.tiles(int(np.prod(w.shape[1:])), copies)))


@pytest.mark.parametrize("fed", [(), ("w",)])
@pytest.mark.parametrize("perm", [[1, 0, 2, 3], [0, 3, 1, 2], [2, 0, 3, 1], [3, 2, 1, 0]])
def test_rows_with_extra_copies_are_those_of_the_transposed_weight(run_op, perm, fed):
    """A grouped convolution, whose every group counts its rows from 0; unlike whole copies."""
    generator = np.random.default_rng(perm)
    x, effective = floats(generator, 2, 6, 7, 8), floats(generator, 4, 3, 3, 2)
    stored = np.ascontiguousarray(effective.transpose(np.argsort(perm)))
    how = {"weight_perm": perm, "group": 2}
    for copies in (Copies(1, 2, 7), Copies(3, 5, 18)):
        y = run_op(
            "AnalogConv",
            {"x": x, "w": stored, "b": None},
            chip=3,
            fed=fed,
            **NODE,
            **copies.attributes(),
            **how,
        )
        expected, whole = (
            analog_conv(x, stored, **WHERE, chip=3, copies=each, **how)
            for each in (copies, Copies(copies.count))
        )
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(y - whole).max() > 0.1


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 300, 5, 5), (3, 300, 3, 3), {}),  # tiles of several blocks
        ((2, 300, 4, 4), (1, 300, 3, 3), {"pads": [1] * 4}),  # the same on the direct path
        ((1, 3, 8, 8), (700, 3, 3, 3), {}),  # several blocks of filters
        ((3, 4, 40, 40), (5, 4, 1, 1), {}),  # maps over several blocks of columns
        ((1, 2, 5, 1500), (2, 1, 3, 3), {"group": 2, "pads": [1] * 4}),
        ((70, 1, 100, 200), (2, 1, 3, 3), {"pads": [1] * 4}),  # images in portions, on the direct path
        ((40, 1, 100, 200), (3, 1, 3, 3), {"pads": [1] * 4}),  # and on the other one
    ],
)
@pytest.mark.parametrize("tile_rows", [0, 600, 256, 100])
def test_particular_shapes(run_op, x, w, attributes, tile_rows):
    generator = np.random.default_rng(0)
    x, w, b = floats(generator, *x), floats(generator, *w), floats(generator, w[0])
    scale = np.float32(np.sqrt(np.prod(w.shape[1:])))
    w /= scale
    more = {"tile_rows": tile_rows, "adc_bits": 8, "output_range": 3.0, "read_noise": 0.01}
    inputs = {"x": x, "w": w, "b": b}
    y = run_op("AnalogConv", inputs, chip=1, threads=2, **NODE, **attributes, **more)
    expected = analog_conv(
        *inputs.values(), **WHERE, chip=1, periphery=Periphery.from_attributes(more), **attributes
    )
    assert_agree(y, expected, more, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "w", "rows"),
    [
        ((7,), (7, 5), 1),
        ((13, 257), (257, 33), 1),
        ((97, 600), (600, 530), 1),
        ((2, 3, 4, 20), (20, 9), 1),
        ((24, 20), (20, 9), 6),
        ((8, 3, 20), (20, 700), 2),
    ],
)
def test_matmul(run_op, x, w, rows, kind):
    generator = np.random.default_rng(0)
    x, w = floats(generator, *x), floats(generator, *w) / np.float32(np.sqrt(w[0]))
    for chip in (-1, 2):
        more = ranged(kind, analog_matmul(x, w, **WHERE, chip=chip)) | {"sample_rows": rows}
        inputs = {"x": x, "w": w, "first_sample": np.array(77)}
        y = run_op("AnalogMatMul", inputs, chip=chip, threads=2, **NODE, **more)
        periphery = Periphery.from_attributes(more)
        expected = analog_matmul(x, w, **WHERE, chip=chip, periphery=periphery, first_sample=77)
        assert_agree(y, expected, more, len(periphery.tiles(len(w), Copies())))


SPLITS = {
    "conv": ("AnalogConv", (13, 20, 9, 9), (30, 20, 3, 3), {"pads": [1] * 4}),
    "small images": ("AnalogConv", (13, 70, 2, 2), (300, 70, 3, 3), {"pads": [1] * 4}),
    "squares": ("AnalogConv", (13, 40, 9, 10), (50, 40, 3, 3), {"pads": [1] * 4, "tile_rows": 150}),
    "long rows": (
        "AnalogConv",
        (7, 40, 5, 71),
        (50, 40, 3, 3),
        {"pads": [1] * 4, "tile_rows": 150},
    ),
    "depthwise": ("AnalogConv", (13, 24, 11, 13), (24, 1, 3, 3), {"pads": [1] * 4, "group": 24}),
    "1-D": ("AnalogConv", (13, 3, 400), (5, 3, 7), {"dilations": [2]}),
    "matmul": ("AnalogMatMul", (130, 300), (300, 70), {}),
}
EVERYTHING = {
    "tile_rows": 64,
    "dac_bits": 8,
    "adc_bits": 8,
    "input_range": 2.5,
    "output_range": 20.0,
    "read_noise": 0.01,
}


@pytest.fixture(params=SPLITS)
def case(request, make_model):
    op, x_shape, w_shape, attributes = SPLITS[request.param]
    generator = np.random.default_rng(0)
    x, w = floats(generator, *x_shape), floats(generator, *w_shape)
    inputs = {"x": x, "w": w, **({"b": None} if op == "AnalogConv" else {}), "chip": np.array(0)}
    inputs |= {"first_sample": np.array(0)}
    return make_model(op, inputs, {"x", "chip", "first_sample"}, NODE | EVERYTHING | attributes), x


def test_batch_splits_and_threads(case, make_session):
    model, x = case
    chip, first = np.array(3), 1000
    whole = make_session(model, 1).run(None, {"x": x, "chip": chip, "first_sample": np.array(first)})[0]
    generator = np.random.default_rng(1)
    for threads in (1, 2):
        session = make_session(model, threads)
        for _ in range(4):
            cuts = [0, *np.sort(generator.integers(0, len(x) + 1, 3)), len(x)]
            feeds = [
                {"x": x[a:b], "chip": chip, "first_sample": np.array(first + a)}
                for a, b in itertools.pairwise(cuts)
                if b > a
            ]
            parts = [session.run(None, feed)[0] for feed in feeds]
            assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one instruction set")
def test_instruction_sets_agree(case, make_session, output_with_isa):
    model, x = case
    model.graph.input.pop()  # the first sample, which the other process does not feed
    del model.graph.node[0].input[-1:]
    y = make_session(model).run(None, {"x": x, "chip": np.array(3)})[0]
    for isa in ("v1", "v3"):
        assert_agree(output_with_isa(isa, model, x), y, EVERYTHING, 2)


def test_special_values_stay_where_they_are(run_op):
    """NaN stays NaN, infinities saturate, and other filters and samples do not see them."""
    generator = np.random.default_rng(3)
    x, w = floats(generator, 3, 2, 8, 8), floats(generator, 9, 2, 3, 3)
    node = NODE | EVERYTHING | {"read_noise": 0.0, "dac_bits": 0}
    clean = run_op("AnalogConv", {"x": x, "w": w, "b": None}, **node)
    w[4, 0, 1, 1], w[6, 1, 0, 0] = np.nan, np.inf
    x[1, 0, 4, 4], x[2, 0, 4, 4] = np.nan, np.inf
    y = run_op("AnalogConv", {"x": x, "w": w, "b": None}, **node)
    others = [i for i in range(9) if i not in (4, 6)]
    assert np.array_equal(y[0, others], clean[0, others])
    assert np.isnan(y[:, 4]).all()
    assert np.isnan(y[1, others][:, 2:5, 2:5]).all()
    assert np.isfinite(y[2, others]).all()
    assert np.isin(np.abs(y[0, 6]), [np.float32(20)]).all()


# Statistics of read noise. Bounds are 5 standard deviations of the figure that is checked: a right library
# that drew other numbers would miss one with a probability of 6e-7.


def readings(run_op, **more) -> np.ndarray:
    """Deviations from the noiseless output over that of one reading: [samples, outputs], K = 8."""
    x, w = np.ones((4096, 8), np.float32), np.ones((8, 64), np.float32)
    noise = {"read_noise": 0.05, "output_range": 4.0}
    y = run_op("AnalogMatMul", {"x": x, "w": w}, device="programmed", seed=3, stream=1, **noise, **more)
    return (y - 8.0).astype(np.float64) / (0.05 * 4.0)


def test_read_noise_is_normal(run_op):
    drawn = readings(run_op).ravel()
    n = drawn.size
    assert abs(drawn.mean()) < 5 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(np.mean(drawn**3)) < 5 * np.sqrt(15 / n)
    assert abs(np.mean(drawn**4) - 3) < 5 * np.sqrt(96 / n)
    for point, below in ((-2, 0.022750131948), (-1, 0.158655253931), (0, 0.5), (1, 0.841344746069)):
        assert abs(np.mean(drawn < point) - below) < 5 * np.sqrt(below * (1 - below) / n)


def test_variance_adds_up_over_tiles(run_op):
    drawn = readings(run_op, tile_rows=2)
    assert abs(drawn.var() - 4) < 5 * 4 * np.sqrt(2 / drawn.size)


def test_readings_are_independent(run_op):
    """Those of outputs, samples, chips and tiles."""
    drawn = readings(run_op, chip=0)
    tiled = readings(run_op, chip=0, tile_rows=4)
    for one, other in (
        (drawn[:, :-1], drawn[:, 1:]),
        (drawn[:-1], drawn[1:]),
        (drawn[:-1024], drawn[1024:]),
        (drawn, readings(run_op, chip=1)),
        (drawn, tiled - drawn),  # the first tile's readings are those without tiles
    ):
        assert abs(np.mean(one * other)) < 5 / np.sqrt(one.size)
    assert abs(np.var(tiled - drawn) - 1) < 5 * np.sqrt(2 / drawn.size)
    assert np.array_equal(readings(run_op, chip=-1), np.zeros_like(drawn))


ONES = {"x": np.ones((2, 4), np.float32), "w": np.ones((4, 3), np.float32)}
BAD = [
    ({"tile_rows": -1}, 'attribute "tile_rows" is -1, must be at least 0'),
    ({"tile_rows": 1.5}, 'attribute "tile_rows" is not an integer'),
    ({"tile_cols": -3}, 'attribute "tile_cols" is -3'),
    ({"dac_bits": 1, "input_range": 1.0}, 'attribute "dac_bits" is 1, must be 0 or between 2 and 16'),
    ({"adc_bits": 17, "output_range": 1.0}, 'attribute "adc_bits" is 17, must be 0 or between 2 and 16'),
    ({"adc_bits": -2}, 'attribute "adc_bits" is -2'),
    (
        {"dac_bits": 8},
        'attribute "input_range" is 0, but "dac_bits" needs a range; the pass calibrate-ranges',
    ),
    ({"adc_bits": 8}, 'attribute "output_range" is 0, but "adc_bits" needs a range'),
    ({"read_noise": 0.1}, 'attribute "output_range" is 0, but "read_noise" needs a range'),
    ({"read_noise": 1.5, "output_range": 1.0}, 'attribute "read_noise" is 1.5, must be between 0 and 1'),
    ({"read_noise": float("nan"), "output_range": 1.0}, 'attribute "read_noise" is nan'),
    ({"output_range": float("inf")}, 'attribute "output_range" is inf'),
    ({"input_range": 1e-35}, 'attribute "input_range" is below 1e-30'),
    ({"input_range": 3}, 'attribute "input_range" is not a float'),
    ({"sample_rows": 0}, 'attribute "sample_rows" is 0, must be at least 1'),
    ({"sample_rows": 3}, 'attribute "sample_rows" is 3, must divide the 2 entries of X'),
]


@pytest.mark.parametrize(("attributes", "message"), BAD)
def test_bad_attributes(run_op, attributes, message):
    with pytest.raises(Exception, match=re.escape(f'AnalogMatMul node "layer": {message}')):
        run_op("AnalogMatMul", ONES, device="programmed", **attributes)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (-1, 'input "first_sample" is -1, must be between 0 and 4294967294 for 2 samples'),
        (2**32 - 1, 'input "first_sample" is 4294967295'),
        ([0, 1], 'input "first_sample" (2) must be a scalar'),
    ],
)
def test_bad_first_sample(run_op, first, message):
    node = {"device": "programmed", "read_noise": 0.1, "output_range": 1.0}
    with pytest.raises(Exception, match=re.escape(f'AnalogMatMul node "layer": {message}')):
        run_op("AnalogMatMul", ONES | {"first_sample": np.array(first)}, **node)


def test_too_many_readings(run_op):
    """More than 2^34 per sample would repeat."""
    x = np.ones((1, 1, 2**20), np.float32)
    node = {"device": "programmed", "read_noise": 0.1, "output_range": 1.0, "tile_rows": 1}
    inputs = {"x": x, "w": np.ones((2, 1, 16400), np.float32), "b": None}
    with pytest.raises(Exception, match="too many readings for read noise"):
        run_op("AnalogConv", inputs, **node)
