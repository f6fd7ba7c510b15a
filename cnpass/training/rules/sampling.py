"""Sampling images at positions that the model computes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cnpass.training.rules.registry import Kernel, Node, rule

_MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""Names of the modes since opset 20, and those of before, which torch uses too."""


@rule("GridSample", since=16)
def grid_sample(node: Node) -> Kernel:
    """GridSample on images and volumes; torch has no cubic interpolation of volumes."""
    mode, padding = node.text("mode", "linear"), node.text("padding_mode", "zeros")
    mode, corners = _MODES.get(mode, mode), node.flag("align_corners")

    def kernel(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)

    return kernel
