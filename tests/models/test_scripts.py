"""The parts of the training scripts whose mistakes a good accuracy would not reveal."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn


@pytest.mark.parametrize(
    ("builder", "args", "shape"),
    [
        ("vgg9", (), (1, 8, 8)),
        ("lenet5", (1, 8), (1, 8, 8)),
        ("lenet5", (1, 28), (1, 28, 28)),
        ("lenet5", (3, 32), (3, 32, 32)),
    ],
)
def test_exported_model_computes_what_torch_does(script, builder, args, shape):
    networks, export = script("networks"), script("export")
    network = getattr(networks, builder)(*args)
    generator = torch.Generator().manual_seed(1)
    networks.initialise(network, generator, networks.HE_GAIN)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, generator=generator)
    x = torch.randn(3, *shape, generator=generator)
    model = export.to_onnx(network, "n", shape, "").SerializeToString(deterministic=True)
    assert model == export.to_onnx(network, "n", shape, "").SerializeToString(deterministic=True)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": x.numpy()})
    np.testing.assert_allclose(logits, network(x).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_export_names_a_module_it_cannot_write(script):
    network = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(1)))
    with pytest.raises(TypeError, match="norm: BatchNorm2d"):
        script("export").to_onnx(network, "n", (1, 8, 8), "")


def test_augmentation_only_moves_and_mirrors_within_its_limits(script):
    train = script("train_lenet5")
    recipe = train.RECIPES["cifar10"]
    size, shift = recipe.size, recipe.shift
    # The value of a pixel tells its row, column, channel and image.
    position = torch.arange(64 * 3 * size * size, dtype=torch.float64).reshape(64, 3, size, size)
    moved = train.augment(position, recipe, torch.Generator().manual_seed(0))
    seen = set()
    for image, result in zip(position, moved, strict=True):
        inner = result[:, shift:-shift, shift:-shift]
        mirrored = bool(inner[0, 0, 0] > inner[0, 0, 1])
        inner = inner.flip(2) if mirrored else inner
        offset = int(inner[0, 0, 0] - image[0, 0, 0])
        top, left = divmod(offset, size)
        assert torch.equal(inner, image[:, top : top + size - 2 * shift, left : left + size - 2 * shift])
        seen.add((mirrored, top, left))
    assert {m for m, _, _ in seen} == {False, True}
    assert {t for _, t, _ in seen} == {c for _, _, c in seen} == set(range(2 * shift + 1))
