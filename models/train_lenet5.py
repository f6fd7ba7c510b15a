"""Trains LeNet-5 on MNIST or CIFAR-10: `python models/train_lenet5.py --dataset mnist --data mnist.npz`.

Every tenth training image is held out for validation; the test images are measured once, at the end.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from export import save, to_onnx
from networks import SMALL_GAIN, initialise, lenet5
from torch import Tensor
from training import accuracy, fit

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recipe:
    """How one dataset is normalised and trained on; `mean` and `std` are those of its pixels in 0..1."""

    channels: int
    size: int
    mean: float
    std: float
    epochs: int
    shift: int
    mirror: bool


RECIPES = {
    "mnist": Recipe(channels=1, size=28, mean=0.1307, std=0.3081, epochs=8, shift=0, mirror=False),
    "cifar10": Recipe(channels=3, size=32, mean=0.4734, std=0.2516, epochs=30, shift=2, mirror=True),
}


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Move each image by up to `shift` pixels, filling with its edge, and mirror half of them if allowed."""
    count, size, shift = len(images), recipe.size, recipe.shift
    padded = F.pad(images, [shift] * 4, mode="replicate")
    top, left = torch.randint(2 * shift + 1, (2, count, 1), generator=generator)
    rows = (top + torch.arange(size))[:, None, :, None]
    columns = left + torch.arange(size)
    if recipe.mirror:
        columns = torch.where(torch.rand(count, 1, generator=generator) < 0.5, columns.flip(1), columns)
    channels = torch.arange(recipe.channels)[None, :, None, None]
    return padded[torch.arange(count)[:, None, None, None], channels, rows, columns[:, None, None, :]]


def main() -> None:
    """Train one network and write its ONNX file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=RECIPES, required=True)
    parser.add_argument("--data", type=Path, required=True, help="NPZ file of the dataset")
    parser.add_argument("--out", type=Path, help="file to write; default: beside this script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's number")
    args = parser.parse_args()
    recipe = RECIPES[args.dataset]
    torch.set_num_threads(1)  # sums of floats depend on the number of threads

    with np.load(args.data, allow_pickle=False) as arrays:
        x, y, x_test, y_test = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    images, test_images = ((torch.from_numpy(a.copy()) / 255 - recipe.mean) / recipe.std for a in (x, x_test))
    labels, test_labels = (torch.from_numpy(a.astype(np.int64)) for a in (y, y_test))
    held_out = torch.arange(len(images)) % 10 == 9

    network = lenet5(recipe.channels, recipe.size)
    generator = torch.Generator().manual_seed(args.seed)
    initialise(network, generator, SMALL_GAIN)
    fit(
        network,
        images[~held_out],
        labels[~held_out],
        epochs=args.epochs or recipe.epochs,
        batch=128,
        peak_lr=3e-3,
        generator=generator,
        augment=lambda batch, source: augment(batch, recipe, source),
    )
    name = f"lenet5-{args.dataset}"
    doc = (
        f"{name}: 8-bit pixels, normalised (x * scale - mean) / std with "
        f"--scale {1 / 255} --mean {recipe.mean} --std {recipe.std}"
    )
    target = args.out or HERE / f"{name}.onnx"
    save(to_onnx(network, name, (recipe.channels, recipe.size, recipe.size), doc), target)
    print(f"{name}: validation accuracy {accuracy(network, images[held_out], labels[held_out]):.2%}")
    print(f"  test accuracy {accuracy(network, test_images, test_labels):.2%}")


if __name__ == "__main__":
    main()
