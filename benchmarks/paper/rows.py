"""The rows of the table: a network, its data, and how a plain network for a training seed is had."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Row:
    """A network on a dataset.

    Attributes:
        dataset: Name of the dataset, as the training script knows it.
        preprocess: How its 8-bit pixels become the network's input: options of every verb.
        epochs: Epochs that training the plain network takes.
        rung: Epochs of each training that shows one part of the method by itself.
    """

    dataset: str
    preprocess: dict[str, Any]
    epochs: int
    rung: int

    def plain(self, name: str, data: Path, seed: int, folder: Path) -> Path:
        """Return the plain network: the bundled one for seed 0, else one trained by the same script."""
        if seed == 0:
            return MODELS / f"{name}.onnx"
        target = folder / f"{name}.onnx"
        if not target.exists():
            script = [sys.executable, str(MODELS / "train_lenet5.py")]
            options = ["--dataset", self.dataset, "--data", str(data), "--seed", str(seed)]
            subprocess.run([*script, *options, "--out", str(folder)], check=True)  # noqa: S603 (our own)
        return target


_MNIST = {"scale": (1 / 255,), "mean": (0.1307,), "std": (0.3081,)}
_CIFAR10 = {"scale": (1 / 255,), "mean": (0.4734,), "std": (0.2516,)}

ROWS = {
    "lenet5-mnist": Row("mnist", _MNIST, epochs=8, rung=16),
    "lenet5-cifar10": Row("cifar10", _CIFAR10, epochs=30, rung=40),
}
