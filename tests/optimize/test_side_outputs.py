"""Models of which a part cannot change the figure, which is of the first output, or cannot be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import cnpass
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.passes.centre_inputs import centre
from cnpass.passes.correct_mean_gain import CorrectMeanGain
from cnpass.passes.mean_gain import mean_gains
from cnpass.runtime.devices import LogNormal
from cnpass.training.idle import Idle

Nodes = list[onnx.NodeProto]
LOOSE: dict[str, Any] = {"epochs": 6, "max_overhead": 2.0, "trials": 12}
"""An overhead limit at which placements of one node alone are drawn."""


@pytest.fixture
def make(build, tmp_path: Path) -> Callable[..., Path]:
    """Writes a model of x [n, 4] with data that it classifies without error."""

    def written(nodes: Nodes, outputs: tuple[str, ...] = ("y",)) -> Path:
        rng = np.random.default_rng(0)
        weights = {"w": (4, 6), "v": (6, 4), "t": (6, 4), "u": (4, 3)}
        arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
        proto = build(nodes, arrays | {"eight": np.float32(8)}, outputs=outputs)
        path = tmp_path / "made.onnx"
        path.write_bytes(proto.SerializeToString())
        x = rng.normal(size=(300, 4)).astype(np.float32)
        y = ort.InferenceSession(path).run(["y"], {"x": x})[0].argmax(1)
        parts = {"train": slice(150), "val": slice(150, 220), "test": slice(220, None)}
        data = {f"{kind}_{part}": a[at] for kind, a in (("x", x), ("y", y)) for part, at in parts.items()}
        np.savez(path.with_suffix(".npz"), **data)
        return path

    return written


def _chain() -> Nodes:
    return [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], "last"),
    ]


@pytest.fixture
def aside(make) -> Path:
    """A model with a second output that the first does not depend on."""
    return make([*_chain(), helper.make_node("MatMul", ["x", "u"], ["aux"], "aside")], ("y", "aux"))


@pytest.fixture
def cut(make) -> Path:
    """A model whose first product has no gradient."""
    first, _, last = _chain()
    whole = [
        helper.make_node("Mul", ["h", "eight"], ["h8"]),
        helper.make_node("Cast", ["h8"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["r"], to=TensorProto.FLOAT),
    ]
    return make([first, *whole, last])


@pytest.mark.parametrize("sigma", [0.03, 0.5])
@pytest.mark.parametrize(
    ("name", "node", "why"),
    [
        ("aside", "aside", "the first output does not depend on it"),
        ("cut", "first", "what follows it has no gradient, so compensation cannot be trained"),
    ],
)
def test_the_search_leaves_out_what_cannot_change_the_figure(
    name: str, node: str, why: str, sigma: float, request: pytest.FixtureRequest
) -> None:
    record = cnpass.search(request.getfixturevalue(name), sigma=sigma, **LOOSE)
    assert record.excluded[node] == why
    assert node not in record.candidates
    assert record.candidates
    assert {choice.node for trial in record.trials for choice in trial.placement} <= set(record.candidates)


def test_overhead_is_spent_on_nothing_but_the_first_output(aside: Path) -> None:
    record = cnpass.optimize(aside, sigma=0.5, chips=4, **LOOSE | {"kinds": ("linear", "residual")})
    assert record.placement
    assert "aside" not in {choice.node for choice in record.placement}


def test_inputs_are_centred_for_the_first_output_alone(aside: Path) -> None:
    with np.load(aside.with_suffix(".npz")) as arrays:
        inputs = {"x": arrays["x_train"] + np.float32(3)}
    every, needed = Document.load(aside), Document.load(aside)
    assert centre(every, inputs)[0] == 3
    assert centre(needed, inputs, for_first_output=True)[0] == 2
    assert "the first output" in cnpass.search(aside, sigma=0.5, **LOOSE).excluded["aside"]


def test_nodes_in_bodies_are_said_to_be_there(make) -> None:
    """The first output depends on them, and they are no places for compensation all the same."""

    def branch(weight: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{weight}.y", TensorProto.FLOAT, None)
        product = helper.make_node("MatMul", ["r", weight], [f"{weight}.y"], weight)
        return helper.make_graph([product], weight, [], [out])

    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    choice = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("v"), else_branch=branch("t"))
    document = Document.load(
        make([*_chain()[:2], helper.make_node("Constant", [], ["c"], value=true), choice])
    )
    _, reasons = find_sites(document, plan(document), for_first_output=True)
    assert set(reasons.values()) == {"is in a body of If, Loop or Scan"}


def test_a_weight_whose_relu_is_dead_on_some_samples_only_is_made_for_the_device() -> None:
    idle = Idle(total=5, apart=("a",), cut=("c",), flat=("f",), integer=("i",))
    assert idle.taught(["a", "c", "f", "i", "w"], only_by_gradient=True) == {"f", "w"}
    assert idle.taught(["a", "c", "f", "i", "w"], only_by_gradient=False) == {"w"}


def test_a_model_with_a_part_without_gradient_is_optimised(cut: Path) -> None:
    record = cnpass.optimize(cut, sigma=0.5, chips=4, **LOOSE)
    assert any("1 of 2 weights are not trained" in note for note in record.notes)
    assert record.after.mean >= record.before.mean


def test_only_weights_that_were_trained_are_made_for_the_device(aside: Path) -> None:
    record = cnpass.retrain(aside, sigma=0.8, epochs=30)
    assert record.kept
    trained = Document.load(record.output)
    assert set(mean_gains(trained)) == {"w", "v"}
    CorrectMeanGain(device=LogNormal(sigma=0.0))(trained)
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load(aside).graph.initializer}
    written = {i.name: numpy_helper.to_array(i) for i in trained.to_proto().graph.initializer}
    np.testing.assert_array_equal(written["u"], arrays["u"])
    assert np.abs(written["v"] - arrays["v"]).max() > 0


def test_what_an_untrained_weight_is_made_for_stays(aside: Path) -> None:
    document = Document.load(aside)
    CorrectMeanGain(device=LogNormal(sigma=0.8))(document)
    data, output = aside.with_suffix(".npz"), aside.with_name("trained.onnx")
    record = cnpass.retrain(document, data, output=output, sigma=0.3, epochs=30)
    assert record.kept
    gains = mean_gains(Document.load(record.output))
    assert gains["u"] == pytest.approx(np.exp(0.8**2 / 2))
    assert gains["w"] == gains["v"] == pytest.approx(np.exp(0.3**2 / 2))


def test_the_penalty_makes_no_weight_one_for_the_device(aside: Path) -> None:
    """It changes all matrices, also those that variation teaches nothing."""
    record = cnpass.retrain(aside, sigma=0.8, epochs=30, beta=1e-2)
    assert record.kept
    assert set(mean_gains(Document.load(record.output))) == {"w", "v"}
