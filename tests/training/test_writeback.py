"""Trained weights go back by name, in their own type, and touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.training.lift import lift
from cnpass.training.writeback import write_back

F = TensorProto.FLOAT


def _random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_written_model_computes_what_the_module_computes(convnet, ort) -> None:
    document = Document.from_proto(convnet)
    module = lift(document)
    with torch.no_grad():
        for weight in module.weights.values():
            weight.mul_(1.25).add_(0.01)
    changed = write_back(document, module.weights)
    assert set(changed) == {i.name for i in convnet.graph.initializer}
    written = document.to_proto()
    x = _random((4, 1, 8, 8))
    want = module(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(ort(written, [x])[0], want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    del written.graph.initializer[:], convnet.graph.initializer[:]
    assert written == convnet


def test_unchanged_weights_leave_the_same_bytes(convnet) -> None:
    document = Document.from_proto(convnet)
    before = document.to_proto().SerializeToString(deterministic=True)
    assert write_back(document, lift(document).weights) == []
    assert document.to_proto().SerializeToString(deterministic=True) == before


def test_weights_keep_their_element_type(make) -> None:
    stored = _random((3, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["w"], ["single"], to=F),
        helper.make_node("MatMul", ["x", "single"], ["y"]),
    ]
    document = Document.from_proto(make(nodes, {"x": (F, [2, 3])}, ["y"], {"w": stored}))
    module = lift(document)
    value = module.weights["w"].detach() + 1e-2
    assert write_back(document, {"w": value}) == ["w"]
    back = numpy_helper.to_array(document.to_proto().graph.initializer[0])
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, value.numpy().astype(np.float16))


def test_constants_of_nodes_stay_nodes(make, ort) -> None:
    value = numpy_helper.from_array(_random((3, 4)))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    document = Document.from_proto(make(nodes, {"x": (F, [2, 3])}, ["y"]))
    new = torch.from_numpy(_random((3, 4), 1))
    assert write_back(document, {"w": new}) == ["w"]
    written = document.to_proto()
    assert [n.op_type for n in written.graph.node] == ["Constant", "MatMul"]
    x = _random((2, 3), 2)
    np.testing.assert_allclose(ort(written, [x])[0], x @ new.numpy(), rtol=1e-6)


def test_a_dequantised_weight_becomes_an_initializer(make, ort) -> None:
    weights = {
        "q": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        "s": np.array(0.1, np.float32),
        "z": np.array(1, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    document = Document.from_proto(make(nodes, {"x": (F, [2, 3])}, ["y"], weights))
    module = lift(document)
    assert list(module.weights) == ["w"]
    assert write_back(document, module.weights) == []
    new = torch.from_numpy(_random((3, 4), 1))
    assert write_back(document, {"w": new}) == ["w"]
    written = document.to_proto()
    assert [n.op_type for n in written.graph.node] == ["MatMul"]
    x = _random((2, 3), 2)
    np.testing.assert_allclose(ort(written, [x])[0], x @ new.numpy(), rtol=1e-6)


def test_what_is_no_weight_or_has_another_shape_is_refused(convnet) -> None:
    document = Document.from_proto(convnet)
    with pytest.raises(ModelError, match="'nothing' is no weight"):
        write_back(document, {"nothing": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"fc.bias.*shape"):
        write_back(document, {"fc.bias": torch.zeros(5)})


def test_a_name_that_nothing_makes_is_refused(make) -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])], {"x": (TensorProto.FLOAT, ["n", 4])}, ["y"])
    model.graph.node.append(helper.make_node("MatMul", ["x", "nothing"], ["unread"]))
    with pytest.raises(ModelError, match="'nothing' is made by nothing in the model"):
        write_back(Document.from_proto(model), {"nothing": torch.ones(4)})


def test_an_attribute_in_another_file_is_not_read(make, tmp_path, monkeypatch) -> None:
    (tmp_path / "value.bin").write_bytes(np.float32(5).tobytes())
    monkeypatch.chdir(tmp_path)
    value = numpy_helper.from_array(np.float32([5]))
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="value.bin")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], "made"),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = make(nodes, {"x": (TensorProto.FLOAT, ["n", 4])}, ["y"], {"shape": np.int64([4, 3])})
    model.graph.node[0].attribute.append(helper.make_attribute("value", value))
    with pytest.raises(ModelError, match="node 'made' keeps an attribute in another file"):
        write_back(Document.from_proto(model, tmp_path), {"w": torch.ones(4, 3)})


def test_a_node_that_breaks_its_operators_rules_is_named(make) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], "dequantise", axis=7),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"q": np.ones((4, 3), np.int8), "scale": np.ones(3, np.float32)}
    model = make(nodes, {"x": (TensorProto.FLOAT, ["n", 4])}, ["y"], weights)
    with pytest.raises(ModelError, match="node 'dequantise' cannot be computed") as caught:
        write_back(Document.from_proto(model), {"w": torch.ones(4, 3)})
    assert "\n" not in str(caught.value)
