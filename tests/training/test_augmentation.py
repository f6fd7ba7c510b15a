"""Augmentation: which inputs are images, and what becomes of them."""

from __future__ import annotations

import pytest
import torch

from cnpass.training.augmentation import augmentation, spatial_axes
from cnpass.training.forward import Samples

IMAGES = torch.arange(64 * 3 * 16 * 16, dtype=torch.float32).reshape(64, 3, 16, 16)
LABELS = torch.arange(64)


def _augmented(images: torch.Tensor, name: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    samples = augmentation([name])(Samples((images, LABELS), LABELS), generator)
    assert torch.equal(samples.labels, LABELS)
    assert torch.equal(samples.inputs[1], LABELS)
    return samples.inputs[0]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((9, 3, 8, 8), (2, 3)),
        ((9, 8, 8, 3), (1, 2)),
        ((9, 64), None),
        ((9, 7, 8, 8), None),
        ((3, 8, 8), None),
    ],
)
def test_images_are_told_by_their_channels(shape: tuple[int, ...], axes: tuple[int, int] | None) -> None:
    assert spatial_axes(shape) == axes


@pytest.mark.parametrize("name", ["flip", "shift"])
def test_the_layout_makes_no_difference_and_the_seed_does(name: str) -> None:
    nchw = _augmented(IMAGES, name)
    nhwc = _augmented(IMAGES.permute(0, 2, 3, 1), name)
    assert torch.equal(nhwc.permute(0, 3, 1, 2), nchw)
    assert torch.equal(_augmented(IMAGES, name), nchw)
    assert not torch.equal(_augmented(IMAGES, name, seed=1), nchw)


def test_a_shift_moves_whole_images_by_a_sixteenth_at_most() -> None:
    moved = _augmented(IMAGES, "shift")
    steps = set()
    for before, after in zip(IMAGES, moved, strict=True):
        found = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(after[:, 1:-1, 1:-1], before.roll((-down, -right), (1, 2))[:, 1:-1, 1:-1])
        ]
        assert len(found) == 1
        steps.add(found[0])
    assert len(steps) == 9
