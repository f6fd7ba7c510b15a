"""Weights without gradient are found and said in one line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cnpass.training.forward import Forward, Samples
from cnpass.training.idle import find_idle
from cnpass.training.lift import Lifted

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_every_reason_is_told_apart(make) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "before cast"], ["a"]),
        helper.make_node("Cast", ["a"], ["whole"], to=I64),
        helper.make_node("Cast", ["whole"], ["real"], to=F),
        helper.make_node("MatMul", ["real", "good"], ["b"]),
        helper.make_node("MatMul", ["x", "before floor"], ["c"]),
        helper.make_node("Floor", ["c"], ["d"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "integers", "z"], ["m"]),
        helper.make_node("Cast", ["m"], ["e"], to=F),
        helper.make_node("Sum", ["b", "d", "e"], ["y"]),
        helper.make_node("MatMul", ["x", "elsewhere"], ["second"]),
    ]
    names = ("before cast", "good", "before floor", "elsewhere")
    weights = {name: _random(4, 4) for name in names}
    weights["integers"] = np.arange(16, dtype=np.int8).reshape(4, 4)
    module = Lifted(make(nodes, {"x": (F, ["n", 4])}, ["y", "second"], weights))
    idle = find_idle(Forward(module), Samples((torch.from_numpy(_random(5, 4)),)), 0)
    assert (idle.total, idle.count) == (5, 4)
    assert (idle.apart, idle.cut, idle.flat) == (("elsewhere",), ("before cast",), ("before floor",))
    assert idle.integer == ("integers",)
    assert idle.describe() == (
        "4 of 5 weights are not trained: 1 that the first output does not depend on (elsewhere); "
        "1 before operators without a gradient, such as Cast to integers (before cast); "
        "1 whose gradient is zero on the samples (before floor); "
        "1 stored as integers that an operator multiplies by (integers)"
    )
    assert all(weight.grad is None for weight in module.weights.values())


def test_nothing_is_said_where_all_is_trained(convnet) -> None:
    idle = find_idle(Forward(Lifted(convnet)), Samples((torch.from_numpy(_random(8, 1, 8, 8)),)), 0)
    assert idle.describe() is None


@pytest.mark.parametrize(("name", "group"), [("dory_proxyless", "cut"), ("ezkl_fr_age", "apart")])
def test_third_party_models_with_weights_that_stay(zoo, name: str, group: str) -> None:
    """One rounds through Casts to integers; the other has nine outputs, of which the first is trained on."""
    path, _ = zoo(name)
    module = Lifted(onnx.load(path))
    shape = [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    idle = find_idle(Forward(module, 1), Samples((torch.from_numpy(_random(*shape)),)), 0)
    assert getattr(idle, group)
    assert idle.count == sum(map(len, (idle.apart, idle.cut, idle.flat)))
    assert f"{idle.count} of {len(module.weights)} weights are not trained" in (idle.describe() or "")
