"""The parts of the training scripts whose mistakes a good accuracy would not reveal."""

from __future__ import annotations

import sys
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


@pytest.mark.parametrize(("coarse", "parts"), [(0, (50, 10)), (1, (30, 7))])
def test_packed_cifar_has_the_images_and_fine_labels_of_the_binary_files(script, tmp_path, coarse, parts):
    rng = np.random.default_rng(0)
    expected = {}
    for part, count in zip(("train", "test"), parts, strict=True):
        x = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
        y = rng.integers(0, 256, (count, coarse + 1)).astype(np.uint8)
        expected |= {f"x_{part}": x, f"y_{part}": y[:, -1]}
        records = np.concatenate([y, x.reshape(count, -1)], axis=1)
        names = [f"{part}.bin"] if coarse else [f"data_batch_{i}.bin" for i in range(1, 6)]
        names = names if part == "train" or coarse else ["test_batch.bin"]
        for name, piece in zip(names, np.split(records, len(names)), strict=True):
            piece.tofile(tmp_path / name)
    found = script("pack_dataset").packed(tmp_path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_packed_mnist_has_the_arrays_of_the_idx_files(script, dataset, mnist_files, monkeypatch, tmp_path):
    target = tmp_path / "mnist.npz"
    monkeypatch.setattr(sys, "argv", ["pack_dataset.py", str(mnist_files), str(target)])
    script("pack_dataset").main()
    names = ("x_train", "y_train", "x_test", "y_test")
    with np.load(target) as found:
        for name, array in zip(names, dataset("mnist"), strict=True):
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
