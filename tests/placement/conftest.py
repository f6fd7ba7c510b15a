"""A small network with a convolution, a dense layer and data, and what training it needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.runtime.devices import make_device
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples
from cnpass.training.lift import lift
from cnpass.training.objective import Objective
from cnpass.training.retrain import Problem
from cnpass.training.validation import Validator

CLASSES = 3
CHIPS = range(1_000_000, 1_000_004)


@pytest.fixture(scope="session")
def network(build) -> onnx.ModelProto:
    """Two convolutions (the second strided), a Gemm and a MatMul; nodes c1, c2, fc and one without a name."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["h1"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["h2"], "c2", strides=[2, 2]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["h3"], "fc", transB=1),
        helper.make_node("Relu", ["h3"], ["r3"]),
        helper.make_node("MatMul", ["r3", "w4"], ["y"]),
    ]
    weights = {
        "k1": normal(8, 2, 3, 3),
        "k2": normal(6, 8, 2, 2),
        "w3": normal(10, 6 * 3 * 3),
        "w4": normal(10, CLASSES),
    }
    return build(nodes, weights, inputs={"x": ["n", 2, 6, 6]})


@pytest.fixture
def document(network) -> Document:
    return Document.from_proto(network)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(40, 2, 6, 6)).astype(np.float32))


@pytest.fixture
def problem(document, images) -> Problem:
    """Training and validation on what the clean model itself says of random images."""
    teacher = Forward(lift(document))
    with torch.no_grad():
        clean = teacher(Samples((images,), None))
    labels = clean.argmax(1)
    samples = Samples((images,), labels)
    device = make_device("lognormal", sigma=0.5)
    crossbars = Crossbars.of(plan(document), device, teacher.module.weights)
    return Problem(
        samples=samples,
        objective=Objective.of("top1", clean),
        clean=clean,
        validator=Validator(samples, labels.numpy(), "top1", crossbars, 3, CHIPS),
        crossbars=crossbars,
        teacher=teacher,
    )


@pytest.fixture(scope="session")
def lifted() -> Callable[[Document], Forward]:
    """Gives a document as something to run."""
    return lambda document: Forward(lift(document))
