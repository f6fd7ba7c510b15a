"""The networks that every simulator runs, as torch module and as ONNX model with the same weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

MODELS = Path(__file__).resolve().parents[2] / "models"
sys.path.insert(0, str(MODELS))

from export import to_onnx  # noqa: E402 (lies among the bundled models)
from networks import HE_GAIN, initialise, lenet5, vgg16  # noqa: E402


@dataclass(frozen=True)
class Workload:
    """Images through one network.

    Attributes:
        network: The network in torch, in evaluation mode.
        model: The same in ONNX; input "input", output "logits".
        images: Inputs [N, C, H, W], float32, standard normal: times do not depend on them.
        clean: What the network makes of them, [N, classes].
        macs: Multiply-accumulates of one image.
        weights: Weights that chips hold.
    """

    network: nn.Sequential
    model: onnx.ModelProto
    images: torch.Tensor
    clean: torch.Tensor
    macs: int
    weights: int

    def deviation(self, outputs: np.ndarray | torch.Tensor) -> float:
        """Distance of the first images' outputs from clean ones, over the size of these."""
        outputs = torch.as_tensor(outputs)
        clean = self.clean[: len(outputs)]
        return float((outputs - clean).norm() / clean.norm())

    def layers(self) -> list[nn.Conv2d | nn.Linear]:
        """What runs on crossbars, in order."""
        return [module for module in self.network if isinstance(module, nn.Conv2d | nn.Linear)]

    def ranges(self) -> list[tuple[float, float]]:
        """For every layer the largest magnitudes that enter it and that leave it before its bias is added."""
        found: list[tuple[float, float]] = []

        def look(layer: nn.Conv2d | nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            bias = layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None]
            found.append((float(inputs[0].abs().max()), float((output - bias).abs().max())))

        handles = [layer.register_forward_hook(look) for layer in self.layers()]
        with torch.inference_mode():
            self.network(self.images[:16])
        for handle in handles:
            handle.remove()
        return found


def _workload(network: nn.Sequential, model: onnx.ModelProto, shape: tuple[int, ...]) -> Workload:
    network = network.eval().requires_grad_(requires_grad=False)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    macs = 0

    def count(layer: nn.Conv2d | nn.Linear, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += layer.weight[0].numel() * output[0].numel()

    layers = [module for module in network if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        clean = network(images)
    for handle in handles:
        handle.remove()
    return Workload(network, model, images, clean, macs, sum(layer.weight.numel() for layer in layers))


def _lenet5() -> Workload:
    model = onnx.load(MODELS / "lenet5-mnist.onnx")
    network = lenet5(1, 28)
    weights = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    network.load_state_dict(weights)
    return _workload(network, model, (1024, 1, 28, 28))


def _vgg16() -> Workload:
    network = vgg16(10)
    initialise(network, torch.Generator().manual_seed(0), HE_GAIN)
    model = to_onnx(network, "vgg16", (3, 32, 32), "VGG16 for CIFAR with random weights")
    return _workload(network, model, (128, 3, 32, 32))


WORKLOADS: dict[str, Callable[[], Workload]] = {"lenet5": _lenet5, "vgg16": _vgg16}
