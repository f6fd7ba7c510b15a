"""Trains digits-vgg9 and digits-lenet5 and writes them with their data: `python models/train_digits.py`.

The data are scikit-learn's 1797 digits of 8x8 pixels (E. Alpaydin, C. Kaynak, UCI repository, 1998).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from export import save, to_onnx
from networks import HE_GAIN, SMALL_GAIN, initialise, lenet5, vgg9
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from training import accuracy, accuracy_on_chips, fit

SPLITS = {"train": 1000, "val": 297, "test": 500}


def split_digits() -> dict[str, np.ndarray]:
    """Give x_*, y_* for train, val and test: float32 [N, 1, 8, 8] in 0..1 and int64 [N], classes balanced."""
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    y = digits.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(y)), test_size=SPLITS["test"], stratify=y, random_state=0)
    train, val = train_test_split(rest, test_size=SPLITS["val"], stratify=y[rest], random_state=0)
    arrays = {}
    for part, index in (("train", train), ("val", val), ("test", test)):
        arrays[f"x_{part}"] = x[index]
        arrays[f"y_{part}"] = y[index]
    return arrays


def main() -> None:
    """Train both networks and write two files for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums of floats depend on the number of threads
    arrays = split_digits()
    data = {key: torch.from_numpy(array) for key, array in arrays.items()}
    recipes = (
        ("digits-vgg9", vgg9(), HE_GAIN, 1.5e-3),
        ("digits-lenet5", lenet5(channels=1, size=8), SMALL_GAIN, 3e-3),
    )
    for name, network, gain, peak_lr in recipes:
        generator = torch.Generator().manual_seed(args.seed)
        initialise(network, generator, gain)
        fit(
            network,
            data["x_train"],
            data["y_train"],
            epochs=40,
            batch=32,
            peak_lr=peak_lr,
            generator=generator,
        )
        doc = f"{name}: 8x8 digits, pixels in 0..1. Takes the images of {name}.npz as they are."
        save(to_onnx(network, name, (1, 8, 8), doc), args.out / f"{name}.onnx")
        np.savez_compressed(args.out / f"{name}.npz", **arrays)
        print(f"{name}: validation accuracy {accuracy(network, data['x_val'], data['y_val']):.2%}")
        test = data["x_test"], data["y_test"]
        chips = accuracy_on_chips(
            network, *test, sigma=0.5, chips=250, generator=torch.Generator().manual_seed(0)
        )
        print(f"  test accuracy {accuracy(network, *test):.2%}")
        print(f"  at sigma 0.5, {len(chips)} chips: {chips.mean():.2%} +- {chips.std(ddof=1):.2%}")


if __name__ == "__main__":
    main()
