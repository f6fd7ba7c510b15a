"""Resize and Upsample, axis by axis.

Every axis is interpolated on its own from a table of source positions and weights, which covers all
coordinate transformations and modes of the operator with one small piece of code and keeps the result
differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cnpass.training.rules.registry import Kernel, Node, as_ints, rule

Coordinates = Callable[[torch.Tensor, float, int, int], torch.Tensor]


def _half_pixel(out: torch.Tensor, scale: float, _size: int, _target: int) -> torch.Tensor:
    return (out + 0.5) / scale - 0.5


def _pytorch_half_pixel(out: torch.Tensor, scale: float, _size: int, target: int) -> torch.Tensor:
    return (out + 0.5) / scale - 0.5 if target > 1 else torch.zeros_like(out)


def _half_pixel_symmetric(out: torch.Tensor, scale: float, size: int, target: int) -> torch.Tensor:
    adjustment = np.float32(target) / (np.float32(scale) * np.float32(size))
    offset = float(np.float32(size) / 2 * (1 - adjustment))
    return offset + ((out + 0.5) / scale - 0.5)


def _align_corners(out: torch.Tensor, _scale: float, size: int, target: int) -> torch.Tensor:
    return out * (size - 1) / (target - 1) if target > 1 else torch.zeros_like(out)


def _asymmetric(out: torch.Tensor, scale: float, _size: int, _target: int) -> torch.Tensor:
    return out / scale


def _tf_half_pixel_for_nn(out: torch.Tensor, scale: float, _size: int, _target: int) -> torch.Tensor:
    return (out + 0.5) / scale


_COORDINATES: dict[str, Coordinates] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "tf_half_pixel_for_nn": _tf_half_pixel_for_nn,
}

_NEAREST: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


@dataclass(frozen=True)
class _Interpolation:
    """How one axis is resampled."""

    mode: str
    coordinates: Coordinates
    nearest: Callable[[torch.Tensor], torch.Tensor]
    cubic_a: float
    exclude_outside: bool
    legacy: bool

    def taps(self, size: int, target: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return source positions [taps, target] (unclamped) and their weights.

        All in float32, as runtimes compute it: rounding to the nearest element has ties.
        """
        source = self.coordinates(torch.arange(target, dtype=torch.float32), scale, size, target)
        if self.mode == "nearest":
            # Before opset 11 this was not laid down; ONNX Runtime rounds up where a map gets smaller.
            nearest = torch.ceil if self.legacy and scale < 1 else self.nearest
            return nearest(source)[None].long(), torch.ones(1, target)
        base = torch.floor(source)
        t = source - base
        if self.mode == "linear":
            offsets: tuple[int, ...] = (0, 1)
            weights = [1 - t, t]
        else:
            a = self.cubic_a
            offsets = (-1, 0, 1, 2)
            weights = [
                ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
                ((a + 2) * t - (a + 3)) * t**2 + 1,
                ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1,
                ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
            ]
        positions = torch.stack([base + o for o in offsets]).long()
        table = torch.stack(weights)
        if self.exclude_outside:
            table = torch.where((positions >= 0) & (positions < size), table, 0.0)
            table = table / table.sum(0)
        return positions, table

    def apply(self, x: torch.Tensor, axis: int, target: int, scale: float) -> torch.Tensor:
        """Resample one axis of ``x`` to ``target`` elements."""
        size = x.shape[axis]
        positions, table = self.taps(size, target, scale)
        positions = positions.clamp(0, size - 1).to(x.device)
        if self.mode == "nearest":
            return x.index_select(axis, positions[0])
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        table = table.to(device=x.device, dtype=x.dtype)
        parts = [x.index_select(axis, p) * w.reshape(shape) for p, w in zip(positions, table, strict=True)]
        return torch.stack(parts).sum(0)


def _target_sizes(shape: Sequence[int], sizes: list[int], policy: str) -> tuple[list[int], list[float]]:
    """Return sizes and scales under keep_aspect_ratio_policy."""
    scales = [s / d for s, d in zip(sizes, shape, strict=True)]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(d * scale + 0.5) for d in shape], [scale] * len(scales)


def _resize(node: Node, *, legacy: bool) -> Kernel:
    coordinate_default, nearest_default = (
        ("asymmetric", "floor") if legacy else ("half_pixel", "round_prefer_floor")
    )
    mode = node.text("mode", "nearest")
    coordinates = node.text("coordinate_transformation_mode", coordinate_default)
    if (
        coordinates not in _COORDINATES
        or mode not in {"nearest", "linear", "cubic"}
        or node.flag("antialias")
    ):
        raise node.refuse(f"mode={mode}, {coordinates}" + (", antialias" if node.flag("antialias") else ""))
    interpolation = _Interpolation(
        mode=mode,
        coordinates=_COORDINATES[coordinates],
        nearest=_NEAREST[node.text("nearest_mode", nearest_default)],
        cubic_a=node.number("cubic_coeff_a", -0.75),
        exclude_outside=node.flag("exclude_outside"),
        legacy=legacy,
    )
    axes, policy = node.integers("axes"), node.text("keep_aspect_ratio_policy", "stretch")

    def kernel(
        x: torch.Tensor, scales: torch.Tensor | None = None, sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        chosen = [a % x.dim() for a in axes] if axes is not None else list(range(x.dim()))
        shape = [x.shape[a] for a in chosen]
        if sizes is not None and sizes.numel():
            targets, factors = _target_sizes(shape, as_ints(sizes), policy)
        elif scales is not None:
            factors = [float(v) for v in scales.reshape(-1).tolist()]
            targets = [math.floor(np.float32(d) * np.float32(f)) for d, f in zip(shape, factors, strict=True)]
        else:
            raise ValueError("Resize needs scales or sizes")
        dtype = x.dtype
        x = x if mode == "nearest" or x.is_floating_point() else x.float()  # integers are cut off at the end
        for axis, target, factor in zip(chosen, targets, factors, strict=True):
            if target != x.shape[axis] or factor != 1.0:
                x = interpolation.apply(x, axis, target, factor)
        return x.to(dtype)

    return kernel


@rule("Upsample", since=7)
def upsample_attribute(node: Node) -> Kernel:
    """Upsample with scales as attribute."""
    kernel = _resize(node, legacy=True)
    scales = torch.tensor(node.attributes["scales"])
    return lambda x: kernel(x, scales)


@rule("Upsample", "Resize", since=9, structural={1})
def upsample(node: Node) -> Kernel:
    """Upsample 9 and Resize 10: scales as input, asymmetric coordinates."""
    return _resize(node, legacy=True)


@rule("Resize", since=11, structural={1, 2, 3})
def resize(node: Node) -> Kernel:
    """Resize 11 and later: (x, roi, scales, sizes)."""
    kernel = _resize(node, legacy=False)
    return lambda x, _roi=None, scales=None, sizes=None: kernel(x, scales, sizes)
