"""What no one touched comes out as it went in."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document, label, node_metadata
from cnpass.errors import ModelError


def serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def test_rich_model_is_kept_byte_for_byte(rich, tmp_path):
    (tmp_path / "rich.onnx").write_bytes(serialized(rich))
    document = Document.load(tmp_path / "rich.onnx")
    assert serialized(document.to_proto()) == serialized(rich)
    document.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == serialized(rich)
    assert serialized(document.copy().to_proto()) == serialized(rich)


def test_an_edit_changes_nothing_else(rich):
    document = Document.from_proto(rich)
    node_metadata(document.graph.nodes[3])["new"] = "1"
    document.metadata["added"] = "2"
    document.graph.nodes[0].inputs[1].values = np.ones((4, 4), np.float32)
    edited = document.to_proto()
    expected = onnx.ModelProto()
    expected.CopyFrom(rich)
    expected.graph.node[3].metadata_props.add(key="new", value="1")
    expected.metadata_props.add(key="added", value="2")
    expected.graph.initializer[0].raw_data = np.ones((4, 4), np.float32).tobytes()
    assert serialized(edited) == serialized(expected)


def test_zoo_models_are_kept_byte_for_byte(zoo_model, tmp_path):
    path, entry = zoo_model
    document = Document.load(path)
    assert serialized(document.to_proto()) == serialized(onnx.load(path, load_external_data=False))
    if entry["name"] != "vs_resnet18_cifar10":  # its data file is missing
        document.save(tmp_path / "m.onnx")
        saved = Document.load(tmp_path / "m.onnx")
        assert serialized(saved.embedded()) == serialized(document.embedded())


def test_reading_values_does_not_change_bytes(build):
    weight = numpy_helper.from_array(np.float32([[1, np.nan]]), "w")
    weight.ClearField("raw_data")
    weight.float_data.extend([1, np.nan])
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])])
    model.graph.initializer.append(weight)
    document = Document.from_proto(model)
    assert document.graph.nodes[0].inputs[1].values.shape == (1, 2)
    assert serialized(document.to_proto()) == serialized(model)


def test_values_of_another_type_are_refused(build):
    document = Document.from_proto(
        build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 2), np.float16)})
    )
    document.graph.nodes[0].inputs[1].values = np.ones((4, 2), np.float32)
    with pytest.raises(TypeError, match="'w' was FLOAT16"):
        document.to_proto()


def test_constant_node_takes_new_values(build):
    value = numpy_helper.from_array(np.zeros(4, np.float32), "inner")
    nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Add", ["x", "c"], ["y"])]
    document = Document.from_proto(build(nodes))
    document.graph.nodes[0].attrs["value"].values = np.ones(4, np.float32)
    stored = document.to_proto().graph.node[0].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(stored), np.ones(4))
    assert stored.name == "inner"


def test_inserted_nodes_stay_where_the_graph_puts_them(build):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="n1"),
        helper.make_node("Relu", ["a"], ["y"], name="n2"),
    ]
    document = Document.from_proto(build(nodes))
    between = gs.Variable(document.fresh("a"))
    document.graph.nodes[1].inputs[0] = between
    document.graph.nodes.insert(1, gs.Node("Neg", "new", {}, [document.graph.nodes[0].outputs[0]], [between]))
    graph = document.to_proto().graph
    assert [node.name for node in graph.node] == ["n1", "new", "n2"]
    assert list(graph.node[2].input) == ["a_1"]


def test_an_orphaned_initializer_goes_and_an_unused_one_stays(build):
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = build(nodes, {"w": np.ones(4, np.float32), "spare": np.ones(1, np.float32)})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    document = Document.from_proto(model)
    assert document.overridable == ["w"]
    document.graph.nodes[0].inputs[1] = document.graph.inputs[0]
    graph = document.to_proto().graph
    assert [tensor.name for tensor in graph.initializer] == ["spare"]
    assert [value.name for value in graph.input] == ["x"]


def test_changed_shapes_of_inputs_are_written(build):
    document = Document.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": [1, 4]}))
    document.graph.inputs[0].shape = ["batch", 4]
    dims = document.to_proto().graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 4]


def test_two_tensors_of_one_name_are_refused(build):
    document = Document.from_proto(build([helper.make_node("Relu", ["x"], ["y"])]))
    document.graph.nodes.append(gs.Node("Relu", "b", {}, [document.graph.inputs[0]], [gs.Variable("y")]))
    with pytest.raises(ModelError, match="'y' is defined twice"):
        document.to_proto()
    document.graph.nodes[-1].outputs[0].name = "z"
    document.graph.nodes[-1].inputs[0] = gs.Variable("x")
    with pytest.raises(ModelError, match="two tensors are named 'x'"):
        document.to_proto()


def test_reading_what_nothing_writes_is_refused(build):
    document = Document.from_proto(build([helper.make_node("Relu", ["x"], ["y"])]))
    document.graph.nodes[0].inputs[0] = gs.Variable("nowhere")
    with pytest.raises(ModelError, match="reads 'nowhere', which nothing writes"):
        document.to_proto()


def test_a_body_follows_a_tensor_that_is_renamed(rich):
    document = Document.from_proto(rich)
    document.graph.nodes[0].outputs[0].name = "renamed"
    bodies = [attribute.g for attribute in document.to_proto().graph.node[1].attribute]
    assert [list(body.node[0].input) for body in bodies] == [["renamed", "outer"]] * 2


def test_taking_a_captured_tensor_away_is_refused(rich):
    document = Document.from_proto(rich)
    document.graph.nodes[0].outputs[0] = gs.Variable("another")
    with pytest.raises(ModelError, match="a subgraph reads 'hidden'"):
        document.to_proto()


def test_fresh_names_avoid_those_of_subgraphs(rich):
    document = Document.from_proto(rich)
    assert document.fresh("r") == "r_1"
    assert document.fresh("r") == "r_2"
    assert document.fresh("new") == "new"


def test_labels(build):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="twice"),
        helper.make_node("Relu", ["a"], ["b"], name="twice"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"], name="once"),
        helper.make_node("Relu", ["d"], ["y"], name="new"),
    ]
    nodes[4].metadata_props.add(key="cnpass.name", value="old")
    document = Document.from_proto(build(nodes))
    assert [label(node) for node in document.graph.nodes] == ["a", "b", "c", "once", "old"]


def test_attributes_of_old_models_without_types(build):
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], group=1)
    for attribute in node.attribute:
        attribute.ClearField("type")
    model = build([node], {"w": np.ones((1, 1, 1, 1), np.float32)}, inputs={"x": [1, 1, 4, 4]})
    document = Document.from_proto(model)
    assert document.graph.nodes[0].attrs["strides"] == [2, 2]
    assert serialized(document.to_proto()) == serialized(model)


def test_fingerprint_follows_every_change(rich):
    document = Document.from_proto(rich)
    prints = [document.fingerprint()]
    assert document.fingerprint() == prints[0]
    document.graph.nodes[0].inputs[1].values = np.zeros((4, 4), np.float32)
    prints.append(document.fingerprint())
    document.metadata["a"] = "b"
    prints.append(document.fingerprint())
    assert len(set(prints)) == 3


def test_sparse_initializers_are_read(rich):
    document = Document.from_proto(rich)
    sparse = next(t for t in document.constants() if t.name == "sparse")
    np.testing.assert_array_equal(sparse.values, [0, 0, 5, 0])
