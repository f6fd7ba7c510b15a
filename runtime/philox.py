"""Random numbers that are pure functions of where they are used: Philox4x32-10 and Box-Muller.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The words
live in int64, whose products wrap modulo 2^64, because torch and ONNX have no full set of operators
on uint32. The same code runs on NumPy arrays, torch tensors and the traced values of `tracer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnpass.runtime.numerics import Array, ExactMath, RandomMath
from cnpass.runtime.ops import MAX_CHIP, MAX_COPY, MAX_STREAM, Purpose

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

LANES = 16
"""Blocks of one group; a block gives one normal to each of the group's four parts."""

GROUP = 4 * LANES
"""Elements of one group."""

_CHUNK = 2**12  # groups at a time: temporaries stay in the cache, and do not grow with the weight

Words = tuple[Array, Array, Array, Array]


def philox4x32(counter: Words, key: tuple[Array, Array]) -> Words:
    """Philox4x32-10.

    Args:
        counter: four words, each an int or an int64 array with values in [0, 2^32); shapes broadcast.
        key: two words, likewise.

    Returns:
        Four words of random bits, with values in [0, 2^32).
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low, high = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1 = (high >> 32 & MASK) ^ x1 ^ k0, high & MASK
        x2, x3 = (low >> 32 & MASK) ^ x3 ^ k1, low & MASK
        k0, k1 = k0 + KEY_STEPS[0] & MASK, k1 + KEY_STEPS[1] & MASK
    return x0, x1, x2, x3


def counter_words(index: Array, *, chip: Array, stream: Array, purpose: int, copy: Array) -> Words:
    """Words (block low, copy << 16 | block high, chip, purpose << 24 | stream)."""
    return index & MASK, index >> 32 | copy << 16, chip, stream | purpose << 24


def read_noise_words(index: Array, *, sample: Array, chip: Array, stream: Array) -> Words:
    """Counter of read noise: words (block, sample, chip, purpose << 24 | stream)."""
    return index & MASK, sample & MASK, chip, stream | Purpose.READ_NOISE << 24


def key_words(seed: Array) -> tuple[Array, Array]:
    """Low and high word of a 64-bit seed, signed or unsigned."""
    return seed & MASK, seed >> 32 & MASK


def box_muller(first: Array, second: Array, functions: RandomMath) -> tuple[Array, Array]:
    """Two standard normals from two words of random bits.

    The radius uses the upper 23 bits of `first`, as the middle of one of 2^23 steps of (0, 1), so the
    normals end at 5.77; the angle uses the upper 26 bits of `second`.

    Args:
        first: int64 values in [0, 2^32).
        second: int64 values in [0, 2^32).
        functions: float32 functions for this kind of array.

    Returns:
        float32 values r cos(angle) and r sin(angle).
    """
    uniform = functions.float32(first >> 9) * 2.0**-23 + 2.0**-24
    radius = functions.sqrt(functions.log(uniform) * -2.0)
    turn = functions.float32(second >> 6 & 0xFFFFFF) * 2.0**-24 - 0.5
    cosine, sine = functions.cos_sin(second >> 30, turn)
    return radius * cosine, radius * sine


def normals(
    shape: int | Sequence[int],
    *,
    seed: int,
    chip: int,
    stream: int,
    purpose: int = Purpose.PROGRAMMING,
    copy: int = 0,
    xp: Any = np,
    device: Any = None,
) -> Array:
    """Standard normals of one chip's weight; element e in C order depends on e and the arguments only.

    Args:
        shape: shape of the result.
        seed: 64 bits, signed or unsigned.
        chip: 0 to 2^32 - 2.
        stream: 0 to 2^24 - 1.
        purpose: 0 to 255; see `Purpose`.
        copy: 0 to 2^16 - 1; number of the device among those that share the weight.
        xp: the module `numpy` or `torch`.
        device: where torch makes them.

    Returns:
        float32, the same bits for NumPy and torch on any device.

    Raises:
        ValueError: an argument is out of range.
    """
    draws = ChipDraws(_shape(shape), seed, chip, stream, copy, xp, device)
    return draws.normals(purpose)


def read_normals(
    samples: np.ndarray, first: int, count: int, *, seed: int, chip: int, stream: int
) -> np.ndarray:
    """Standard normals of readings: those of elements `first` to `first + count - 1` of every sample.

    Args:
        samples: int64 [n], numbers of the samples, 0 to 2^32 - 1.
        first: number of the first element; with the tiles counted in, elements end below 2^34.
        count: how many elements.
        seed: 64 bits, signed or unsigned.
        chip: 0 to 2^32 - 2.
        stream: 0 to 2^24 - 1.

    Returns:
        float32 [n, count], the same bits as from the native library.
    """
    functions = ExactMath(np)
    groups = range(first // GROUP, -(-(first + count) // GROUP))
    blocks = np.arange(groups.start * LANES, groups.stop * LANES)
    counter = read_noise_words(blocks, sample=samples[:, None], chip=chip, stream=stream)
    x0, x1, x2, x3 = philox4x32(counter, key_words(seed))
    parts = *box_muller(x0, x1, functions), *box_muller(x2, x3, functions)
    together = np.stack([part.reshape(len(samples), -1, LANES) for part in parts], 2)
    start = first - groups.start * GROUP
    drawn: np.ndarray = together.reshape(len(samples), -1)[:, start : start + count]
    return drawn


def words(
    shape: int | Sequence[int],
    *,
    seed: int,
    chip: int,
    stream: int,
    purpose: int = Purpose.FAULTS,
    copy: int = 0,
    xp: Any = np,
    device: Any = None,
) -> Array:
    """Random words of one chip's weight: part p of a group takes word p of its Philox blocks.

    Args:
        shape: see `normals`, as are the other arguments.
        seed: names the family of chips.
        chip: number of the chip.
        stream: names the weight.
        purpose: what the words are for.
        copy: number of the device.
        xp: the module `numpy` or `torch`.
        device: where torch makes them.

    Returns:
        int64, uniform in [0, 2^32).

    Raises:
        ValueError: an argument is out of range.
    """
    draws = ChipDraws(_shape(shape), seed, chip, stream, copy, xp, device)
    return draws.words(purpose)


def threshold(rate: float) -> int:
    """How many of the 2^32 values of a word make an event of that rate; the rate is a float32."""
    return int(rate * 2**32)


@dataclass(frozen=True)
class ChipDraws:
    """The random numbers of one weight on one chip; see `normals` for the fields."""

    shape: tuple[int, ...]
    seed: int
    chip: int
    stream: int
    copy: int = 0
    xp: Any = np
    device: Any = None

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:
        """Standard normals, float32, one per element of the weight."""
        functions = ExactMath(self.xp)

        def parts(x0: Array, x1: Array, x2: Array, x3: Array) -> Words:
            return *box_muller(x0, x1, functions), *box_muller(x2, x3, functions)

        return self._elements(purpose, parts)

    def words(self, purpose: int = Purpose.FAULTS) -> Array:
        """Random words, int64 in [0, 2^32), one per element of the weight."""
        return self._elements(purpose, lambda *parts: parts)

    def stuck(self, low: Array, high: Array, purpose: int = Purpose.FAULTS) -> tuple[Array, Array]:
        """Which devices are stuck low and which high; see `cnpass.runtime.devices.Draws`."""
        drawn = self.words(purpose)
        first = threshold(low.item())
        last = first + threshold(high.item())
        return drawn < first, (drawn >= first) & (drawn < last)

    def _elements(self, purpose: int, parts: Callable[[Array, Array, Array, Array], Words]) -> Array:
        """What `parts` makes of the four words of every block, in the order of the elements."""
        for name, value, largest in (
            ("chip", self.chip, MAX_CHIP),
            ("stream", self.stream, MAX_STREAM),
            ("purpose", purpose, 255),
            ("copy", self.copy, MAX_COPY),
        ):
            if not 0 <= value <= largest:
                raise ValueError(f"{name} is {value}; it must be between 0 and {largest}")
        place = {} if self.device is None else {"device": self.device}
        size = math.prod(self.shape)
        groups = -(-size // GROUP)
        chunks = []
        for start in range(0, max(groups, 1), _CHUNK):
            stop = min(start + _CHUNK, groups)
            blocks = self.xp.arange(start * LANES, stop * LANES, dtype=self.xp.int64, **place)
            counter = counter_words(
                blocks, chip=self.chip, stream=self.stream, purpose=purpose, copy=self.copy
            )
            made = parts(*philox4x32(counter, key_words(self.seed)))
            chunks.append(self.xp.stack(tuple(part.reshape(-1, LANES) for part in made), 1).reshape(-1))
        return self.xp.concatenate(chunks)[:size].reshape(self.shape)


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
