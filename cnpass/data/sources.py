"""Reading arrays from where a user keeps them. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnpass.data.dataset import Array
from cnpass.errors import DataError

NAMES = "x_train, y_train, x_val, y_val, x_test, y_test, or x and y"
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_APPENDED = re.compile(r"(\.(cnpass|retrained|compensated|lowered|chip\d+))+$")
"""What verbs append to the name of a model."""
_IDX_FILE = re.compile(r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
_IDX_NAME = {"train": "train", "t10k": "test", "images": "x", "labels": "y"}
_IDX_TYPE = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class RawData:
    """Arrays as stored, by name, and where they came from."""

    arrays: Mapping[str, Array]
    name: str


def load_data(source: str | Path | None, model: Path | None = None) -> RawData | None:
    """Read the arrays of a source.

    Args:
        source: NPZ file, folder of .npy or idx files, or ``package.module:function``; None for the NPZ beside
            the model that has its name.
        model: path of the model, for that convention.

    Returns:
        The arrays, or None where no source was named and none lies beside the model.

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    if source is None:
        found = None if model is None else beside(model)
        return None if found is None else RawData(_read_npz(found), str(found))
    path = Path(source)
    if path.is_dir():
        return RawData(_read_folder(path), str(source))
    if path.is_file():
        return RawData(_read_npz(path), str(source))
    if _FUNCTION.fullmatch(str(source)):
        return RawData(_call(str(source)), str(source))
    raise DataError(f"{source}: no such file or folder, nor package.module:function")


def beside(model: Path) -> Path | None:
    """Return the NPZ file that has a model's name and lies beside it, if there is one.

    What verbs append to a name (``digits.cnpass.onnx``, ``digits.chip7.onnx``) may be missing from it.
    """
    for stem in (model.stem, _APPENDED.sub("", model.stem)):
        path = model.with_name(f"{stem}.npz")
        if path.is_file():
            return path
    return None


def data_files(source: str | Path | None, model: Path | None = None) -> list[Path]:
    """Return the files that `load_data` reads, arguments as there; none for a function."""
    if source is None:
        found = None if model is None else beside(model)
        return [] if found is None else [found]
    path = Path(source)
    if path.is_dir():
        return sorted(
            file for file in path.iterdir() if file.suffix == ".npy" or _IDX_FILE.fullmatch(file.name)
        )
    return [path] if path.is_file() else []


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: holds one array; give an .npz or a folder with {NAMES}")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as NPZ: {_line(error)}") from error


def _read_folder(folder: Path) -> dict[str, Array]:
    arrays = {}
    for path in sorted(folder.iterdir()):
        idx = _IDX_FILE.fullmatch(path.name)
        if idx:
            arrays[f"{_IDX_NAME[idx[2]]}_{_IDX_NAME[idx[1]]}"] = _read_idx(path)
        elif path.suffix == ".npy":
            try:
                arrays[path.stem] = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{path}: cannot be read as .npy: {_line(error)}") from error
    if not arrays:
        raise DataError(f"{folder}: holds neither .npy files ({NAMES}) nor the idx files of MNIST")
    return arrays


def _read_idx(path: Path) -> Array:
    """An idx file: two zero bytes, type, number of dimensions, big-endian sizes, values."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        dtype = np.dtype(_IDX_TYPE[raw[2]])
        start = 4 + 4 * raw[3]
        shape = np.frombuffer(raw, ">u4", raw[3], 4)
        array: Array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    except (OSError, EOFError, zlib.error, KeyError, IndexError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as idx file: {_line(error)}") from error
    return array.astype(dtype.newbyteorder("="))


def _call(spec: str) -> dict[str, Array]:
    module, _, name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        arrays = getattr(importlib.import_module(module), name)()
        if isinstance(arrays, Mapping):
            return {str(key): np.asarray(value) for key, value in arrays.items()}
    except Exception as error:
        raise DataError(f"{spec}: {type(error).__name__}: {_line(error)}") from error
    finally:
        with contextlib.suppress(ValueError):  # what was called may have changed the list
            sys.path.remove(here)
    raise DataError(f"{spec}: returned {type(arrays).__name__}, not a mapping of arrays ({NAMES})")


def _line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error) or type(error).__name__).splitlines()[0]
