"""Devices per weight: how many, and which rows of a tile have one more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np

from cnpass.errors import ModelError
from cnpass.runtime.ops import COPIES, EXTRA_COPIES, MAX_COPY

MAX_DEPTH = 2**40
"""Most rows of a matrix that the second number of `extra_copies` may name."""

_TEXT = re.compile(r"(\d{1,9})(?:\+(\d{1,9})/(\d{1,9}))?")


@dataclass(frozen=True)
class Copies:
    """How many devices hold a weight of a matrix.

    Attributes:
        count: devices of every weight.
        extra: rows, the first ones of every `depth`, whose weights have one device more.
        depth: rows of the matrix that a tile holds, if there are such rows; else 0, and a tile holds as many
            as it has room for.
    """

    count: int = 1
    extra: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        """Check the numbers, which files state.

        Raises:
            ModelError: a number is out of range.
        """
        if not 1 <= self.count <= MAX_COPY + 1:
            raise _impossible(self.count)
        allowed = 0 < self.extra < self.depth <= MAX_DEPTH and self.count <= MAX_COPY
        if (self.extra, self.depth) != (0, 0) and not allowed:
            raise ModelError(
                f"{EXTRA_COPIES} is {self.extra}, {self.depth}; it must be some, but not all, of so many rows"
            )

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """The copies of an analog node.

        Args:
            attributes: by name, as Python values; others than these two are ignored.

        Raises:
            ModelError: a number is out of range; the text names the attribute.
        """
        count, extra = attributes.get(COPIES, 1), attributes.get(EXTRA_COPIES, (0, 0))
        if not isinstance(count, int):
            raise _impossible(count)
        if len(extra) != 2:
            raise ModelError(f"{EXTRA_COPIES} has {len(extra)} numbers; it must have two")
        return cls(count, *extra)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            ModelError: it is something else.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise _impossible(text)
        return cls(*(int(number) for number in found.groups() if number is not None))

    def __str__(self) -> str:
        """Devices of every weight, and if some have one more, which: `2+16/120`."""
        return f"{self.count}+{self.extra}/{self.depth}" if self.extra else str(self.count)

    @property
    def most(self) -> int:
        """Devices of the weights that have most."""
        return self.count + (self.extra > 0)

    def attributes(self) -> dict[str, int | list[int]]:
        """The attributes of a node, without those that it does not need."""
        found: dict[str, int | list[int]] = {}
        if self != Copies():
            found[COPIES] = self.count
        if self.extra:
            found[EXTRA_COPIES] = [self.extra, self.depth]
        return found

    def fit(self, tile_rows: int) -> bool:
        """Whether a tile of so many rows has room for what it is to hold."""
        return not self.extra or self.depth * self.count + self.extra <= tile_rows

    def check(self, tile_rows: int) -> None:
        """Raise ModelError unless a tile of so many rows has room; 0 is one tile for everything."""
        if tile_rows and not self.fit(tile_rows):
            raise ModelError(
                f"{COPIES} {self} needs tiles of {self.depth * self.count + self.extra} rows, and they have"
                f" {tile_rows}; the pass replicate-weights sets it anew"
            )

    def held(self, tile_rows: int) -> int:
        """Rows of the matrix in a tile of so many rows; where it is too small, all have as many devices."""
        return self.depth if self.extra and self.fit(tile_rows) else max(1, tile_rows // self.most)

    def cells(self, rows: int) -> int:
        """Devices of one column of a matrix of so many rows."""
        if not self.extra:
            return rows * self.count
        whole, rest = divmod(rows, self.depth)
        return rows * self.count + whole * self.extra + min(rest, self.extra)

    def more(self, shape: Sequence[int], row_axes: Sequence[int]) -> np.ndarray | None:
        """Which weights have one device more than `count`; None if none has.

        Args:
            shape: of the stored weight.
            row_axes: its axes that make up the rows of the matrix, slowest first (`ops.row_axes`).

        Returns:
            Booleans that broadcast to `shape`, with all its axes.
        """
        if not self.extra:
            return None
        sizes = [shape[axis] for axis in row_axes]
        chosen = (np.arange(prod(sizes)) % self.depth < self.extra).reshape(sizes)
        others = [axis for axis in range(len(shape)) if axis not in row_axes]
        return np.expand_dims(chosen.transpose(np.argsort(row_axes)), tuple(others))


def _impossible(count: object) -> ModelError:
    return ModelError(f"{COPIES} is {count}; it must be between 1 and {MAX_COPY + 1}")


SINGLE = Copies()
"""One device per weight."""
