"""The operators of domain ``ai.cnpass`` on the ideal chip, so that a mapped model can be lifted too.

Variation is injected by the caller, who replaces weights by key; the chip number and the device attributes
are therefore not read here.
"""

from __future__ import annotations

import torch

from cnpass.runtime import ops
from cnpass.training.rules.convolution import conv
from cnpass.training.rules.registry import Kernel, Node, rule


@rule(ops.ANALOG_CONV, domain=ops.DOMAIN, structural={3, 4}, layer=True)
def analog_conv(node: Node) -> Kernel:
    """AnalogConv: (X, W, B?, chip, first_sample?)."""
    perm = node.integers(ops.WEIGHT_PERM)
    convolve = conv(node)

    def kernel(
        x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None, *_: torch.Tensor | None
    ) -> torch.Tensor:
        result: torch.Tensor = convolve(x, w.permute(perm) if perm else w, b)
        return result

    return kernel


@rule(ops.ANALOG_MATMUL, domain=ops.DOMAIN, structural={2, 3}, layer=True)
def analog_matmul(node: Node) -> Kernel:
    """AnalogMatMul: (X, W, chip, first_sample?)."""
    perm = node.integers(ops.WEIGHT_PERM)
    return lambda x, w, *_: torch.matmul(x, w.permute(perm) if perm else w)
