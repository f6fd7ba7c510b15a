"""Packs MNIST or CIFAR, as published, into the NPZ file that everything here reads.

    python models/pack_dataset.py FOLDER mnist.npz

FOLDER holds the four idx files of MNIST, or the unpacked binary version of CIFAR-10 or CIFAR-100. The NPZ
file gets x_train, y_train, x_test, y_test: images uint8 [N, C, H, W] and labels uint8 [N], in the order of
publication; of CIFAR-100 the hundred fine labels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cnpass.data.sources import load_data
from cnpass.errors import DataError

CIFAR_10 = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_100 = {"train": ["train.bin"], "test": ["test.bin"]}
IMAGE = (3, 32, 32)
NAMES = {"x_train", "y_train", "x_test", "y_test"}


def packed(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a dataset.

    Args:
        folder: Where its files are.

    Returns:
        Images and labels by their names in the NPZ file.

    Raises:
        DataError: The folder holds no such files, a part of the idx files only, or broken ones.
        OSError: It holds a part of the files of CIFAR only.
        ValueError: A file of CIFAR has been cut off.
    """
    for names, labels in ((CIFAR_10, 1), (CIFAR_100, 2)):
        if (folder / names["test"][0]).exists():
            return _cifar(folder, names, labels)
    source = load_data(folder)
    read = source.arrays if source else {}
    if missing := NAMES - read.keys():
        raise DataError(f"{folder}: has no {', '.join(sorted(missing))}")
    # idx files have no channels
    return {name: read[name][:, None] if name.startswith("x") else read[name] for name in sorted(NAMES)}


def _cifar(folder: Path, names: Mapping[str, Sequence[str]], labels: int) -> dict[str, np.ndarray]:
    """Read records of label bytes, the finest last, and an image."""
    arrays = {}
    for part, files in names.items():
        records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in files])
        records = records.reshape(-1, labels + math.prod(IMAGE))
        arrays[f"x_{part}"] = records[:, labels:].reshape(-1, *IMAGE)
        arrays[f"y_{part}"] = records[:, labels - 1]
    return arrays


def main() -> None:
    """Read a folder and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    try:
        arrays = packed(arguments.folder)
    except (DataError, OSError, ValueError) as error:
        parser.error(f"cannot be packed: {error}")
    np.savez(arguments.output, **arrays)


if __name__ == "__main__":
    main()
