"""The reference of tiles, converters and read noise, against sums written out and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.errors import ModelError
from cnpass.runtime.copies import Copies
from cnpass.runtime.devices import LogNormal
from cnpass.runtime.ops import MAX_SAMPLE, Purpose
from cnpass.runtime.periphery import Periphery, Quantiser
from cnpass.runtime.philox import GROUP, normals, read_normals
from cnpass.runtime.reference import analog_conv, analog_matmul

IDEAL = {"device": LogNormal(sigma=0.5), "chip": -1}
READ = {"seed": 2**40 + 17, "chip": 3, "stream": 9}


def test_codes():
    """Three bits on a range of 6: steps of 2, halves to even, saturation, NaN."""
    values = np.array([0, 0.9, 1, 1.1, -1, 3, 5, -5, 6, 7, 1e30, np.inf, -np.inf, np.nan], np.float32)
    expected = [0, 0, 0, 1, 0, 2, 2, -2, 3, 3, 3, 3, -3, np.nan]
    quantiser = Quantiser(3, 6.0)
    np.testing.assert_array_equal(quantiser.codes(values), expected)
    np.testing.assert_array_equal(quantiser.quantise(values), np.float32(expected) * 2)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_every_code_comes_back(bits):
    quantiser = Quantiser(bits, 0.7)
    codes = np.arange(-quantiser.highest, quantiser.highest + 1, dtype=np.float32)
    np.testing.assert_array_equal(quantiser.codes(codes * quantiser.step), codes)
    assert codes.size == 2**bits - 1


@pytest.mark.parametrize(
    ("tile_rows", "copies", "sizes"),
    [(0, 1, [10]), (4, 1, [4, 4, 2]), (4, 2, [2] * 5), (4, 3, [1] * 10), (4, 9, [1] * 10), (10, 1, [10])],
)
def test_rows_of_tiles(tile_rows, copies, sizes):
    tiles = Periphery(tile_rows=tile_rows).tiles(10, Copies(copies))
    assert [tile.stop - tile.start for tile in tiles] == sizes
    assert (tiles[0].start, tiles[-1].stop) == (0, 10)


def test_matmul_sums_what_the_tiles_give(rng):
    x, w = rng.standard_normal((5, 10)).astype(np.float32), rng.standard_normal((10, 3)).astype(np.float32)
    periphery = Periphery(tile_rows=4, dac_bits=4, adc_bits=5, input_range=2.0, output_range=3.0)
    step_in, step = np.float32(2 / 7), np.float32(3 / 15)
    u = np.clip(np.rint(x / step_in), -7, 7) * step_in
    expected = sum(np.clip(np.rint(u[:, k : k + 4] @ w[k : k + 4] / step), -15, 15) for k in (0, 4, 8))
    np.testing.assert_allclose(analog_matmul(x, w, **IDEAL, periphery=periphery), expected * step, rtol=1e-6)


def test_conv_cuts_channels_and_kernel(conv_case):
    """Tiles are a cut through W as it is stored: partial sums are those of weights with the rest zero."""
    x, w, b, attributes = conv_case
    periphery = Periphery(tile_rows=5, adc_bits=6, output_range=4.0)
    flat = w.reshape(len(w), -1)
    expected = b.reshape(-1, *[1] * (x.ndim - 2)).astype(np.float64)
    for first in range(0, flat.shape[1], 5):
        part = np.zeros_like(flat)
        part[:, first : first + 5] = flat[:, first : first + 5]
        partial = analog_conv(x, part.reshape(w.shape), **IDEAL, **attributes)
        expected = expected + np.clip(np.rint(partial / (4 / 31)), -31, 31) * 4 / 31
    y = analog_conv(x, w, b, **IDEAL, periphery=periphery, **attributes)
    assert np.mean(np.abs(y - expected) > 1e-4) < 0.01
    np.testing.assert_allclose(y, expected, atol=4 / 31 * 1.01)


def test_tiles_alone_change_nothing(conv_case):
    x, w, b, attributes = conv_case
    tiled = analog_conv(x, w, b, **IDEAL, periphery=Periphery(tile_rows=3), **attributes)
    np.testing.assert_allclose(tiled, analog_conv(x, w, b, **IDEAL, **attributes), rtol=1e-5, atol=1e-6)


def test_read_numbers_follow_the_contract():
    """The counter is that of a weight's element, but for its second word."""
    first, count = 3 * GROUP + 5, 200
    drawn = read_normals(np.array([0, 5 << 16, 7]), first, count, **READ)
    for row, copy in ((0, 0), (1, 5)):  # a sample stands where copy << 16 | block >> 32 does
        of_weight = normals(first + count, purpose=Purpose.READ_NOISE, copy=copy, **READ)
        np.testing.assert_array_equal(drawn[row], of_weight[first:])
    assert len({row.tobytes() for row in drawn}) == 3


