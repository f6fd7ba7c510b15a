"""Activation functions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cnpass.training.rules.registry import Kernel, Node, pure, rule

pure(
    {
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Softsign": F.softsign,
        "HardSwish": F.hardswish,
        "Mish": F.mish,
        "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    }
)


@rule("LeakyRelu")
def leaky_relu(node: Node) -> Kernel:
    """LeakyRelu."""
    alpha = node.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@rule("PRelu", layer=True)
def prelu(_node: Node) -> Kernel:
    """PRelu with an unidirectionally broadcast slope."""

    def kernel(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        if slope.dim() == 1 and x.dim() > 2 and slope.numel() == x.shape[1] != x.shape[-1]:
            slope = slope.reshape(-1, *[1] * (x.dim() - 2))  # before opset 7 a slope meant one per channel
        return torch.where(x < 0, x * slope, x)

    return kernel


@rule("Elu")
def elu(node: Node) -> Kernel:
    """Elu."""
    alpha = node.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@rule("Celu", since=12)
def celu(node: Node) -> Kernel:
    """Celu."""
    alpha = node.number("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@rule("Selu")
def selu(node: Node) -> Kernel:
    """Selu; the operator's own default constants are those of the paper, as float32."""
    alpha, gamma = node.number("alpha", 1.6732632423543772), node.number("gamma", 1.0507009873554805)
    return lambda x: gamma * F.elu(x, alpha)


@rule("HardSigmoid")
def hard_sigmoid(node: Node) -> Kernel:
    """HardSigmoid."""
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0, 1)


@rule("Gelu", since=20)
def gelu(node: Node) -> Kernel:
    """Gelu, exact or by tanh."""
    approximate = node.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@rule("Swish", since=24)
def swish(node: Node) -> Kernel:
    """Swish: ``x * sigmoid(alpha x)``."""
    alpha = node.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@rule("ThresholdedRelu")
def thresholded_relu(node: Node) -> Kernel:
    """ThresholdedRelu."""
    alpha = node.number("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


@rule("Shrink", since=9)
def shrink(node: Node) -> Kernel:
    """Shrink: soft or hard shrinkage around zero."""
    lambd, bias = node.number("lambd", 0.5), node.number("bias", 0.0)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros_like(x)
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))

    return kernel


@rule("Clip")
def clip_attributes(node: Node) -> Kernel:
    """Clip with its bounds as attributes (before opset 11)."""
    low, high = node.attributes.get("min"), node.attributes.get("max")
    return lambda x: x if low is None and high is None else torch.clamp(x, low, high)


@rule("Clip", since=11, structural={1, 2})
def clip(_node: Node) -> Kernel:
    """Clip with its bounds as optional scalar inputs; the upper bound wins where they cross."""

    def kernel(
        x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None
    ) -> torch.Tensor:
        if low is None and high is None:
            return x
        return torch.clamp(x, None if low is None else low.item(), None if high is None else high.item())

    return kernel


@rule("Dropout", structural={1, 2}, view=True)
def dropout(node: Node) -> Kernel:
    """Dropout as inference runs it: the identity, and a mask of ones."""
    outputs = node.outputs
    mask_type = torch.bool if node.opset >= 10 else None

    def kernel(
        x: torch.Tensor, _ratio: torch.Tensor | None = None, training: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if training is not None and bool(training.item()):
            raise ValueError("Dropout in training mode has no rule")
        return x if outputs == 1 else (x, torch.ones_like(x, dtype=mask_type))

    return kernel
