"""Data that fit a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Samples of one part of the data.

    Attributes:
        inputs: by input name, arrays ``[N, ...]`` in the type and shape of the model's inputs.
        y: class numbers ``[N]``, or None without labels.
    """

    inputs: Mapping[str, Array]
    y: Labels | None = None

    @property
    def x(self) -> Array:
        """The samples of the first input, which of most models is the only one."""
        return next(iter(self.inputs.values()))

    def __len__(self) -> int:
        return len(self.x) if self.inputs else 0

    def take(self, index: slice | npt.NDArray[np.integer]) -> Split:
        """The samples of an index."""
        return Split({k: v[index] for k, v in self.inputs.items()}, None if self.y is None else self.y[index])

    def few(self, count: int) -> Split:
        """So many samples from all over the split, always the same, in its order; all if it has no more.

        The first ones would be of one class where samples lie sorted by class.
        """
        return self if len(self) <= count else self.take(np.sort(shuffled(len(self))[:count]))

    @cached_property
    def sha256(self) -> str:
        """Hash over all arrays: names, types, shapes and values."""
        digest = hashlib.sha256()
        arrays = {f"x.{name}": x for name, x in self.inputs.items()}
        if self.y is not None:
            arrays["y"] = self.y
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            if array.size:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


EMPTY = Split({})


def shuffled(count: int) -> npt.NDArray[np.intp]:
    """A fixed random order of ``range(count)``: by each number's SplitMix64 hash (Steele et al. 2014)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


@dataclass(frozen=True)
class Dataset:
    """The parts of a set of data. A part that was not asked for, or is not there, is empty.

    Attributes:
        name: where the data came from.
        notes: what was assumed or changed, one sentence each.
        random: whether these are random inputs, since no data were given.
    """

    train: Split
    val: Split
    test: Split
    name: str
    notes: tuple[str, ...] = ()
    random: bool = False

    @property
    def labelled(self) -> bool:
        """Whether the samples have labels."""
        return any(split.y is not None for split in (self.train, self.val, self.test))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample by input name, of a part that has samples."""
        part = max((self.train, self.val, self.test), key=len)
        return {name: array.shape[1:] for name, array in part.inputs.items()}

    @cached_property
    def sha256(self) -> str:
        """Hash over the arrays of all parts."""
        parts = (self.train, self.val, self.test)
        return hashlib.sha256(" ".join(split.sha256 for split in parts).encode()).hexdigest()
