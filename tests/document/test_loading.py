"""Files that are no models end in one line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from cnpass.document import Document
from cnpass.errors import ModelError

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
