"""Dividing arrays into training, validation and test parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cnpass.data.dataset import Array, shuffled
from cnpass.data.sources import NAMES, RawData
from cnpass.errors import DataError

_NAME = re.compile(r"(?P<kind>[xy])(?:_(?P<part>train|val|test))?(?:\.(?P<input>.+))?")
TEST_SHARE = 5
VAL_SHARE = 10
"""One sample in so many is split off where the data have no such part."""


@dataclass
class Part:
    """Arrays of one part, as stored: samples by input name ("" for a model's only input), and labels."""

    x: dict[str, Array] = field(default_factory=dict)
    y: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.x.values())))

    def take(self, index: npt.NDArray[np.integer]) -> Part:
        """The samples of an index."""
        return Part({k: v[index] for k, v in self.x.items()}, None if self.y is None else self.y[index])


def divide(raw: RawData) -> tuple[dict[str, Part], list[str]]:
    """Sort arrays into parts, and split off those that are missing.

    Only ``x, y``: a fifth becomes the test part, and a tenth of the whole the validation part. Training data
    without test or validation part: the same shares. Which samples these are depends on their number alone.

    Returns:
        The parts (no training data given: none made up), and a sentence for each thing that was done.

    Raises:
        DataError: no samples, parts without labels among parts with, or lengths that differ.
    """
    parts, ignored = _sort(raw)
    notes = [f"ignored arrays: {', '.join(ignored)}"] if ignored else []
    if "all" in parts:
        if "train" in parts:
            raise DataError(f"{raw.name}: has both x and x_train; name the parts alike")
        parts["train"] = parts.pop("all")
    if "train" in parts:
        missing = {part: share for part, share in _SHARES.items() if part not in parts}
        if missing:
            notes.append(_split_off(raw, parts, missing))
    if "test" not in parts:
        raise DataError(f"{raw.name}: has no test samples (x_test), nor x_train to split them from")
    return parts, notes


_SHARES = {"test": TEST_SHARE, "val": VAL_SHARE}


def _sort(raw: RawData) -> tuple[dict[str, Part], list[str]]:
    parts: dict[str, Part] = {}
    ignored = []
    for name, array in raw.arrays.items():
        match = _NAME.fullmatch(name)
        if match is None or (match["kind"] == "y" and match["input"]):
            ignored.append(name)
            continue
        part = parts.setdefault(match["part"] or "all", Part())
        if match["kind"] == "y":
            part.y = array
        else:
            if array.ndim == 0 or len(array) == 0:
                raise DataError(f"{raw.name}: {name} holds no samples")
            part.x[match["input"] or ""] = array
    if not any(part.x for part in parts.values()):
        raise DataError(
            f"{raw.name}: has none of the arrays {NAMES} (it has: {', '.join(raw.arrays) or 'none'}); "
            "for several inputs they are x_train.NAME and so on"
        )
    _check(raw, parts)
    return parts, ignored


def _check(raw: RawData, parts: dict[str, Part]) -> None:
    labelled = any(part.y is not None for part in parts.values())
    for name, part in parts.items():
        suffix = "" if name == "all" else f"_{name}"
        if not part.x:
            raise DataError(f"{raw.name}: has y{suffix} but no x{suffix}")
        if labelled and part.y is None:
            raise DataError(f"{raw.name}: x{suffix} has no labels y{suffix}, though other parts have labels")
        lengths = list(dict.fromkeys(len(array) for array in part.x.values()))
        if part.y is not None:
            if part.y.ndim == 0:
                raise DataError(f"{raw.name}: y{suffix} is a scalar, not one label per sample")
            lengths.append(len(part.y))
        if len(set(lengths)) > 1:
            counts = " and ".join(map(str, lengths))
            raise DataError(f"{raw.name}: arrays of x{suffix} and y{suffix} differ in length ({counts})")


def _split_off(raw: RawData, parts: dict[str, Part], missing: dict[str, int]) -> str:
    whole = parts["train"]
    count = len(whole)
    order = shuffled(count)
    taken = 0
    for part, share in missing.items():
        size = max(1, count // share)
        parts[part] = whole.take(np.sort(order[taken : taken + size]))
        taken += size
    if taken >= count:
        raise DataError(f"{raw.name}: {count} samples are too few to split off {' and '.join(missing)}")
    parts["train"] = whole.take(np.sort(order[taken:]))
    sizes = ", ".join(f"{len(parts[part])} for {part}" for part in ("train", *missing))
    return f"split {count} samples: {sizes}"
