"""A small classifier with its data, and a progress that counts and can end a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.progress import Progress, Task


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes told apart by the brightest quadrant of an 8x8 image."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.normal(0, 0.5, (count, 1, 8, 8)).astype(np.float32)
    for i, label in enumerate(y):
        x[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    return x, y


def network(batch: int | str = "n") -> onnx.ModelProto:
    """Weights set by hand: two convolutions that smooth, and a matrix that compares the quadrants."""
    rng = np.random.default_rng(1)
    smooth = np.full((4, 1, 3, 3), 1 / 9) + rng.normal(0, 0.02, (4, 1, 3, 3))
    mix = np.zeros((4, 4, 3, 3))
    mix[np.arange(4), np.arange(4)] = 1 / 9
    mix += rng.normal(0, 0.03, mix.shape)
    read = np.zeros((4, 4, 4, 4))
    for label in range(4):
        read[label, :, 2 * (label // 2) : 2 * (label // 2) + 2, 2 * (label % 2) : 2 * (label % 2) + 2] = 1
    weights = {
        "k1": smooth.astype(np.float32),
        "k2": mix.astype(np.float32),
        "fc": (read - read.mean(0)).reshape(4, -1).T.astype(np.float32),
        "shape": np.array([1 if batch == 1 else -1, 64]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "k2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Reshape", ["r2", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "quadrants",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with its data beside it."""
    path = tmp_path / "quadrants.onnx"
    path.write_bytes(network().SerializeToString())
    arrays = {}
    for part, count, seed in (("train", 160, 0), ("val", 60, 1), ("test", 80, 2)):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = samples(count, seed)
    np.savez(path.with_suffix(".npz"), **arrays)
    return path


class KilledError(Exception):
    """Stands for a kill."""


class _Countdown(Task):
    def __init__(self, left: float) -> None:
        self.left = left

    def advance(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise KilledError


class Countdown(Progress):
    """Ends the run when a task of a name, or of any, has gone on for more than a number of steps."""

    def __init__(self, name: str | None = None, limit: float = float("inf")) -> None:
        self.name, self.limit = name, limit
        self.seen: list[str] = []

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:
        del total, done
        self.seen.append(description)
        yield _Countdown(self.limit if description == self.name else float("inf"))


@pytest.fixture
def countdown() -> type[Countdown]:
    """The class of a progress that ends the run within a task."""
    return Countdown


@pytest.fixture
def killed() -> type[Exception]:
    """What such a run ends with."""
    return KilledError


@pytest.fixture
def fixed_model(model: Path) -> Path:
    """The same model with a batch size of 1 in its input and in a Reshape."""
    path = model.with_name("fixed.onnx")
    path.write_bytes(network(1).SerializeToString())
    path.with_suffix(".npz").write_bytes(model.with_suffix(".npz").read_bytes())
    return path
