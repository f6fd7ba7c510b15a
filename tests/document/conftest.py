"""Models with everything that an editor can lose, and with external data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def _entries(target, **values: str) -> None:
    for key, value in values.items():
        target.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))


@pytest.fixture
def rich(build) -> onnx.ModelProto:
    """A valid model with a field of every kind that plain graphsurgeon loses or changes."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["hidden", "outer"], ["r"], name="same")],
            name,
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        )
        for name, op in (("then", "Add"), ("else", "Sub"))
    ]
    custom = helper.make_node("Odd", ["a"], ["b", ""], domain="third.party", name="")
    custom.attribute.add(name="raw", type=onnx.AttributeProto.STRING, s=b"\xff\xfe")
    custom.attribute.append(helper.make_attribute("text", "plain"))
    nodes = [
        helper.make_node("MatMul", ["x", "weight/with:odd name"], ["hidden"], name="same", doc_string="why"),
        helper.make_node("If", ["flag"], ["a"], name="same", then_branch=branch[0], else_branch=branch[1]),
        custom,
        helper.make_node("Clip", ["b", "", "limit"], ["größe"], name="clip"),
        helper.make_node("Mine", ["größe"], ["y"], domain="local", name="call"),
    ]
    _entries(nodes[0], origin="layer 1")
    inner = helper.make_node("LeakyRelu", ["p"], ["z"], name="k")
    inner.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "local", "Mine", ["p"], ["z"], [inner], [helper.make_opsetid("", 18)], ["slope"]
    )
    model = build(
        nodes,
        {
            "weight/with:odd name": np.arange(16, dtype=np.float32).reshape(4, 4),
            "outer": np.float32([1, 2, 3, 4]),
            "limit": np.float32(3),
            "flag": np.array(True),
            "never read": np.float32([np.nan]),
        },
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("third.party", 3))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.producer_name, model.model_version, model.doc_string = "someone", 7, "text"
    _entries(model, author="a", licence="b")
    graph = model.graph
    graph.doc_string = "graph text"
    _entries(graph, place="here")
    _entries(graph.initializer[0], trained="yes")
    graph.initializer[0].doc_string = "a weight"
    graph.input.append(helper.make_tensor_value_info("limit", TensorProto.FLOAT, []))
    graph.input[0].doc_string = "images"
    info = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", 4])
    _entries(info, seen="1")
    graph.value_info.append(info)
    graph.quantization_annotation.add(tensor_name="hidden")
    values = numpy_helper.from_array(np.float32([5]), "sparse")
    indices = numpy_helper.from_array(np.int64([2]), "")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    graph.output.append(helper.make_tensor_value_info("outer", TensorProto.FLOAT, [4]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    training = model.training_info.add()
    training.algorithm.name = "sgd"
    return model


@pytest.fixture
def external(tmp_path, build):
    """Writes a model whose weights are external data; gives its path and the weights."""

    def write(folder: str = "source", location: str = "weights.bin", size: int = 64):
        rng = np.random.default_rng(0)
        weights = {n: rng.standard_normal((size, size)).astype(np.float32) for n in ("w1", "w2", "w3")}
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("MatMul", ["a", "w2"], ["b"]),
            helper.make_node("MatMul", ["b", "w3"], ["y"]),
        ]
        model = build(nodes, weights, inputs={"x": ["n", size]})
        place = tmp_path / folder
        place.mkdir()
        offset = 0
        with (place / "weights.bin").open("wb") as file:
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                values = {"location": location, "offset": str(offset), "length": str(len(data))}
                for key, value in values.items():
                    tensor.external_data.add(key=key, value=value)
                offset += file.write(data)
        (place / "model.onnx").write_bytes(model.SerializeToString())
        return place / "model.onnx", weights

    return write
