"""Augmentation of training images: only what the model that came in does not mind.

Whether a mirrored or shifted image still is what it was depends on the data, of which nothing is known. The
model knows: where it keeps its figure on augmented validation samples, it was trained to, or the data do not
care.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch

from cnpass.training.forward import Samples

Augmentation = Callable[[Samples, torch.Generator], Samples]
"""Changes samples at random; labels stay."""

Name = Literal["flip", "shift"]
NAMES: tuple[Name, ...] = get_args(Name)
KEEPS = 0.99
"""Fraction of its figure that a model has to keep on augmented samples to be trained on such."""
_SHIFT = 1 / 16
"""Largest shift as a fraction of the image's size."""
_CHANNELS = frozenset({1, 3, 4})


def spatial_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the axes of height and width of a batch of images, None if it is no batch of images.

    Args:
        shape: Four sizes [N, C, H, W] or [N, H, W, C], C being 1, 3 or 4.
    """
    if len(shape) != 4:
        return None
    if shape[1] in _CHANNELS:
        return 2, 3
    return (1, 2) if shape[3] in _CHANNELS else None


def augmentation(names: Sequence[Name]) -> Augmentation:
    """Return what applies all of these to the first input, which must be images."""
    steps = [_STEPS[name] for name in names]

    def apply(samples: Samples, generator: torch.Generator) -> Samples:
        images, *others = samples.inputs
        for step in steps:
            images = step(images, generator)
        return Samples((images, *others), samples.labels)

    return apply


def _flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror every second image, on average, from left to right."""
    _, width = _axes(images)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(width), images)


def _shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift every image by up to a sixteenth of its size; its border is repeated."""
    axes = _axes(images)
    nchw = images if axes == (2, 3) else images.permute(0, 3, 1, 2)
    moved = nchw
    for axis in (2, 3):
        size = nchw.shape[axis]
        most = max(1, round(size * _SHIFT))
        by = torch.randint(-most, most + 1, (len(images), 1), generator=generator)
        index = (torch.arange(size) + by).clamp(0, size - 1).to(images.device)
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        moved = moved.gather(axis, index.view(shape).expand_as(moved))
    return moved if axes == (2, 3) else moved.permute(0, 2, 3, 1)


def _axes(images: torch.Tensor) -> tuple[int, int]:
    axes = spatial_axes(images.shape)
    assert axes is not None  # noqa: S101 (whoever augments has asked)
    return axes


_STEPS: dict[Name, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "flip": _flip,
    "shift": _shift,
}
