"""Bringing stored arrays into the type and shape of a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cnpass.data.dataset import EMPTY, Array, Dataset, Labels, Split
from cnpass.data.inputs import InputSpec
from cnpass.data.sources import RawData
from cnpass.data.splits import Part, divide
from cnpass.errors import DataError
from cnpass.recipe import Layout, Preprocess

PARTS = ("train", "val", "test")
_WITHOUT_LABELS = "data without labels (y) measure fidelity instead"
_CHUNK = 4096
_AXES: dict[Layout, tuple[int, int, int]] = {"nhwc": (1, 2, 0), "nchw": (2, 0, 1)}
"""Axes of a sample in the other layout, in the order that brings it to this one."""


def fit(
    raw: RawData,
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    *,
    classes: int | None = None,
    parts: Sequence[str] = PARTS,
) -> Dataset:
    """Divide, preprocess and shape stored arrays for a model.

    Args:
        raw: arrays as stored.
        specs: the model's inputs.
        preprocess: scale, mean, std and the image layout that the model expects.
        classes: number of classes, if known, for checking labels.
        parts: the parts wanted; the others stay empty and cost nothing.

    Raises:
        DataError: names, shapes, types, values or labels do not fit; one line that says what to do.
    """
    divided, notes = divide(raw)
    splits = dict.fromkeys(PARTS, EMPTY)
    for part in (part for part in parts if part in divided):
        inputs = {}
        for spec, (name, array) in zip(specs, _match(part, divided[part], specs, raw.name), strict=True):
            where = f"{raw.name}: {name}"
            values = _preprocess(array, spec, preprocess, where)
            if array.dtype == np.uint8 and spec.dtype.kind == "f" and preprocess.scale == (1.0,):
                notes.append("bytes go in as 0 to 255; --scale 1/255 makes them 0 to 1")
            inputs[spec.name] = np.ascontiguousarray(_shape(values, spec, preprocess.layout, where, notes))
        y = divided[part].y
        splits[part] = Split(inputs, None if y is None else _labels(y, classes, f"{raw.name}: y_{part}"))
    train, val, test = (splits[part] for part in PARTS)
    return Dataset(train, val, test, name=raw.name, notes=tuple(dict.fromkeys(notes)))


def _match(part: str, stored: Part, specs: Sequence[InputSpec], source: str) -> list[tuple[str, Array]]:
    """The stored array of each input, with its name."""
    if len(specs) == 1 and len(stored.x) == 1:
        key, array = next(iter(stored.x.items()))
        if key in {"", specs[0].name}:
            return [(f"x_{part}" + (f".{key}" if key else ""), array)]
    missing = [f"x_{part}.{spec.name}" for spec in specs if spec.name not in stored.x]
    if missing:
        raise DataError(f"{source}: lacks {', '.join(missing)} (one array per input of the model)")
    return [(f"x_{part}.{spec.name}", stored.x[spec.name]) for spec in specs]


def _preprocess(array: Array, spec: InputSpec, preprocess: Preprocess, where: str) -> Array:
    """``(x * scale - mean) / std`` in float64, rounded once to the input's type."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: values of type {array.dtype} are no numbers that a model takes")
    plain = (preprocess.scale, preprocess.mean, preprocess.std) == ((1.0,), (0.0,), (1.0,))
    if spec.dtype.kind in "biu":
        return _integers(array, spec, plain, where)
    scale, mean, std = (
        _per_channel(values, array.shape[1:], preprocess.layout, f"{where}: {name}")
        for name, values in (
            ("--scale", preprocess.scale),
            ("--mean", preprocess.mean),
            ("--std", preprocess.std),
        )
    )
    result = np.empty(array.shape, spec.dtype)
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        with np.errstate(over="ignore", invalid="ignore"):
            result[start : start + _CHUNK] = (
                chunk if plain else (chunk.astype(np.float64) * scale - mean) / std
            )
        if not np.isfinite(result[start : start + _CHUNK]).all():
            raise DataError(f"{where}: holds NaN or infinite values (or overflows {spec.dtype})")
    return result


