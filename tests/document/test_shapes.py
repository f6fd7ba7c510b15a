"""Shapes of one inference."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from cnpass.document import Document
from cnpass.passes import Pipeline
from cnpass.passes.analog import analog_nodes
from cnpass.shapes import infer


def test_open_batch_is_one(build):
    document = Document.from_proto(
        build([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": ["batch", 3, "width"]})
    )
    shapes = infer(document)
    assert shapes.known["y"] == (1, 3, None)
    assert shapes.size("y") is None
    assert shapes.rank("y") == 3
    assert shapes.batch == 1


def test_fixed_batch_is_divided_by(build):
    model = build([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": [8, 3]})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 3]))
    shapes = infer(Document.from_proto(model))
    assert (shapes.batch, shapes.size("y")) == (8, 3)


def test_a_fixed_batch_is_divided_by_on_any_axis(build):
    nodes = [
        helper.make_node("Transpose", ["x"], ["words_first"], perm=[1, 0, 2]),
        helper.make_node("Identity", ["words_first"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["y"], perm=[1, 0, 2]),
    ]
    model = build(nodes, inputs={"x": [8, 3, 5]})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["open", 3, 5]))
    shapes = infer(Document.from_proto(model))
    assert (shapes.batch, shapes.size("turned"), shapes.size("y")) == (8, 15, 15)


def test_the_default_domain_may_be_spelled_out(build):
    model = build([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], inputs={"x": ["n", 3]})
    model.opset_import[0].domain = "ai.onnx"
    assert infer(Document.from_proto(model)).known["y"] == (1, 3)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_no_inputs(build, ir_version):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    model = build(nodes, {"w": np.ones((4, 3), np.float32)}, opset=7, ir_version=ir_version)
    assert infer(Document.from_proto(model)).known["h"] == (1, 3)


def test_nodes_in_any_order(build):
    nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Neg", ["x"], ["h"])]
    assert infer(Document.from_proto(build(nodes, inputs={"x": ["n", 3]}))).known["y"] == (1, 3)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_what_selects_a_chip_is_no_sample(build, ir_version):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, {"w": np.ones((3, 5), np.float32)}, inputs={"x": [8, 3]}, ir_version=ir_version)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 5]))
    if ir_version == 3:  # where every initializer is an input as well
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 5]))
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar{tile-rows=2,read-noise=0.1,adc-bits=8}").run(document)
    shapes = infer(document)
    assert (shapes.batch, shapes.size("y")) == (8, 5)
    [node] = analog_nodes(document)
    assert node.attrs["sample_rows"] == 1


@pytest.mark.parametrize("opset", [9, 12, 18])
def test_shape_arithmetic_is_followed(build, opset):
    axes = {} if opset >= 13 else {"axes": [0]}
    extra = ["zero"] if opset >= 13 else []
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", *extra], ["batches"], **axes),
        helper.make_node("Concat", ["batches", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {
        "first": np.array(0),
        "rest": np.int64([-1]),
        "w": np.ones((12, 5), np.float32),
        "zero": np.int64([0]),
    }
    shapes = infer(Document.from_proto(build(nodes, weights, inputs={"x": ["n", 3, 4]}, opset=opset)))
    assert shapes.known["flat"] == (1, 12)
    assert shapes.size("y") == 5


def test_huge_constants_are_not_computed(build):
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("Add", ["c", "c"], ["y"]),
    ]
    shapes = infer(Document.from_proto(build(nodes, {"s": np.int64([1 << 40, 1 << 20])})))
    assert "y" not in shapes.known or shapes.size("y") in (None, 1 << 60)


def test_what_onnx_does_not_know_stays_unknown(build):
    nodes = [
        helper.make_node("Odd", ["x"], ["a"], domain="third.party"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    assert infer(Document.from_proto(build(nodes))).size("y") is None


def test_nonsense_is_survived(build):
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    weights = {"s": np.int64([7, 7]), "w": np.ones((3, 3), np.float32)}
    shapes = infer(Document.from_proto(build(nodes, weights, inputs={"x": [1, 4]})))
    assert shapes.batch == 1


def test_weights_are_not_read(external):
    path, _ = external()
    (path.parent / "weights.bin").unlink()
    assert infer(Document.load(path)).size("y") == 64


def test_a_shape_given_as_a_matrix_is_read_as_onnx_reads_it(build):
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    model = build(nodes, {"s": np.array([[2, 3]])}, inputs={"x": [2, 3]})
    assert infer(Document.from_proto(model)).known["y"] == (2, 3)


def test_a_size_that_also_leads_an_input_is_not_taken_for_samples(build):
    node = helper.make_node("Add", ["x", "t"], ["y"])
    shapes = infer(Document.from_proto(build([node], inputs={"x": ["n", 2, "time"], "t": ["time"]})))
    assert (shapes.known["x"], shapes.known["t"], shapes.known["y"]) == ((1, 2, None), (None,), (1, 2, None))
    square = build([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": ["?", 2, "?", "?"]})
    assert infer(Document.from_proto(square)).known["y"] == (None, 2, None, None)


def test_samples_fill_in_open_dimensions(build):
    node = helper.make_node("Add", ["x", "t"], ["y"])
    document = Document.from_proto(build([node], inputs={"x": ["n", 2, "time"], "t": ["time"]}))
    assert infer(document, {"x": (2, 7)}).known["y"] == (1, 2, 7)
    assert infer(document, {"x": (2, 7, 7)}).known["y"] == (1, 2, None)
