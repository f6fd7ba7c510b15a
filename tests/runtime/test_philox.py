"""The random numbers: known answers, NumPy against torch, dependence on every argument."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from cnpass.runtime.numerics import ExactMath
from cnpass.runtime.ops import MAX_CHIP, MAX_COPY, MAX_STREAM, Purpose
from cnpass.runtime.philox import GROUP, ChipDraws, counter_words, normals, philox4x32

# From the known-answer file of Random123 (philox4x32_10), the authors' implementation.
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KNOWN_NORMALS = ["0x3e8374a3", "0x3f3b8b43", "0x3faf6718", "0x3e6575f0", "0x3ee6ee6d", "0xc01e7eb4"]
HERE = {"seed": 7, "chip": 3, "stream": 2}


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = philox4x32(tuple(np.array([word]) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == expected


def test_philox_known_answers_in_torch():
    torch = pytest.importorskip("torch")
    counters, keys, expected = zip(*KNOWN_ANSWERS, strict=True)
    words = philox4x32(
        tuple(torch.tensor(word) for word in zip(*counters, strict=True)),
        tuple(torch.tensor(word) for word in zip(*keys, strict=True)),
    )
    assert [tuple(row) for row in torch.stack(words, 1).tolist()] == list(expected)


def test_counter_places_every_field():
    index = np.array([0x1234_89ABCDEF])
    words = counter_words(index, chip=MAX_CHIP, stream=MAX_STREAM, purpose=Purpose.READ_NOISE, copy=MAX_COPY)
    assert [int(np.asarray(word).item()) for word in words] == [
        0x89ABCDEF,
        0xFFFF1234,
        0xFFFFFFFE,
        0x08FFFFFF,
    ]


def test_normals_known_answers():
    """The first of each part, so that a change of layout or of a polynomial shows."""
    drawn = normals(GROUP + 1, seed=2**40 + 17, chip=7, stream=3)
    assert [hex(word) for word in bits(drawn[[0, 1, 16, 32, 48, 64]])] == KNOWN_NORMALS


def test_normals_agree_with_box_muller_in_float64():
    """Every element comes from the block, word pair and function that the contract says."""
    count = 3 * GROUP + 5
    element = np.arange(count)
    group, part, lane = element // 64, element % 64 // 16, element % 16
    words = philox4x32(
        counter_words(16 * group + lane, chip=3, stream=2, purpose=1, copy=5), (7 & 0xFFFFFFFF, 7 >> 32)
    )
    first = np.where(part < 2, words[0], words[2])
    second = np.where(part < 2, words[1], words[3])
    radius = np.sqrt(-2 * np.log((first // 2**9 + 0.5) / 2**23))
    angle = (second // 2**6) / 2**24 * np.pi / 2 - np.pi / 4
    expected = radius * np.where(part % 2 == 0, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(normals(count, **HERE, purpose=1, copy=5), expected, rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize("shape", [0, 1, 63, 64, 65, (3, 5, 7), 64 * 4096 + 3])
@pytest.mark.parametrize("seed", [0, -1, 2**63 + 12345])
def test_numpy_and_torch_give_the_same_bits(shape, seed):
    torch = pytest.importorskip("torch")
    arguments = {"seed": seed, "chip": MAX_CHIP, "stream": MAX_STREAM, "purpose": 255, "copy": MAX_COPY}
    x, y = normals(shape, **arguments), normals(shape, **arguments, xp=torch)
    assert x.dtype == np.float32
    assert x.shape == tuple(y.shape)
    np.testing.assert_array_equal(bits(x), bits(y.numpy()))


def test_cuda_gives_the_same_bits():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, y = normals(2**20, **HERE), normals(2**20, **HERE, xp=torch, device="cuda")
    np.testing.assert_array_equal(bits(x), bits(y.cpu().numpy()))


@pytest.mark.parametrize(
    ("function", "low", "high", "tolerance"),
    [("exp", -86.0, 86.0, 3e-7), ("log", 2.0**-24, 0.9, 3e-7), ("sqrt", 0.0, 40.0, 6e-8)],
)
def test_elementary_functions(function, low, high, tolerance):
    torch = pytest.importorskip("torch")
    x = np.linspace(low, high, 300_001, dtype=np.float32)
    y = getattr(ExactMath(np), function)(x)
    np.testing.assert_allclose(y, getattr(np, function)(x.astype(np.float64)), rtol=tolerance)
    np.testing.assert_array_equal(bits(y), bits(getattr(ExactMath(torch), function)(torch.from_numpy(x))))


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"seed": 7 + 2**32}, {"chip": 4}, {"stream": 1}, {"purpose": 1}, {"copy": 1}]
)
def test_every_argument_gives_independent_numbers(change):
    """Correlation of 2^20 pairs: standard deviation 2^-10, bound at 5 of them (confidence 1 - 6e-7)."""
    count = 2**20
    x = normals(count, **HERE)
    y = normals(count, **{**HERE, **change})
    assert abs(np.mean(x * y, dtype=np.float64)) < 5 / np.sqrt(count)
    assert not np.any(bits(x[:1000]) == bits(y[:1000]))


def test_neighbours_are_independent():
    """Lags within a pair of words, a lane row and a group; bound at 5 standard deviations each."""
    x = normals(2**20, **HERE).astype(np.float64)
    for lag in (1, 16, 32, 48, 64, 1024):
        assert abs(np.mean(x[lag:] * x[:-lag])) < 5 / np.sqrt(len(x) - lag), lag


def test_distribution():
    """Moments within 5 standard deviations (confidence 1 - 6e-7 each); Kolmogorov-Smirnov at 1 - 1e-6."""
    count = 2**21
    x = normals(count, **HERE).astype(np.float64)
    assert abs(x.mean()) < 5 / np.sqrt(count)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((x**3).mean()) < 5 * np.sqrt(15 / count)
    assert abs((x**4).mean() - 3) < 5 * np.sqrt(96 / count)
    from math import erf

    grid = np.linspace(-4, 4, 801)
    empirical = np.searchsorted(np.sort(x), grid, side="right") / count
    normal = np.array([(1 + erf(z / np.sqrt(2))) / 2 for z in grid])
    assert np.abs(empirical - normal).max() < np.sqrt(np.log(2 / 1e-6) / (2 * count))


def test_tails_end_where_stated():
    x = normals(2**22, **HERE)
    assert 4.5 < np.abs(x).max() < 5.78


def test_a_prefix_is_a_prefix():
    """Element e depends on e, not on how many are asked for."""
    np.testing.assert_array_equal(normals(70, **HERE), normals(300_000, **HERE)[:70])


def test_another_process_draws_the_same():
    code = (
        "import hashlib, numpy as np; from cnpass.runtime.philox import normals;"
        "print(hashlib.sha256(normals((1000, 7), seed=7, chip=3, stream=2).tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert runs == {hashlib.sha256(normals((1000, 7), **HERE).tobytes()).hexdigest()}


def test_draws_depend_on_the_purpose():
    draws = ChipDraws((4, 5), **HERE)
    np.testing.assert_array_equal(draws.normals(), normals((4, 5), **HERE))
    np.testing.assert_array_equal(draws.normals(Purpose.SECOND_DEVICE), normals((4, 5), **HERE, purpose=3))


@pytest.mark.parametrize(
    "change", [{"chip": -1}, {"chip": MAX_CHIP + 1}, {"stream": MAX_STREAM + 1}, {"copy": MAX_COPY + 1}]
)
def test_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .* between 0 and"):
        normals(4, **{**HERE, **change})