def _integers(array: Array, spec: InputSpec, plain: bool, where: str) -> Array:
    if not plain:
        raise DataError(
            f"{where}: input '{spec.name}' takes {spec.dtype}; --scale, --mean, --std do not apply"
        )
    if array.dtype.kind == "f":
        raise DataError(f"{where}: input '{spec.name}' takes {spec.dtype}, the data are {array.dtype}")
    result = array.astype(spec.dtype)
    if not np.array_equal(result, array):
        raise DataError(f"{where}: holds values outside the range of {spec.dtype}, which the model takes")
    return result


def _per_channel(
    values: Sequence[float], sample: tuple[int, ...], layout: Layout | None, where: str
) -> npt.NDArray[np.float64]:
    """Constants in a shape that broadcasts over samples."""
    constants = np.array(values, np.float64)
    if len(values) == 1:
        return constants
    axes = [axis for axis in ((0, -1) if len(sample) != 2 else ()) if sample and sample[axis] == len(values)]
    if not axes:
        raise DataError(f"{where} has {len(values)} values, which is no channel count of samples {sample}")
    if len(sample) == 3 and (layout_of(sample) or layout) == "nhwc" and len(axes) > 1:
        axes.reverse()
    shape = [1] * len(sample)
    shape[axes[0]] = len(values)
    return constants.reshape(shape)


def layout_of(sample: tuple[int | None, ...]) -> Layout | None:
    """Layout of a three-dimensional sample, where one end alone looks like channels (at most 4)."""
    if len(sample) != 3:
        return None
    first, last = (size is not None and size <= 4 for size in (sample[0], sample[2]))
    if first == last:
        return None
    return "nchw" if first else "nhwc"


def _shape(array: Array, spec: InputSpec, layout: Layout | None, where: str, notes: list[str]) -> Array:
    """Transpose, flatten or unflatten samples to the input's shape."""
    have = array.shape[1:]
    want = spec.sample
    mismatch = f"{where}: samples are {_words(have)}, input '{spec.name}' takes samples {_words(want)}"
    turned = {to: tuple(have[axis] for axis in axes) for to, axes in _AXES.items() if len(have) == 3}
    if layout in turned:
        other = layout_of(have) not in {layout, None}
        if other or (want is not None and not _fits(have, want) and _fits(turned[layout], want)):
            array = array.transpose(0, *(axis + 1 for axis in _AXES[layout]))
            have = turned[layout]
            notes.append(f"transposed images to {layout}")
    if want is None or _fits(have, want):
        return array
    for to, shape in turned.items():
        if layout is None and 1 not in have and _fits(shape, want):
            raise DataError(f"{mismatch}; --layout {to} transposes them")
    target = _target(have, want)
    if target is None:
        raise DataError(mismatch + (f"; --layout {layout} does not fit" if layout else ""))
    notes.append(f"reshaped samples from {_words(have)} to {_words(target)}")
    return array.reshape(len(array), *target)


def _target(have: tuple[int, ...], want: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """The shape that a plain reshape gives samples, where such a reshape means what it should.

    That is the case if it only adds or drops dimensions of size 1, flattens, or unflattens.
    """
    size = math.prod(have)
    known = math.prod(dim for dim in want if dim is not None)
    free = sum(dim is None for dim in want)
    if free > 1 or known == 0 or size % known or (free == 0 and size != known):
        return None
    target = tuple(size // known if dim is None else dim for dim in want)
    squeezed = [tuple(dim for dim in shape if dim != 1) for shape in (have, target)]
    return target if squeezed[0] == squeezed[1] or min(map(len, squeezed)) <= 1 else None


def _fits(have: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    return len(have) == len(want) and all(w in (None, h) for h, w in zip(have, want, strict=True))


def _words(shape: tuple[int | None, ...] | None) -> str:
    return "of any shape" if shape is None else "x".join("?" if d is None else str(d) for d in shape) or "1"


def _labels(y: Array, classes: int | None, where: str) -> Labels:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {y.shape}; one class number per sample is needed; {_WITHOUT_LABELS}"
        )
    if y.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {y.dtype}; class numbers must be integers; {_WITHOUT_LABELS}")
    if y.min() < 0:
        raise DataError(f"{where}: label {y.min()} is negative")
    if classes is not None and y.max() >= classes:
        raise DataError(
            f"{where}: label {y.max()} is outside the model's {classes} classes (0 to {classes - 1})"
        )
    return y.astype(np.int64)
