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


def test_shapes_that_no_memory_holds(build):
    model = build([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.zeros(4, np.float16)})
    model.graph.initializer[0].dims[0] = 2**62
    with pytest.raises(ModelError, match=r"tensor 'w' has shape \[4611686018427387904\], but fewer values"):
        Document.from_proto(model)


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
        (helper.make_node("Flatten", ["x"], ["y"], axis="a"), "attribute 'axis' of Flatten must be INT"),
        (helper.make_node("Squeeze", ["x"], ["y"], axes=1), "attribute 'axes' of Squeeze must be INTS"),
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


def test_attributes_of_no_function(build):
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    node.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    with pytest.raises(ModelError, match="node 'y': attribute 'alpha' refers to attribute 'slope' of a func"):
        Document.from_proto(build([node]))


def test_functions_of_one_name(build):
    model = calls(build, ["Relu"], ["f0"])
    model.functions.append(model.functions[0])
    with pytest.raises(ModelError, match="two local functions of domain 'local' are named 'f0'"):
        Document.from_proto(model)


def test_functions_that_differ_in_overload(build):
    model = calls(build, ["MatMul"], ["f0"])
    model.ir_version = 10
    for function, overload in zip(model.functions, ("inner", "outer"), strict=True):
        function.name, function.overload = "f", overload
    for node, overload in ((model.functions[1].node[0], "inner"), (model.graph.node[0], "outer")):
        node.op_type, node.overload = "f", overload
    labels = [node.label for node in plan(Document.from_proto(model)).nodes]
    assert labels == ["y", "f/q", "f/q"]


def wait(build, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A model of these nodes, with the weights `flag` and `w`."""
    return build(list(nodes), {"flag": np.array(True), "w": np.ones((4, 4), np.float32)})


def conditional(read: str, written: str, local: str = "inner") -> onnx.NodeProto:
    """An If whose bodies read one tensor from around them."""
    graphs = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("Relu", [read], [local], name="relu")],
            side,
            [],
            [helper.make_tensor_value_info(local, onnx.TensorProto.FLOAT, None)],
        )
        for side in ("then", "else")
    }
    return helper.make_node("If", ["flag"], [written], name="if", **graphs)


def test_nodes_that_wait_for_themselves(build):
    straight = helper.make_node("Neg", ["x"], ["y"])
    loop = [helper.make_node("Add", ["x", "b"], ["a"], "add"), helper.make_node("Neg", ["a"], ["b"], "neg")]
    through = [conditional("b", "a"), helper.make_node("Neg", ["a"], ["b"], "neg")]
    inside = [conditional("inner", "a")]
    for nodes, names in ((loop, "add|neg"), (through, "if|neg"), (inside, "relu")):
        with pytest.raises(ModelError, match=f"node '({names})' reads what is computed from its own output"):
            Document.from_proto(wait(build, *nodes, straight))
    function = calls(build, ["Relu"])
    function.functions[0].node[0].input[0] = "q"
    with pytest.raises(ModelError, match="node 'q' reads what is computed from its own output"):
        Document.from_proto(function)


def test_nodes_may_stand_in_any_order(build):
    unsorted = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    Document.from_proto(wait(build, *unsorted))
    # What a body calls its own tensors does not matter to the graph around it.
    Document.from_proto(wait(build, conditional("x", "a", local="y"), helper.make_node("Neg", ["a"], ["y"])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"MatMul", r"node 'mul': NodeProto.op_type is not UTF-8 text: b'\\xffatMul'"),
        (b"mul", r"node b'\\xfful': NodeProto.name is not UTF-8 text"),
        (b"weight", r"node 'mul': NodeProto.input is not UTF-8 text"),
        (b"author", r"StringStringEntryProto.key is not UTF-8 text"),
        (b"where.bin", r"tensor 't': StringStringEntryProto.value is not UTF-8 text"),
        (b"learnt", r"tensor 't': TensorProto.doc_string is not UTF-8 text"),
        (b"batch", r"Dimension.dim_param is not UTF-8 text"),
    ],
)
def test_texts_that_are_not_utf8(tmp_path, build, text, message):
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"], "mul")]
    model = build(nodes, {"t": np.ones(4, np.float32)}, inputs={"x": ["batch", 4]})
    model.graph.initializer[0].external_data.add(key="location", value="where.bin")
    model.graph.initializer[0].doc_string = "learnt"
    model.metadata_props.add(key="author", value="someone")
    data = model.SerializeToString()
    assert text in data
    path = tmp_path / "bad.onnx"
    path.write_bytes(data.replace(text, b"\xff" + text[1:]))
    with pytest.raises(ModelError, match=f"{path}: {message}"):
        Document.load(path)


def test_descriptions_may_hold_any_bytes(tmp_path, build):
    model = build([helper.make_node("Relu", ["x"], ["y"], doc_string="why not")])
    model.producer_name, model.graph.doc_string = "someone", "what for"
    data = model.SerializeToString(deterministic=True)
    for text in (b"why not", b"someone", b"what for"):
        data = data.replace(text, b"\xff" + text[1:])
    (tmp_path / "odd.onnx").write_bytes(data)
    document = Document.load(tmp_path / "odd.onnx")
    assert document.to_proto().SerializeToString(deterministic=True) == data


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
