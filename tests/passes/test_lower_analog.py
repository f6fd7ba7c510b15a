"""Lowering keeps what was changed meanwhile: weights, compensation, and whatever else a pass put between."""

from __future__ import annotations

import base64

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from cnpass.document import Document, node_metadata
from cnpass.errors import ModelError
from cnpass.nodes import label
from cnpass.passes import Pipeline
from cnpass.passes.analog import analog_nodes
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.pipeline import Verifying
from cnpass.runtime import ops
from cnpass.runtime.session import Session

MAP, LOWER = Pipeline.parse("map-crossbar"), Pipeline.parse("lower-analog")


def run(document: Document, x: np.ndarray) -> np.ndarray:
    return Session(document.to_proto()).run(x)[0]


def lowered(document: Document, pipeline: Pipeline = LOWER) -> Document:
    copy = document.copy()
    pipeline.run(copy, [Verifying()])
    assert ops.DOMAIN not in copy.opsets
    assert not any(key.startswith("cnpass.") for key in copy.metadata)
    return copy


@pytest.fixture
def gemm(build, weight) -> onnx.ModelProto:
    """A Gemm that maps to Transpose, AnalogMatMul, Mul, Mul, Add, and a Relu."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["g"], "fc", alpha=0.5, beta=3.0, transA=1, transB=1),
        helper.make_node("Relu", ["g"], ["y"], "relu"),
    ]
    return build(nodes, {"w": weight(5, 4), "c": weight(5)}, inputs={"x": [4, 3]})


def test_marks_what_was_analog(gemm):
    document = Document.from_proto(gemm)
    MAP.run(document)
    plain = lowered(document)
    assert [dict(node_metadata(node)) for node in plain.graph.nodes] == [{"cnpass.role": "analog"}, {}]
    model = plain.to_proto()
    model.graph.node[0].ClearField("metadata_props")
    assert model == gemm


def test_retrained_weights_survive(gemm, weight):
    document = Document.from_proto(gemm)
    MAP.run(document)
    tensors = document.tensors()
    tensors["w"].values = weight(5, 4) * 2
    tensors["c"].values = weight(5) + 1
    x = weight(4, 3)
    before = run(document, x)
    plain = lowered(document)
    np.testing.assert_allclose(run(plain, x), before, rtol=1e-5, atol=1e-6)
    expected = onnx.ModelProto()
    expected.CopyFrom(gemm)
    expected.graph.initializer[0].raw_data = (weight(5, 4) * 2).tobytes()
    expected.graph.initializer[1].raw_data = (weight(5) + 1).tobytes()
    node_metadata(plain.graph.nodes[0]).clear()
    assert plain.to_proto() == expected


def compensate(document: Document, output: gs.Tensor) -> None:
    """Put a compensation node behind what writes a tensor, as the name of the tensor."""
    raw = gs.Variable(document.fresh(f"{output.name}.analog"))
    producer = output.inputs[0]
    producer.outputs.clear()
    producer.outputs.append(raw)
    node = gs.Node("Mul", "comp", {}, [raw, gs.Constant(document.fresh("gain"), np.float32([1.5]))], [output])
    node_metadata(node)[ops.META_ROLE] = ops.ROLE_COMPENSATION
    place = next(i for i, other in enumerate(document.graph.nodes) if other is producer)
    document.graph.nodes.insert(place + 1, node)


@pytest.mark.parametrize("mapped_first", [True, False])
def test_compensation_behind_the_node_survives(gemm, weight, mapped_first):
    document = Document.from_proto(gemm)
    if mapped_first:
        MAP.run(document)
    compensate(document, document.tensors()["g"])
    if not mapped_first:
        MAP.run(document)
    x = weight(4, 3)
    before = run(document, x)
    plain = lowered(document)
    assert [node.op for node in plain.graph.nodes] == ["Gemm", "Mul", "Relu"]
    assert node_metadata(plain.graph.nodes[1]) == {"cnpass.role": "compensation"}
    np.testing.assert_allclose(run(plain, x), before, rtol=1e-5, atol=1e-6)


def test_something_between_analog_node_and_its_parts(gemm, weight):
    document = Document.from_proto(gemm)
    MAP.run(document)
    [node] = analog_nodes(document)
    compensate(document, node.outputs[0])
    x = weight(4, 3)
    before = run(document, x)
    plain = lowered(document)
    ops_left = [node.op for node in plain.graph.nodes]
    assert "Gemm" not in ops_left
    assert {"Transpose", "MatMul", "Mul", "Add"} <= set(ops_left)
    np.testing.assert_allclose(run(plain, x), before, rtol=1e-5, atol=1e-6)


def test_without_the_record_of_the_source(case, plain):
    document = Document.from_proto(case)
    MAP.run(document)
    for node in analog_nodes(document):
        node_metadata(node).pop(ops.META_SOURCE)
    shape = [d if isinstance(d, int) else 2 for d in document.graph.inputs[0].shape]
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    before = run(document, x)
    np.testing.assert_allclose(plain(lowered(document), x), before, rtol=1e-5, atol=1e-6)


def record(*inputs: str, domain: str = "", name: str = "fc") -> str:
    """A record of a source node of type Gemm."""
    node = onnx.NodeProto(op_type="Gemm", input=inputs, output=["y"], name=name, domain=domain)
    return base64.b64encode(node.SerializeToString().replace(b"???", b"\xff\xfe\xfd")).decode()


@pytest.mark.parametrize(
    "record",
    [
        *("", "no base64!", "über", "AAAA", "Q29udg=="),
        *(record("x"), record("x", "w", domain="other"), record("x", "w", name="???")),
    ],
)
def test_a_broken_record_of_the_source(gemm, weight, record):
    document = Document.from_proto(gemm)
    MAP.run(document)
    [node] = analog_nodes(document)
    node_metadata(node)[ops.META_SOURCE] = record
    x = weight(4, 3)
    before = run(document, x)
    np.testing.assert_allclose(run(lowered(document), x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("perm", [[], [0], [0, 0], [1, 2], [0, 1, 2]])
def test_a_permutation_that_is_none(gemm, perm):
    document = Document.from_proto(gemm)
    MAP.run(document)
    [node] = analog_nodes(document)
    node.attrs[ops.WEIGHT_PERM] = perm
    with pytest.raises(ModelError, match=r"node 'fc': .* fits no AnalogMatMul"):
        LOWER.run(document)


def test_a_part_without_outputs(gemm):
    document = Document.from_proto(gemm)
    MAP.run(document)
    [part] = [node for node in document.graph.nodes if node.op == "Add"]
    [relu] = [node for node in document.graph.nodes if node.op == "Relu"]
    relu.inputs[0] = part.inputs[0]
    part.outputs.clear()
    assert [node.op for node in lowered(document).graph.nodes].count("Gemm") == 0


def test_a_long_chain_of_parts(gemm):
    """Nodes that claim to be parts, each the side input of the next: more than Python's stack would hold."""
    document = Document.from_proto(gemm)
    MAP.run(document)
    [part] = [node for node in document.graph.nodes if node.op == "Add"]
    tensor, nodes = part.inputs[1], []
    for number in range(2000):
        made = gs.Variable(f"link {number}")
        nodes.append(gs.Node("Add", "", {}, [gs.Constant(f"zero {number}", np.float32([0])), tensor], [made]))
        node_metadata(nodes[-1]).update(node_metadata(part))
        tensor = made
    part.inputs[1] = tensor
    place = next(i for i, node in enumerate(document.graph.nodes) if node is part)
    document.graph.nodes[place:place] = nodes
    assert [node.op for node in lowered(document).graph.nodes] == ["Gemm", "Relu"]


