"""Accuracy of the two real LeNet-5 models under log-normal variation, without any code of cnpass.

    python benchmarks/independent_check.py lenet5-mnist --data mnist.npz --sigma 0.5 --chips 250

The forward pass is written out by hand in torch and the variation comes from torch's own generator, so
agreement with `cnpass evaluate` (confidence intervals of the mean that overlap) checks the model's rewriting,
the ops, the random numbers and the statistics all at once.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# mean, standard deviation, padding of the first convolution
MODELS = {"lenet5-mnist": (0.1307, 0.3081, 2), "lenet5-cifar10": (0.4734, 0.2516, 0)}
Z95 = 1.959964  # half-width of a 95 % interval of a normal mean, in standard errors


def logits(images: Tensor, p: dict[str, Tensor], padding: int) -> Tensor:
    """LeNet-5 on [N, C, H, W]."""
    x = F.max_pool2d(F.relu(F.conv2d(images, p["conv1.weight"], p["conv1.bias"], padding=padding)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, p["conv2.weight"], p["conv2.bias"])), 2)
    x = F.relu(F.linear(x.flatten(1), p["fc1.weight"], p["fc1.bias"]))
    x = F.relu(F.linear(x, p["fc2.weight"], p["fc2.bias"]))
    return F.linear(x, p["fc3.weight"], p["fc3.bias"])


def vary(p: dict[str, Tensor], sigma: float, generator: torch.Generator) -> dict[str, Tensor]:
    """One chip: every weight times exp(sigma * N(0, 1)); biases are digital and stay."""
    return {
        name: value * torch.exp(sigma * torch.randn(value.shape, generator=generator))
        if name.endswith(".weight")
        else value
        for name, value in p.items()
    }


def main() -> None:
    """Print the clean accuracy and, for each sigma, the statistics over chips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.5])
    parser.add_argument("--chips", type=int, default=250)
    parser.add_argument("--images", type=int, default=10_000, help="the first so many of the test set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, required=True, help="NPZ file with x_test and y_test")
    args = parser.parse_args()

    mean, std, padding = MODELS[args.model]
    with np.load(args.data, allow_pickle=False) as arrays:
        raw, raw_labels = arrays["x_test"], arrays["y_test"]
    images = (torch.tensor(raw[: args.images]) / 255 - mean) / std
    labels = torch.tensor(raw_labels[: args.images].astype(np.int64))
    graph = onnx.load(ROOT / "models" / f"{args.model}.onnx").graph
    nominal = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in graph.initializer}

    @torch.no_grad()
    def accuracy(p: dict[str, Tensor]) -> float:
        hits = [
            (logits(x, p, padding).argmax(1) == y).sum()
            for x, y in zip(images.split(1000), labels.split(1000), strict=True)
        ]
        return float(sum(hits)) / len(labels)

    print(f"{args.model}: clean {accuracy(nominal):.4f} on {len(labels)} images")
    for sigma in args.sigma:
        generator = torch.Generator().manual_seed(args.seed)
        values = np.array([accuracy(vary(nominal, sigma, generator)) for _ in range(args.chips)])
        center, spread = values.mean(), values.std(ddof=1)
        half = Z95 * spread / math.sqrt(args.chips)
        print(
            f"sigma {sigma}: mean {center:.4f} std {spread:.4f} "
            f"ci95 [{center - half:.4f}, {center + half:.4f}] over {args.chips} chips"
        )


if __name__ == "__main__":
    main()
