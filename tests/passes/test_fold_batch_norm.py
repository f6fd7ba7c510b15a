"""Folding changes no output, and leaves alone what it cannot fold, with the reason."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from cnpass.document import Document
from cnpass.passes import Pipeline
from cnpass.passes.mean_gain import mean_gains
from cnpass.passes.pipeline import Verifying

FOLD = "fold-batch-norm"
BN = ["scale", "shift", "mean", "var"]


def norm(x: str = "h", y: str = "y", **attributes):
    return helper.make_node("BatchNormalization", [x, *BN], [y], name="bn", **attributes)


@pytest.fixture
def parameters():
    """Weights of a normalisation of that many channels."""

    def make(channels: int, dtype=np.float32) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(channels)
        values = {name: rng.standard_normal(channels) for name in BN}
        values["var"] = rng.uniform(0.5, 2, channels)
        return {name: value.astype(dtype) for name, value in values.items()}

    return make


def ops(document: Document) -> list[str]:
    return [node.op for node in document.graph.nodes]


CONVOLUTIONS = {
    "plain": ("Conv", (4, 3, 3, 3), {}, [2, 3, 6, 6], True),
    "no-bias": ("Conv", (4, 3, 3, 3), {}, [2, 3, 6, 6], False),
    "depthwise": ("Conv", (4, 1, 3, 3), {"group": 4}, [2, 4, 6, 6], True),
    "1d": ("Conv", (4, 3, 3), {}, [2, 3, 6], False),
    "3d": ("Conv", (4, 3, 2, 2, 2), {}, [2, 3, 4, 4, 4], True),
    "transposed": ("ConvTranspose", (3, 4, 2, 2), {"strides": [2, 2]}, [2, 3, 4, 4], True),
    "transposed-groups": ("ConvTranspose", (6, 2, 2, 2), {"group": 2}, [2, 6, 4, 4], False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("opset", [7, 9, 14, 18])
def test_convolutions(build, weight, parameters, transform, name, opset):
    op, shape, attributes, x, bias = CONVOLUTIONS[name]
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [helper.make_node(op, inputs, ["h"], "linear", **attributes), norm(epsilon=0.1)]
    weights = {"w": weight(*shape), **parameters(4)} | ({"b": weight(4)} if bias else {})
    document = transform(build(nodes, weights, inputs={"x": x}, opset=opset), FOLD)
    assert ops(document) == [op]
    assert [t.name for t in document.constants()] == (["w", "b"] if bias else ["w", "w.bias"])


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("c", [None, (), (5,), (1, 5)])
def test_gemm(build, weight, parameters, transform, transposed, c):
    inputs = ["x", "w"] if c is None else ["x", "w", "c"]
    attributes = {"transB": transposed, "alpha": 0.5, "beta": 2.0}
    nodes = [helper.make_node("Gemm", inputs, ["h"], "linear", **attributes), norm()]
    weights = {"w": weight(*(5, 4) if transposed else (4, 5)), **parameters(5)}
    weights |= {} if c is None else {"c": weight(*c)}
    document = transform(build(nodes, weights), FOLD)
    assert ops(document) == ["Gemm"]


def test_matmul_gets_an_add(build, weight, parameters, transform):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "linear"), norm()]
    document = transform(build(nodes, {"w": weight(4, 5), **parameters(5)}), FOLD)
    assert ops(document) == ["MatMul", "Add"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float16, 5e-3)])
def test_types_are_kept(build, weight, parameters, transform, dtype, tolerance):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "linear"), norm()]
    model = build(nodes, {"w": weight(4, 5, dtype=dtype), **parameters(5, dtype)})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    document = transform(model, FOLD, tolerance=tolerance)
    assert {t.dtype for t in document.constants()} == {np.dtype(dtype)}


def test_a_shared_weight_is_untied(build, weight, parameters, transform):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], "first"),
        norm(y="n"),
        helper.make_node("Conv", ["n", "w", "b"], ["y"], "second"),
    ]
    weights = {"w": weight(4, 4, 1, 1), "b": weight(4), **parameters(4)}
    model = build(nodes, weights, inputs={"x": [2, 4, 3, 3]})
    document = transform(model, FOLD)
    first, second = document.graph.nodes
    assert [t.name for t in first.inputs] == ["x", "w.folded", "b.folded"]
    assert [t.name for t in second.inputs] == ["n", "w", "b"]
    np.testing.assert_array_equal(second.inputs[1].values, weight(4, 4, 1, 1))
    notes = Pipeline.parse(FOLD).run(Document.from_proto(model)).notes
    assert any("'w' has other readers" in note for note in notes)


def test_a_copy_is_made_for_the_mean_factor_of_what_it_was_made_of(build, weight, parameters):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], "first"),
        norm(y="n"),
        helper.make_node("Conv", ["n", "w", "b"], ["y"], "second"),
    ]
    weights = {"w": weight(4, 4, 1, 1), "b": weight(4), **parameters(4)}
    document = Document.from_proto(build(nodes, weights, inputs={"x": [2, 4, 3, 3]}))
    Pipeline.parse(f"correct-mean-gain{{sigma=0.5}},{FOLD}").run(document)
    gains = mean_gains(document)
    assert gains.keys() == {"w", "w.folded"}
    assert gains["w.folded"] == gains["w"] > 1


def test_a_hidden_weight_is_copied(build, weight, parameters, transform):
    nodes = [
        helper.make_node("Reshape", ["w", "s"], ["r"]),
        helper.make_node("Conv", ["x", "r"], ["h"], "linear"),
        norm(),
    ]
    weights = {"w": weight(4, 4), "s": np.int64([4, 4, 1, 1]), **parameters(4)}
    document = transform(build(nodes, weights, inputs={"x": [2, 4, 3, 3]}), FOLD)
    assert document.graph.nodes[-1].inputs[1].name == "w.folded"


def test_chains_fold_all(build, weight, parameters, transform):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "c1"),
        helper.make_node("BatchNormalization", ["a", *BN], ["b"], "b1"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["d"], "c2"),
        helper.make_node("BatchNormalization", ["d", *BN], ["e"], "b2"),
        helper.make_node("BatchNormalization", ["e", *BN], ["y"], "b3"),
    ]
    weights = {"w": weight(4, 4, 1, 1), "v": weight(4, 4, 2, 2), **parameters(4)}
    document = transform(build(nodes, weights, inputs={"x": [2, 4, 5, 5]}), FOLD)
    assert ops(document) == ["Conv", "Relu", "Conv"]


def refused(model) -> str:
    """The note of a normalisation that stays; the model must be unchanged."""
    document = Document.from_proto(model)
    result = Pipeline.parse(FOLD).run(document, [Verifying()])
    assert not result.modified
    assert document.to_proto() == model
    return " ".join(result.notes)


def test_what_stays(build, weight, parameters):
    conv = helper.make_node("Conv", ["x", "w"], ["h"], "linear")
    weights, inputs = {"w": weight(4, 4, 1, 1), **parameters(4)}, {"x": [2, 4, 3, 3]}
    plain = build([conv, norm()], weights, inputs=inputs)
    assert "no convolution" in refused(build([norm("x")], parameters(4), inputs=inputs))
    assert "no convolution" in refused(
        build([helper.make_node("Relu", ["x"], ["h"]), norm()], parameters(4), inputs=inputs)
    )
    training = build([conv, norm(training_mode=1)], weights, inputs=inputs)
    training.graph.node[1].output.extend(["m", "v"])
    assert "training mode" in refused(training)
    old = build([conv, norm()], weights, inputs=inputs, opset=6)
    assert "training mode" in refused(old)
    per_element = build([conv, norm(spatial=0)], weights, inputs=inputs, opset=8)
    assert "every element" in refused(per_element)
    two = build([conv, norm(), helper.make_node("Relu", ["h"], ["z"])], weights, inputs=inputs)
    assert "'h' has other readers" in refused(two)
    output = build([conv, norm()], weights, inputs=inputs, outputs=["h", "y"])
    assert "'h' has other readers" in refused(output)
    computed = build([helper.make_node("Conv", ["x", "x"], ["h"], "linear"), norm()], weights, inputs=inputs)
    assert "not a constant" in refused(computed)
    numbers = build([conv, norm()], {k: v for k, v in weights.items() if k != "mean"}, inputs=inputs)
    numbers.graph.input.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [4]))
    assert "parameters are not constant" in refused(numbers)
    channels = build([conv, norm()], {**weights, **parameters(5)}, inputs=inputs)
    assert "do not fit" in refused(channels)
    infinite = build([conv, norm(epsilon=0.0)], {**weights, "var": np.zeros(4, np.float32)}, inputs=inputs)
    assert "not finite" in refused(infinite)
    assert "no BatchNormalization" in refused(build([conv], weights, inputs=inputs, outputs=["h"]))
    document = Document.from_proto(plain)
    assert Pipeline.parse(FOLD).run(document, [Verifying()]).modified


def test_matrices_of_three_dimensions_stay(build, weight, parameters):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "linear"), norm()]
    model = build(nodes, {"w": weight(4, 5), **parameters(5)}, inputs={"x": [2, 5, 4]})
    assert "does not write a matrix" in refused(model)


@pytest.mark.parametrize("c", [(3, 1), (3, 5)])
def test_a_bias_that_is_not_per_channel_stays(build, weight, parameters, c):
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["h"], "linear"), norm()]
    model = build(nodes, {"w": weight(4, 5), "c": weight(*c), **parameters(5)}, inputs={"x": [3, 4]})
    assert "not one per channel" in refused(model)


@pytest.mark.parametrize(
    ("op", "shape", "group"),
    [
        *(("Conv", (), 1), ("Conv", (4,), 1), ("Conv", (4, 0, 3, 3), 1)),
        *(("ConvTranspose", (3, 4, 2, 2), 0), ("ConvTranspose", (5, 2, 2, 2), 2)),
    ],
)
def test_weights_of_no_convolution_stay(build, weight, parameters, op, shape, group):
    nodes = [helper.make_node(op, ["x", "w"], ["h"], "linear", group=group), norm()]
    model = build(nodes, {"w": weight(*shape), **parameters(4)})
    assert f"weight 'w', of shape {list(shape)}, fits no {op}" in refused(model)


def test_quantised_weights_stay(build, weight, parameters):
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["h"], "linear"),
        norm(),
    ]
    weights = {"q": weight(4, 4, 1, 1).astype(np.int8), "s": np.float32(1), **parameters(4)}
    assert "is quantised" in refused(build(nodes, weights, inputs={"x": [2, 4, 3, 3]}))


def test_a_tensor_that_a_subgraph_reads_stays(build, weight, parameters):
    branches = {
        name: helper.make_graph(
            [helper.make_node("Neg", ["h"], ["r"])],
            name,
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "linear"),
        norm(),
        helper.make_node("If", ["flag"], ["z"], "if", **branches),
    ]
    weights = {"w": weight(4, 4, 1, 1), "flag": np.array(True), **parameters(4)}
    assert "'h' has other readers" in refused(build(nodes, weights, inputs={"x": [2, 4, 3, 3]}))


def test_new_initializers_are_inputs_in_old_models(build, weight, parameters):
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "linear"), norm()]
    weights = {"w": weight(4, 4, 1, 1), **parameters(4)}
    model = build(nodes, weights, inputs={"x": [2, 4, 3, 3]}, opset=8, ir_version=3)
    for name, value in weights.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    document = Document.from_proto(model)
    Pipeline.parse(FOLD).run(document, [Verifying()])
    assert [value.name for value in document.to_proto().graph.input] == ["x", "w", "w.bias"]


def test_folded_models_map(build, weight, parameters, transform):
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "linear"), norm()]
    model = build(nodes, {"w": weight(4, 4, 1, 1), **parameters(4)}, inputs={"x": [2, 4, 3, 3]})
    document = transform(model, f"{FOLD},map-crossbar")
    assert ops(document) == ["AnalogConv"]
    assert isinstance(document.graph.nodes[0].inputs[2], gs.Constant)


def test_folded_initializers_cannot_be_overridden(build, weight, parameters):
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "linear"), norm()]
    weights = {"w": weight(4, 4, 1, 1), **parameters(4)}
    model = build(nodes, weights, inputs={"x": [2, 4, 3, 3]})
    for name in ("w", "mean"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, weights[name].shape))
    document = Document.from_proto(model)
    notes = Pipeline.parse(FOLD).run(document, [Verifying()]).notes
    assert [value.name for value in document.to_proto().graph.input] == ["x"]
    assert notes[1:] == tuple(f"{FOLD}: callers cannot override {name!r} any more" for name in ("w", "mean"))


def test_normalisation_in_a_body_stays_and_the_note_says_so(build, parameters):
    branches = {
        name: helper.make_graph(
            [norm("x", name)], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )
        for name in ("then_branch", "else_branch")
    }
    nodes = [helper.make_node("If", ["flag"], ["y"], "if", **branches)]
    model = build(nodes, {"flag": np.array(True), **parameters(4)}, inputs={"x": [2, 4, 3, 3]})
    result = Pipeline.parse(FOLD).run(Document.from_proto(model), [Verifying()])
    assert result.notes[0] == f"{FOLD}: 0 of 2 nodes folded"
    assert all(note.endswith("stays: is in a body of If, Loop or Scan") for note in result.notes[1:])
    assert len(result.notes) == 3


def test_products_of_old_models_stay(build, weight, parameters):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), norm(is_test=1)]
    weights = {"w": weight(4, 4), **parameters(4)}
    assert "needs opset 7" in refused(build(nodes, weights, inputs={"x": [2, 4]}, opset=6))