def test_another_weight_came_in(gemm, weight):
    document = Document.from_proto(gemm)
    MAP.run(document)
    [node] = analog_nodes(document)
    assert node.attrs[ops.WEIGHT_PERM] == [1, 0]
    node.inputs[1] = gs.Constant(document.fresh("other"), weight(5, 4) - 1)
    x = weight(4, 3)
    before = run(document, x)
    plain = lowered(document)
    assert [node.op for node in plain.graph.nodes] == ["Gemm", "Relu"]
    assert plain.graph.nodes[0].inputs[1].name == "other"
    np.testing.assert_allclose(run(plain, x), before, rtol=1e-5, atol=1e-6)


def test_another_weight_in_another_layout(gemm, weight):
    document = Document.from_proto(gemm)
    MAP.run(document)
    [node] = analog_nodes(document)
    node.inputs[1] = gs.Constant(document.fresh("other"), weight(4, 5))
    del node.attrs[ops.WEIGHT_PERM]
    document.functions.clear()  # the bodies still expect the attribute
    x = weight(4, 3)
    before = run(document, x)
    plain = lowered(document)
    np.testing.assert_allclose(run(plain, x), before, rtol=1e-5, atol=1e-6)


def test_a_reader_of_the_chip_keeps_it(gemm):
    document = Document.from_proto(gemm)
    MAP.run(document)
    chip = document.tensors()["chip"]
    document.graph.nodes.append(gs.Node("Identity", "mine", {}, [chip], [gs.Variable("seen")]))
    plain = document.copy()
    LOWER.run(plain)
    assert "chip" in plain.overridable


@pytest.mark.parametrize("names", [("m", "m"), ("m", "other"), ("", "m")])
def test_labels_come_back(build, weight, names):
    """A name is a label only where one node has it; an output's name that ends in it does not make it so."""
    nodes = [
        helper.make_node("MatMul", [a, "w"], [b], name)
        for a, b, name in zip(("x", "xm"), ("xm", "y"), names, strict=True)
    ]
    document = Document.from_proto(build(nodes, {"w": weight(4, 4)}))
    before = [label(node) for node in document.graph.nodes]
    MAP.run(document)
    LOWER.run(document)
    assert [label(node) for node in document.graph.nodes] == before


def test_nothing_to_lower(gemm):
    with pytest.raises(PassPreconditionError, match="no analog nodes"):
        LOWER.run(Document.from_proto(gemm))


def test_lowering_twice_is_an_error_not_a_change(gemm):
    document = Document.from_proto(gemm)
    MAP.run(document)
    LOWER.run(document)
    before = document.fingerprint()
    with pytest.raises(PassPreconditionError):
        LOWER.run(document)
    assert document.fingerprint() == before
