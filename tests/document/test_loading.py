"""Files that are no models end in one line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from cnpass.document import Document
from cnpass.errors import CnpassError, ModelError
from cnpass.mapping import plan
from cnpass.passes import Pipeline

RANDOM = np.random.default_rng(3)


def refused(path) -> str:
    with pytest.raises(ModelError) as caught:
        Document.load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_missing_file(tmp_path):
    assert "no such file" in refused(tmp_path / "none.onnx")


def test_folder(tmp_path):
    assert "folder" in refused(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/bin/sh\necho no model\n",
        b'{"irVersion": "8"}',
        b"\x08\x08",
        onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString(),
        onnx.ModelProto(graph=onnx.GraphProto(name="empty")).SerializeToString(),
        *(RANDOM.bytes(int(n)) for n in RANDOM.integers(1, 4000, 40)),
    ],
)
def test_no_model(tmp_path, data):
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    refused(path)


def test_truncated(tmp_path, build):
    data = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 64), np.float32)}
    ).SerializeToString()
    for length in range(1, len(data) - 40, 17):
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[:length])
        refused(path)


@pytest.mark.parametrize("bad", [-1, 999])
def test_unknown_types_and_shapes(tmp_path, build, bad):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 2), np.float32)})
    model.graph.initializer[0].data_type = bad
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    assert "unknown type" in refused(path)


def test_values_that_do_not_fit_the_shape(build):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 2), np.float32)})
    model.graph.initializer[0].dims[0] = 5
    document = Document.from_proto(model)
    with pytest.raises(ModelError, match="values of tensor 'w' cannot be read"):
        document.graph.nodes[0].inputs[1].values  # noqa: B018 (a property that reads)


def test_names_defined_twice(build):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    with pytest.raises(ModelError, match="'y' is defined twice"):
        Document.from_proto(build(nodes))
    weights = {"w": np.ones(4, np.float32)}
    model = build([helper.make_node("Add", ["x", "w"], ["y"])], weights)
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers are named 'w'"):
        Document.from_proto(model)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Conv", ["x"], ["y"]), "Conv needs 2 input"),
        (helper.make_node("Conv", ["x", ""], ["y"]), "Conv needs 2 input"),
        (helper.make_node("MatMul", ["x", "w"], []), "MatMul needs 2 input"),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=[1]), "attribute 'group' of Conv must be INT"),
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha="a"), "attribute 'alpha' of Gemm must be FLOAT"),
        (helper.make_node("Cast", ["x"], ["y"], to=1.5), "'to' of Cast must be INT or STRING"),
        (helper.make_node("AnalogConv", ["x", "w", ""], ["y"], domain="ai.cnpass"), "AnalogConv needs 4"),
    ],
)
def test_nodes_that_break_their_definition(build, node, message):
    with pytest.raises(ModelError, match=message):
        Document.from_proto(build([node], {"w": np.ones((4, 2), np.float32)}))


def calls(build, *functions: list[str]) -> onnx.ModelProto:
    """A model with functions f0, f1, ..., each of which calls those named; the graph calls the last."""
    model = build([helper.make_node(f"f{len(functions) - 1}", ["x"], ["y"], domain="local")])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    for place, names in enumerate(functions):
        tensors = ["p", *(f"t{i}" for i in range(len(names) - 1)), "q"]
        nodes = [
            helper.make_node(
                name, [tensors[i]], [tensors[i + 1]], domain="local" if name[1:].isdigit() else ""
            )
            for i, name in enumerate(names)
        ]
        model.functions.append(helper.make_function("local", f"f{place}", ["p"], ["q"], nodes, opsets))
    model.opset_import.append(opsets[1])
    return model


def test_functions_that_never_end(build):
    with pytest.raises(ModelError, match="calls itself"):
        Document.from_proto(calls(build, ["f1"], ["f0"]))
    doubling = [["Relu"], *([f"f{i}"] * 2 for i in range(40))]
    with pytest.raises(ModelError, match="nodes inlined"):
        Document.from_proto(calls(build, *doubling))
    with pytest.raises(ModelError, match="deep"):
        Document.from_proto(calls(build, ["Relu"], *([f"f{i}"] for i in range(80))))
    Document.from_proto(calls(build, ["Relu"], ["f0", "f0"], ["f1", "f0"]))


def test_other_operators_are_not_judged(build):
    node = helper.make_node("Conv", ["x"], ["y"], domain="third.party", group=[1])
    assert Document.from_proto(build([node])).graph.nodes[0].attrs["group"] == [1]


def test_random_damage_is_refused_or_survived(build):
    """Structure-aware damage to a model: whatever is not refused on reading can be planned and written."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], group=1),
        helper.make_node("Reshape", ["h", "s"], ["r"]),
        helper.make_node("Transpose", ["v"], ["t"], perm=[1, 0]),
        helper.make_node("Gemm", ["r", "t", "c"], ["g"], alpha=2.0),
        helper.make_node("BatchNormalization", ["g", "c", "c", "c", "c"], ["y"], name="n"),
    ]
    shapes = {"w": (4, 1, 2, 2), "b": (4,), "v": (3, 36), "c": (3,)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()} | {"s": np.int64([1, -1])}
    model = build(nodes, weights, inputs={"x": [1, 1, 4, 4]})
    errors = [damaged(model, np.random.default_rng(seed)) for seed in range(300)]
    refused = [error for error in errors if error is not None]
    assert 0 < len(refused) < len(errors)
    assert {error.exit_code for error in refused} == {ModelError.exit_code}
    assert not any("\n" in str(error) for error in refused)


def damaged(model: onnx.ModelProto, rng: np.random.Generator) -> CnpassError | None:
    """Break one thing, then plan, map and write; gives the error, if there is one."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    graph = broken.graph
    node = graph.node[rng.integers(len(graph.node))]
    tensor = graph.initializer[rng.integers(len(graph.initializer))]
    names = [name for other in graph.node for name in (*other.input, *other.output)]
    match rng.integers(7):
        case 0:
            del node.input[rng.integers(len(node.input)) :]
        case 1:
            node.input[rng.integers(len(node.input))] = names[rng.integers(len(names))]
        case 2:
            kinds = ("Conv", "MatMul", "Cast", "DequantizeLinear", "Einsum", "LSTM", "AnalogConv")
            node.op_type = kinds[rng.integers(len(kinds))]
        case 3:
            tensor.dims[0] = rng.choice([-1, 0, 1, 1 << 40])
        case 4:
            tensor.data_type = rng.choice([0, 2, 7, 10, 16, 22, 99])
        case 5:
            for attribute in node.attribute:
                attribute.type = rng.choice([1, 2, 3, 7])
        case _:
            node.domain = "ai.cnpass"
    try:
        document = Document.from_proto(broken)
        plan(document)
        Pipeline.parse("fold-batch-norm,map-crossbar").run(document)
        document.to_proto()
    except CnpassError as error:
        return error
    return None