def test_read_noise_does_not_depend_on_the_split(rng):
    x, w = rng.standard_normal((7, 10)).astype(np.float32), rng.standard_normal((10, 3)).astype(np.float32)
    periphery = Periphery(tile_rows=4, output_range=3.0, read_noise=0.1)
    where = {"device": LogNormal(sigma=0.5), **READ, "periphery": periphery}
    whole = analog_matmul(x, w, **where, first_sample=100)
    parts = [analog_matmul(x[a:b], w, **where, first_sample=100 + a) for a, b in ((0, 3), (3, 4), (4, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(analog_matmul(x, w, **where), whole)


def test_rows_of_one_sample_share_a_number(rng):
    """[samples, rows, K] gives the same when flattened, if the node says how many rows a sample has."""
    x = rng.standard_normal((4, 6, 10)).astype(np.float32)
    w = rng.standard_normal((10, 3)).astype(np.float32)
    common = {"output_range": 3.0, "read_noise": 0.1}
    where = {"device": LogNormal(sigma=0.5), **READ, "first_sample": 5}
    deep = analog_matmul(x, w, **where, periphery=Periphery(**common))
    flat = analog_matmul(x.reshape(24, 10), w, **where, periphery=Periphery(**common, sample_rows=6))
    np.testing.assert_array_equal(flat.reshape(deep.shape), deep)
    with pytest.raises(ModelError, match="sample_rows is 5, which does not divide the 24 entries"):
        analog_matmul(x.reshape(24, 10), w, **where, periphery=Periphery(**common, sample_rows=5))


@pytest.mark.parametrize("shape", [(0, 10), (2, 0, 10)])
def test_empty_batch(shape):
    periphery = Periphery(adc_bits=4, output_range=3.0, read_noise=0.1)
    y = analog_matmul(np.ones(shape, np.float32), np.ones((10, 3), np.float32), **IDEAL, periphery=periphery)
    assert y.shape == (*shape[:-1], 3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"dac_bits": 1, "input_range": 1.0}, "'dac_bits' is 1; a converter has 2 to 16 bits"),
        ({"adc_bits": 17}, "'adc_bits': .* less than or equal to 16"),
        ({"tile_rows": -1}, "'tile_rows': "),
        ({"read_noise": float("nan")}, "'read_noise': "),
        ({"output_range": 1e-40}, "'output_range' is below 1e-30"),
        ({"dac_bits": 8}, "'input_range' is 0, but 'dac_bits' needs a range; the pass calibrate-ranges"),
        ({"adc_bits": 8}, "'output_range' is 0, but 'adc_bits' needs a range"),
        ({"read_noise": 0.1}, "'output_range' is 0, but 'read_noise' needs a range"),
    ],
)
def test_peripheries_that_cannot_be(attributes, message):
    with pytest.raises(ModelError, match=message):
        Periphery.from_attributes({"device": "lognormal", **attributes}).check()


@pytest.mark.parametrize("first", [-1, MAX_SAMPLE])
def test_samples_without_a_number(first):
    periphery = Periphery(output_range=3.0, read_noise=0.1)
    with pytest.raises(ModelError, match=f"first_sample is {first}; samples have numbers between 0 and"):
        analog_matmul(
            np.ones((2, 4), np.float32), np.ones((4, 3), np.float32), device=None, chip=0,
            periphery=periphery, first_sample=first,
        )  # fmt: skip
