"""A weight is found wherever it hides, with the layout in which it is stored."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.weights import constant_makers, resolve

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def find(build, nodes, weights=None, **options):
    """The weight of the last node, which must be a MatMul of x, and the document."""
    model = build([*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])], weights, **options)
    document = Document.from_proto(model)
    return resolve(document.graph.nodes[-1].inputs[1]), document


def constant(name: str, array: np.ndarray):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def test_initializer(build):
    weight, _ = find(build, [], {"w": W})
    assert (weight.key, weight.kind, weight.shape, weight.perm) == ("w", "initializer", (3, 4), None)
    assert weight.stored is weight.tensor is weight.root


def test_constant_node(build):
    weight, document = find(build, [constant("w", W)])
    assert (weight.key, weight.kind) == ("w", "constant")
    np.testing.assert_array_equal(weight.values(document.opset), W)


@pytest.mark.parametrize(("name", "value"), [("value_float", 2.0), ("value_floats", [1.0, 2.0])])
def test_constant_node_of_numbers(build, name, value):
    weight, document = find(build, [helper.make_node("Constant", [], ["w"], **{name: value})])
    assert weight.shape == np.shape(value)
    np.testing.assert_array_equal(weight.values(document.opset), value)


def test_constant_of_shape(build):
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["w"])]
    weight, document = find(build, nodes, {"s": np.int64([3, 4])})
    assert (weight.key, weight.shape, weight.dtype) == ("w", (3, 4), np.float32)
    np.testing.assert_array_equal(weight.values(document.opset), np.zeros((3, 4)))


def test_chain_of_every_kind(build):
    nodes = [
        helper.make_node("Identity", ["r"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["c"], ["d"]),
        helper.make_node("Identity", ["d"], ["e"]),
        helper.make_node("Transpose", ["e"], ["w"], perm=[1, 0]),
    ]
    stored = W.astype(np.float16).reshape(2, 6)
    weight, document = find(build, nodes, {"r": stored, "s": np.int64([0, -1])})
    assert (weight.key, weight.root_shape, weight.shape) == ("r", (2, 6), (2, 6))
    assert weight.perm is None
    assert weight.stored.name == "c"
    assert [node.op for node in weight.path] == [
        *("Identity", "Reshape", "Cast", "Transpose", "Identity", "Transpose")
    ]
    np.testing.assert_array_equal(weight.values(document.opset), stored.astype(np.float32))


@pytest.mark.parametrize(
    ("node", "root", "opset", "shape"),
    [
        (helper.make_node("Flatten", ["r"], ["w"], axis=2), (2, 2, 3, 1), 18, (4, 3)),
        (helper.make_node("Flatten", ["r"], ["w"], axis=-1), (2, 2, 3), 18, (4, 3)),
        (helper.make_node("Squeeze", ["r", "last"], ["w"]), (4, 3, 1), 18, (4, 3)),
        (helper.make_node("Squeeze", ["r"], ["w"]), (1, 4, 3, 1), 18, (4, 3)),
        (helper.make_node("Squeeze", ["r"], ["w"], axes=[0]), (1, 4, 3), 11, (4, 3)),
        (helper.make_node("Unsqueeze", ["r", "last"], ["w"]), (4,), 18, (4, 1)),
        (helper.make_node("Unsqueeze", ["r"], ["w"], axes=[0, 3]), (4, 3), 11, (1, 4, 3, 1)),
    ],
)
def test_other_ways_to_reshape(build, node, root, opset, shape):
    array = np.random.default_rng(0).normal(size=root).astype(np.float32)
    weight, document = find(build, [node], {"r": array, "last": np.int64([-1])}, opset=opset)
    assert (weight.key, weight.stored.name, weight.shape) == ("r", "w", shape)
    np.testing.assert_array_equal(weight.values(document.opset), array.reshape(shape))


def test_transposes_compose(build):
    root = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    nodes = [
        helper.make_node("Transpose", ["r"], ["a"], perm=[1, 2, 0]),
        helper.make_node("Transpose", ["a"], ["w"], perm=[2, 1, 0]),
    ]
    weight, document = find(build, nodes, {"r": root})
    assert weight.stored.name == "r"
    np.testing.assert_array_equal(root.transpose(weight.perm), weight.values(document.opset))
    assert root.transpose(weight.perm).shape == weight.shape


def test_transpose_before_reshape_stays(build):
    nodes = [
        helper.make_node("Transpose", ["r"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["w"]),
    ]
    weight, _ = find(build, nodes, {"r": W, "s": np.int64([6, 2])})
    assert (weight.stored.name, weight.perm, weight.key) == ("w", None, "r")


@pytest.mark.parametrize(
    ("attributes", "scale", "shape"),
    [({"axis": 1}, np.float32([1, 2, 3, 4]), (3, 4)), ({"axis": 0}, np.float32([1, 2, 3]), (3, 4))],
)
def test_dequantized_weight(build, attributes, scale, shape):
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], **attributes)]
    weights = {"q": W.astype(np.uint8), "scale": scale, "zero": np.full(scale.shape, 3, np.uint8)}
    weight, document = find(build, nodes, weights)
    assert (weight.key, weight.kind, weight.shape) == ("w", "converted", shape)
    expanded = np.expand_dims(scale, 1 - attributes["axis"])
    np.testing.assert_array_equal(weight.values(document.opset), (W - 3) * expanded)


def test_fake_quantized_weight(build):
    nodes = [
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Transpose", ["d"], ["w"]),
    ]
    weights = {"r": W, "scale": np.float32(2), "zero": np.int8(0)}
    weight, document = find(build, nodes, weights)
    assert (weight.key, weight.stored.name, weight.perm) == ("d", "d", (1, 0))
    np.testing.assert_array_equal(weight.values(document.opset), np.rint(W / 2).T * 2)


def test_integer_cast_to_float(build):
    weight, _ = find(
        build, [helper.make_node("Cast", ["r"], ["w"], to=TensorProto.FLOAT)], {"r": W.astype(np.int8)}
    )
    assert (weight.key, weight.kind) == ("w", "converted")


def test_cast_of_old_opsets_names_its_type(build):
    node = helper.make_node("Cast", ["r"], ["w"], to="DOUBLE")
    weight, _ = find(build, [node], {"r": W}, opset=5)
    assert weight.dtype == np.float64


def test_reshape_of_old_opsets_has_an_attribute(build):
    weight, _ = find(build, [helper.make_node("Reshape", ["r"], ["w"], shape=[4, -1])], {"r": W}, opset=4)
    assert weight.shape == (4, 3)


def test_bfloat16_is_floating_point(build):
    weight, _ = find(build, [], {"w": W.astype(ml_dtypes.bfloat16)})
    assert weight.is_float


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Add", ["r", "r"], ["w"])],
        [helper.make_node("Reshape", ["r", "dynamic"], ["w"])],
        [helper.make_node("Reshape", ["r", "seven"], ["w"])],
        [helper.make_node("Transpose", ["r"], ["w"], perm=[0, 0])],
        [helper.make_node("Relu", ["x"], ["w"])],
        [helper.make_node("Flatten", ["r"], ["w"], axis=3)],
        [helper.make_node("Squeeze", ["r", "seven"], ["w"])],
        [helper.make_node("Unsqueeze", ["r", "seven"], ["w"])],
        [helper.make_node("Unsqueeze", ["r", "dynamic"], ["w"])],
        [helper.make_node("Cast", ["r"], ["w"], to=4711)],
        [helper.make_node("DequantizeLinear", ["q", "dynamic"], ["w"])],
        [helper.make_node("Transpose", ["r"], ["w"], domain="else.where")],
    ],
)
def test_what_cannot_be_followed_is_no_weight(build, nodes):
    weights = {"r": W, "seven": np.int64([7, -1]), "q": W.astype(np.int8)}
    weight, _ = find(build, nodes, weights, inputs={"x": ["n", 4], "dynamic": [2]})
    assert weight is None


@pytest.mark.parametrize(
    ("node", "constant"),
    [
        (helper.make_node("Concat", ["r", "r"], ["w"], axis=0), True),
        (helper.make_node("Split", ["r"], ["other", "w"], num_outputs=2), True),
        (helper.make_node("Add", ["r", "x"], ["w"]), False),
        (helper.make_node("RandomNormalLike", ["r"], ["w"]), False),
        (helper.make_node("Add", ["r", "r"], ["w"], domain="else.where"), True),
    ],
)
def test_what_depends_on_constants_alone(build, node, constant):
    _, document = find(build, [node], {"r": W})
    makers = constant_makers(document.graph.nodes[-1].inputs[1])
    assert ([maker.op for maker in makers] if makers is not None else None) == (
        [node.op_type] if constant else None
    )


def test_sparse_weights_are_not_followed(rich):
    document = Document.from_proto(rich)
    sparse = next(t for t in document.constants() if t.name == "sparse")
    assert resolve(sparse) is None


def test_external_weights_are_found_without_their_data(external):
    path, _ = external()
    (path.parent / "weights.bin").unlink()
    document = Document.load(path)
    assert resolve(document.graph.nodes[0].inputs[1]).shape == (64, 64)
