"""Models that are valid, or nearly so, in ways that few people think of: mapped, lowered, never damaged."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.inspection import inspect
from cnpass.mapping import plan
from cnpass.passes import Pipeline
from cnpass.passes.pipeline import Verifying


def serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def map_and_lower_unrun(model: onnx.ModelProto) -> Document:
    """For models that ONNX Runtime refuses: maps, checks that lowering brings back every byte."""
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    mapped = document.copy()
    Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
    assert serialized(document.to_proto()) == serialized(model)
    return mapped


@pytest.mark.parametrize(
    ("shape", "x", "attributes"),
    [
        ([4, 3, 3, 2], ["n", 3, 6, 6], {"pads": [0, 1, 2, 1]}),
        ([4, 3, 5], ["n", 3, 9], {"pads": [3, 0], "dilations": [2]}),
        ([4, 1, 2, 3, 2], ["n", 2, 4, 5, 6], {"pads": [1, 0, 0, 0, 2, 1], "group": 2}),
        ([6, 1, 3, 3], ["n", 3, 7, 7], {"auto_pad": "SAME_LOWER", "strides": [2, 2], "group": 3}),
        ([4, 3, 3, 3], ["n", 3, 7, 7], {"auto_pad": "VALID", "dilations": [1, 2]}),
        ([4, 3, 3, 3], ["n", 3, 7, 7], {"auto_pad": "NOTSET", "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
        ([4, 2, 3, 3], [1, 4, 7, 7], {"auto_pad": "SAME_UPPER", "group": 2}),
    ],
)
def test_paddings_and_groups(build, weight, map_and_lower, shape, x, attributes):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    map_and_lower(build([node], {"w": weight(*shape), "b": weight(shape[0])}, inputs={"x": x}))


def test_constant_of_shape(build, map_and_lower):
    value = numpy_helper.from_array(np.float32([0.25]))
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    mapped = map_and_lower(build(nodes, {"s": np.int64([4, 3])}))
    assert [node.key for node in plan(mapped).analog] == ["w"]


def test_quantised_activations_and_weights(build, weight, map_and_lower):
    def pair(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [name, "step", "zero"], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", "step", "zero"], [f"{name}_d"]),
        ]

    nodes = [
        *pair("x"),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_d"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "b_scale"], ["b_d"]),
        helper.make_node("Conv", ["x_d", "w_d", "b_d"], ["h"], name="conv"),
        *pair("h"),
        helper.make_node("Relu", ["h_d"], ["y"]),
    ]
    weights = {
        "w": (weight(4, 3, 3, 3) * 40).astype(np.int8),
        "w_scale": np.float32([0.02, 0.01, 0.03, 0.02]),
        "b": np.int32([100, -50, 0, 7]),
        "b_scale": np.float32(0.001),
        "step": np.float32(0.05),
        "zero": np.uint8(128),
    }
    model = build(nodes, weights, inputs={"x": ["n", 3, 6, 6]})
    # One step of the output's own quantisation may fall either way.
    mapped = map_and_lower(model, tolerance=0.05)
    assert [node.key for node in plan(mapped).analog] == ["w_d"]
    assert "float initializer" in plan(Document.from_proto(model)).analog[0].reason


@pytest.mark.parametrize("declared", [None, [3], ["a"]])
def test_a_scan_whose_body_declares_no_shapes(build, weight, map_and_lower, declared):
    """ONNX Runtime has to know them, and does not behind analog nodes, be they in the body or before it."""

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, declared)

    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "inner"], ["m"]),
            helper.make_node("Add", ["m", "row"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "body",
        [value("state"), value("row")],
        [value("next"), value("out")],
        [numpy_helper.from_array(weight(3, 3), "inner")],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceMean", ["h", "zero"], ["start"], keepdims=0),
        helper.make_node("Scan", ["start", "h"], ["last", "y"], body=body, num_scan_inputs=1),
    ]
    mapped = map_and_lower(build(nodes, {"w": weight(4, 3), "zero": np.int64([0])}, outputs=("last", "y")))
    assert len(plan(mapped).analog) == 2


def test_an_unknown_domain_is_a_barrier(build, weight):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="before"),
        helper.make_node("Odd", ["h", "w"], ["o"], name="odd", domain="someone.else", mode=b"\xff\xfe"),
        helper.make_node("MatMul", ["o", "w"], ["y"], name="after"),
        helper.make_node("MatMul", ["x", "made"], ["side"], name="not constant"),
        helper.make_node("OddToo", ["w"], ["made"], name="odd too", domain="someone.else"),
    ]
    model = build(nodes, {"w": weight(4, 4)}, outputs=("y", "side"))
    model.opset_import.append(helper.make_opsetid("someone.else", 3))
    mapped = map_and_lower_unrun(model)
    assert [node.label for node in plan(mapped).analog] == ["before", "after"]
    record = inspect(Document.from_proto(model))
    reasons = {node.name: node.reason for node in record.nodes}
    assert reasons["odd"] == "unknown domain 'someone.else'"
    assert "computed by OddToo of domain 'someone.else'" in reasons["not constant"]


def test_a_product_with_a_subgraph_is_none(build, weight):
    inner = helper.make_node("MatMul", ["x", "w"], ["r"], name="inner")
    body = helper.make_graph(
        [inner], "body", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="odd", body=body),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="sound"),
    ]
    model = build(nodes, {"w": weight(4, 4)})
    map_and_lower_unrun(model)
    reasons = {node.name: node.reason for node in inspect(Document.from_proto(model)).nodes}
    assert reasons["odd"] == "has a subgraph, which MatMul cannot have"
    assert "constant weight" in reasons["sound"]


@pytest.mark.parametrize("shape", [["n", 7], [5, 3, 2], [0]])
def test_shapes_that_contradict_the_graph(build, weight, shape):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    model = build(nodes, {"w": weight(4, 4)})
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, shape))
    map_and_lower_unrun(model)
    inspect(Document.from_proto(model))


def test_inputs_without_any_shape(build, weight, map_and_lower):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 4)})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    map_and_lower(model, feeds={"x": weight(3, 4)})


def test_several_inputs_and_outputs_of_several_types(build, weight, map_and_lower):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
        helper.make_node("Gemm", ["x", "w"], ["z"], transB=1),
        helper.make_node("ArgMax", ["z"], ["best"], axis=1),
    ]
    model = build(
        nodes,
        {"table": weight(9, 4), "w": weight(4, 4)},
        inputs={"ids": ["n", 5], "x": ["n", 4]},
        outputs=("y", "z"),
    )
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["n", 1]))
    feeds = {"ids": np.arange(10).reshape(2, 5) % 9, "x": weight(2, 4)}
    map_and_lower(model, feeds=feeds)


def test_outputs_that_are_initializers_or_inputs(build, weight, map_and_lower):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 4)}, outputs=("y", "w"))
    for value in model.graph.output:
        value.type.tensor_type.shape.dim.add(dim_param="a")
        value.type.tensor_type.shape.dim.add(dim_param="b")
    mapped = map_and_lower(model)
    assert [tensor.name for tensor in mapped.graph.outputs] == ["y", "w"]


def test_an_output_that_is_listed_twice(build, weight):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 4)}, outputs=("y", "y"))
    mapped = map_and_lower_unrun(model)
    assert [value.name for value in mapped.to_proto().graph.output] == ["y", "y"]


def test_a_weight_that_is_an_output_of_the_cast_before_it(build, weight, map_and_lower):
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["y"]),
    ]
    map_and_lower(build(nodes, {"w": weight(4, 4).astype(np.float16)}, outputs=("y", "w32")))


@pytest.mark.parametrize("names", [("same", "same"), ("", ""), ("m", "m.analog"), ("a b/ü:0", "a b/ü:1")])
def test_names_of_nodes(build, weight, names):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["h.sum"], name=names[0], alpha=2.0, beta=3.0),
        helper.make_node("Gemm", ["h.sum", "w", "c"], ["y"], name=names[1], transB=1, alpha=2.0),
    ]
    mapped = map_and_lower_unrun(build(nodes, {"w": weight(4, 4), "c": weight(4)}))
    proto = mapped.to_proto()
    given = [node.name for node in proto.graph.node if node.name]
    assert len(given) - len(set(given)) == (1 if names == ("same", "same") else 0)
    outputs = [name for node in proto.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))


def test_text_that_is_not_utf8_everywhere(build, weight):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    node.attribute.add(name="note", type=onnx.AttributeProto.STRING, s=b"\xff\x00\xfe")
    node.attribute.add(name="notes", type=onnx.AttributeProto.STRINGS, strings=[b"ok", b"\x80"])
    map_and_lower_unrun(build([node], {"w": weight(4, 4)}))


def test_metadata_everywhere_survives(build, weight, map_and_lower):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m", doc_string="why"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    model = build(nodes, {"w": weight(4, 4)})
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", 4]))
    graph = model.graph
    for place in (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        place.metadata_props.add(key="from", value="a tool")
        place.doc_string = "text"
    mapped = map_and_lower(model).to_proto()
    assert mapped.metadata_props[0].value == "a tool"
    assert all(node.metadata_props[0].value == "a tool" for node in mapped.graph.node)
