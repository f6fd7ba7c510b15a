"""Trains VGG16 on CIFAR: `python models/train_vgg16.py --data cifar10.npz --out vgg16-cifar10.onnx`.

With BatchNorm, which is folded into the convolutions in the end. What was trained is kept beside the output
after every epoch; the same command goes on from there. On a GPU products are in bfloat16.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from export import save, to_onnx
from networks import HE_GAIN, folded, initialise, vgg16
from torch import Tensor, nn
from train_lenet5 import Recipe, augment
from training import accuracy

MEAN, STD = 0.4734, 0.2516
"""Of the pixels of CIFAR-10 in 0..1, which are those of CIFAR-100 to the second digit."""
RECIPE = Recipe(channels=3, size=32, mean=MEAN, std=STD, epochs=60, shift=4, mirror=True)
BATCH = 128
PEAK_RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def read(path: Path, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Give normalised images and labels by part; without x_val every tenth training image is held out."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if "x_val" not in arrays:
        held_out = np.arange(len(arrays["x_train"])) % 10 == 9
        for kind in "xy":
            whole = arrays[f"{kind}_train"]
            arrays[f"{kind}_train"], arrays[f"{kind}_val"] = whole[~held_out], whole[held_out]
    parts = {}
    for part in ("train", "val", "test"):
        images = torch.from_numpy(arrays[f"x_{part}"]).to(device)
        labels = torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)).to(device)
        parts[part] = (images.float() / 255 - MEAN) / STD, labels
    return parts


class Training:
    """Stochastic gradient descent on cross-entropy with a one-cycle learning rate, epoch by epoch.

    Every epoch draws its order and its augmentation from a seed of its own, so that one which goes on from a
    checkpoint is as it would have been.
    """

    def __init__(self, network: nn.Sequential, steps: int, seed: int, path: Path) -> None:
        self.network, self.seed, self.path = network, seed, path
        self.optimizer = torch.optim.SGD(
            network.parameters(), PEAK_RATE, MOMENTUM, weight_decay=DECAY, nesterov=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, PEAK_RATE, steps)
        self.epoch = 0
        if path.exists():
            state: dict[str, Any] = torch.load(path, map_location=next(network.parameters()).device)
            self.epoch = state.pop("epoch")
            for name, value in state.items():
                getattr(self, name).load_state_dict(value)

    def run(self, x: Tensor, y: Tensor) -> None:
        """Train one epoch and keep its state."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        self.network.train()
        for index in torch.randperm(len(x), generator=generator).to(x.device).split(BATCH):
            images = augment(x[index], RECIPE, generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
                loss = F.cross_entropy(self.network(images), y[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
        self.epoch += 1
        parts = ("network", "optimizer", "schedule")
        state = {name: getattr(self, name).state_dict() for name in parts}
        partial = self.path.with_suffix(".partial")
        torch.save(state | {"epoch": self.epoch}, partial)
        partial.replace(self.path)


def main() -> None:
    """Train one network and write its ONNX file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="x_train, y_train, x_test, y_test, as 8-bit")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--width", type=int, default=64, help="filters of the first convolution")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums of floats depend on the number of threads
    device = torch.device(args.device)
    parts = read(args.data, device)
    x, y = parts["train"]
    network = vgg16(int(y.max()) + 1, args.width, normalised=True)
    initialise(network, torch.Generator().manual_seed(args.seed), HE_GAIN)
    network = network.to(device, memory_format=torch.channels_last)
    training = Training(network, args.epochs * -(-len(x) // BATCH), args.seed, args.out.with_suffix(".pt"))
    while training.epoch < args.epochs:
        training.run(x, y)
    network = folded(network)
    for part in ("val", "test"):
        print(f"{args.out.stem}: {part} accuracy {accuracy(network, *parts[part]):.2%}")
    doc = (
        f"{args.out.stem}: 8-bit pixels, normalised (x * scale - mean) / std with "
        f"--scale {1 / 255} --mean {MEAN} --std {STD}"
    )
    save(to_onnx(network.cpu(), args.out.stem, (3, RECIPE.size, RECIPE.size), doc), args.out)


if __name__ == "__main__":
    main()
