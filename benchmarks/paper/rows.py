"""The rows of the table: a network, its data, and how a plain network for a training seed is had."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnpass.training.schedule import RATE

MODELS = Path(__file__).resolve().parents[2] / "models"
FULL_WIDTH = 64
"""Filters of VGG16's first convolution."""


@dataclass(frozen=True)
class Row:
    """A network on a dataset.

    Attributes:
        network: Its name.
        dataset: Name of the dataset.
        preprocess: How its 8-bit pixels become the network's input: options of every verb.
        epochs: Epochs that training the plain network takes.
        rung: Epochs of each training that shows one part of the method by itself.
        rate: Peak learning rate of every training of analog weights.
        told: Whether the main job is told that number, too; else its lengths follow data and model.
        width: Filters of the first convolution of VGG16; None for LeNet-5.
        parts: Images for training, for validation, and for test; None for all.
        rungs: Rungs of the row; empty for all.
    """

    network: str
    dataset: str
    preprocess: dict[str, Any]
    epochs: int
    rung: int
    rate: float = RATE
    told: bool = False
    width: int | None = None
    parts: tuple[int, int, int] | None = None
    rungs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the table says of the row."""
        what = f"{self.network} on {self.dataset}"
        if self.parts is not None:
            train, val, test = self.parts
            what += f", {train:,} training, {val:,} validation and {test:,} test images"
        what += f"; the plain network was trained for {self.epochs} epochs."
        if self.width not in {None, FULL_WIDTH}:
            what += f" A cut: every layer has {self.width}/{FULL_WIDTH} of the filters that VGG16 has."
        return what

    def dry(self) -> Row:
        """Return the same row with hardly any work in it, to see whether everything runs."""
        return replace(
            self, epochs=2, rung=2, told=True, parts=(256, 64, 64), width=None if self.width is None else 2
        )

    def cut(self, data: Path, folder: Path) -> Path:
        """Return the file of the data, with as many images as the row says.

        Validation images are the training images that follow those that are trained on.
        """
        if self.parts is None:
            return data
        path = folder / "data.npz"
        if not path.exists():
            train, val, test = self.parts
            slices = {"train": slice(train), "val": slice(train, train + val), "test": slice(test)}
            arrays = {}
            with np.load(data) as file:
                for kind in "xy":
                    whole = {"train": file[f"{kind}_train"], "test": file[f"{kind}_test"]}
                    whole["val"] = whole["train"]
                    arrays.update({f"{kind}_{part}": whole[part][slices[part]] for part in slices})
            partial = folder / "data.partial.npz"
            np.savez(partial, **arrays)
            partial.replace(path)
        return path

    def plain(
        self, name: str, data: Path, seed: int, folder: Path, device: str
    ) -> tuple[Path, tuple[int, float | None]]:
        """Return the plain network: the bundled one where there is one, else one that is trained.

        With it come the epochs and seconds that training it took; no seconds where it was not trained here,
        or not in one go.

        Args:
            name: Name of the row.
            data: What `cut` gave.
            seed: Seed of the training.
            folder: Where it goes; a network that lies there is not trained again.
            device: Where training runs.
        """
        if self.width is None and seed == 0:
            return MODELS / f"{name}.onnx", (self.epochs, None)
        target, took = folder / f"{name}.onnx", folder / f"{name}.seconds.json"
        if not target.exists():
            resumed, start = target.with_suffix(".pt").exists(), time.perf_counter()
            self.train(data, seed, self.epochs, target, device)
            seconds = None if resumed else round(time.perf_counter() - start, 1)
            took.write_text(json.dumps(seconds) + "\n")
        return target, (self.epochs, json.loads(took.read_text()) if took.exists() else None)

    def train(self, data: Path, seed: int, epochs: int, target: Path, device: str) -> None:
        """Train the plain network, and write it.

        Args:
            data: What `cut` gave.
            seed: Seed of the training.
            epochs: Its length.
            target: The file to write.
            device: Where training runs.
        """
        options = ["--data", str(data), "--seed", str(seed), "--epochs", str(epochs), "--out", str(target)]
        if self.width is None:
            script = "train_lenet5.py"
            options += ["--dataset", self.dataset.replace("-", "").lower()]
        else:
            script = "train_vgg16.py"
            options += ["--width", str(self.width), "--device", device]
        subprocess.run([sys.executable, str(MODELS / script), *options], check=True)  # noqa: S603 (our own)


_MNIST = {"scale": (1 / 255,), "mean": (0.1307,), "std": (0.3081,)}
_CIFAR = {"scale": (1 / 255,), "mean": (0.4734,), "std": (0.2516,)}
_GPU: dict[str, Any] = {
    "epochs": 60,
    "rung": 32,
    "told": True,
    "width": FULL_WIDTH,
    "parts": (49_000, 1_000, 10_000),
    "rungs": ("plain", "penalty", "paper", "best"),
}
_CUT: dict[str, Any] = {
    "epochs": 30,
    "rung": 20,
    "rate": 1e-3,
    "width": 16,
    "parts": (10_000, 1_000, 2_000),
}

ROWS = {
    "lenet5-mnist": Row("LeNet-5", "MNIST", _MNIST, epochs=8, rung=16),
    "lenet5-cifar10": Row("LeNet-5", "CIFAR-10", _CIFAR, epochs=30, rung=40),
    "vgg16-cifar10": Row("VGG16", "CIFAR-10", _CIFAR, **_GPU),
    "vgg16-cifar100": Row("VGG16", "CIFAR-100", _CIFAR, **_GPU),
    "vgg16-cifar10-cut": Row("VGG16", "CIFAR-10", _CIFAR, **_CUT),
    "vgg16-cifar100-cut": Row("VGG16", "CIFAR-100", _CIFAR, **_CUT),
}
