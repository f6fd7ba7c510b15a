"""Every node is analog or digital, with its reason, its parameters and its work."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.mapping import plan

RNG = np.random.default_rng(0)


def weight(*shape: int, dtype=np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def one(build, node, weights=None, **options):
    """The plan of the last node of a model."""
    nodes = node if isinstance(node, list) else [node]
    return plan(Document.from_proto(build(nodes, weights, **options))).nodes[len(nodes) - 1]


@pytest.mark.parametrize(
    ("shape", "x", "attributes", "figures"),
    [
        ((6, 3, 5, 5), [1, 3, 9, 9], {}, (75, 6, 1, 25)),
        ((8, 1, 3, 3), [1, 8, 8, 8], {"group": 8, "pads": [1] * 4}, (9, 1, 8, 64)),
        ((6, 2, 3), [1, 4, 12], {"group": 2, "strides": [3]}, (6, 3, 2, 4)),
        ((4, 2, 2, 2, 2), [1, 2, 4, 4, 4], {"dilations": [2, 1, 1]}, (16, 4, 1, 18)),
    ],
)
def test_convolutions(build, shape, x, attributes, figures):
    entry = one(
        build,
        helper.make_node("Conv", ["x", "w"], ["y"], **attributes),
        {"w": weight(*shape)},
        inputs={"x": x},
    )
    product = entry.product
    assert entry.domain == "analog"
    assert (product.rows, product.cols, product.groups, entry.positions) == figures
    assert entry.macs == int(np.prod(figures))
    assert entry.params == int(np.prod(shape))
    assert product.perm is None


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("left", [False, True])
def test_gemm(build, trans_a, trans_b, left):
    a_shape = (4, 3) if trans_a else (3, 4)
    b_shape = (5, 4) if trans_b else (4, 5)
    node = helper.make_node("Gemm", ["w", "x"] if left else ["x", "w"], ["y"], transA=trans_a, transB=trans_b)
    constant, activation = (a_shape, b_shape) if left else (b_shape, a_shape)
    entry = one(build, node, {"w": weight(*constant)}, inputs={"x": list(activation)})
    product = entry.product
    assert product.operand == 1 - left
    assert (product.rows, product.cols) == ((4, 3) if left else (4, 5))
    effective = constant if product.perm is None else tuple(constant[axis] for axis in product.perm)
    assert effective == (product.rows, product.cols)
    assert entry.macs == 3 * 4 * 5


@pytest.mark.parametrize(
    ("x", "shape", "positions"), [(["n", 4], (4, 7), 1), (["n", 6, 4], (4, 7), 6), ([2, 3, 6, 4], (4, 7), 36)]
)
def test_matmul(build, x, shape, positions):
    entry = one(build, helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weight(*shape)}, inputs={"x": x})
    assert (entry.domain, entry.positions, entry.macs) == ("analog", positions, positions * 28)


def test_matmul_with_the_constant_on_the_left(build):
    node = helper.make_node("MatMul", ["w", "x"], ["y"])
    entry = one(build, node, {"w": weight(7, 4)}, inputs={"x": ["n", 4, 3]})
    assert (entry.product.rows, entry.product.cols, entry.product.perm) == (4, 7, (1, 0))
    assert entry.positions == 3


def sparse_matrix() -> onnx.SparseTensorProto:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [5]), [4, 4])


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (helper.make_node("MatMul", ["x", "x"], ["y"]), "multiplies two activations"),
        (helper.make_node("MatMul", ["w", "w"], ["y"]), "both operands are constants"),
        (helper.make_node("MatMul", ["x", "batched"], ["y"]), "a batch of matrices"),
        (helper.make_node("MatMul", ["x", "vector"], ["y"]), "a vector"),
        (helper.make_node("Conv", ["x", "x"], ["y"]), "weight 'x' is computed, not constant"),
        (helper.make_node("Conv", ["x", "w"], ["y"]), "no 1-D, 2-D or 3-D convolution"),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), "transposed convolutions are not mapped"),
        (helper.make_node("Einsum", ["x", "w"], ["y"], equation="ab,bc->ac"), "Einsum is not mapped"),
        (helper.make_node("LSTM", ["x", "w", "w"], ["y"], hidden_size=1), "recurrent"),
        (helper.make_node("MatMulInteger", ["x", "w"], ["y"]), "computes on integers"),
        (helper.make_node("Relu", ["x"], ["y"]), "Relu is no product"),
        (helper.make_node("Identity", ["w"], ["y"]), "makes a constant"),
        (helper.make_node("FusedGemm", ["x", "w"], ["y"], domain="com.microsoft"), "com.microsoft"),
        (helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml"), "ai.onnx.ml"),
        (helper.make_node("MatMul", ["x", "w"], ["y"], domain="odd"), "unknown domain 'odd'"),
    ],
)
def test_digital_with_a_reason(build, node, reason):
    weights = {"w": weight(4, 4), "batched": weight(2, 4, 4), "vector": weight(4)}
    entry = one(build, node, weights)
    assert entry.domain == "digital"
    assert reason in entry.reason
    assert entry.product is None


@pytest.mark.parametrize(
    ("maker", "product", "reason"),
    [
        (helper.make_node("Slice", ["w", "from", "to"], ["m"]), ["x", "m"], "by Slice; fold constants"),
        (helper.make_node("Mul", ["w", "w"], ["m"]), ["m", "x"], "'m' is computed from constants by Mul"),
        (
            helper.make_node("Quant", ["w"], ["m"], domain="qonnx.custom_op.general"),
            ["x", "m"],
            "weight 'm' is computed by Quant of domain 'qonnx.custom_op.general'",
        ),
        (helper.make_node("Quant", ["x"], ["m"], domain="odd"), ["x", "m"], "multiplies two activations"),
        (helper.make_node("Relu", ["x"], ["m"]), ["x", "m"], "multiplies two activations"),
        (
            helper.make_node("Constant", [], ["m"], sparse_value=sparse_matrix()),
            ["x", "m"],
            "weight 'm' is sparse",
        ),
    ],
)
def test_computed_operands(build, maker, product, reason):
    weights = {"w": weight(4, 4), "from": np.int64([0]), "to": np.int64([4])}
    entry = one(build, [maker, helper.make_node("MatMul", product, ["y"])], weights)
    assert entry.domain == "digital"
    assert reason in entry.reason


@pytest.mark.parametrize(
    ("op", "shape", "x"),
    [("MatMul", (4, 0), [2, 4]), ("Gemm", (0, 3), [2, 0]), ("Conv", (0, 3, 3, 3), [1, 3, 6, 6])],
)
def test_an_empty_weight_is_digital(build, op, shape, x):
    entry = one(build, helper.make_node(op, ["x", "w"], ["y"]), {"w": weight(*shape)}, inputs={"x": x})
    assert (entry.domain, entry.reason) == ("digital", f"its weight, of shape {list(shape)}, is empty")


def test_a_function_of_another_opset_cannot_be_inlined(build):
    inner = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    function = helper.make_function("f", "Old", ["a", "b"], ["c"], inner, [helper.make_opsetid("", 11)])
    model = build([helper.make_node("Old", ["x", "w"], ["y"], domain="f")], {"w": weight(4, 4)})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("f", 1))
    entry = plan(Document.from_proto(model)).nodes[-1]
    assert "'Old', which cannot be inlined: it is of opset 11, the model of 18" in entry.reason


def test_gemm_before_opset_7_is_digital(build):
    entry = one(build, helper.make_node("Gemm", ["x", "w", "b"], ["y"], broadcast=1),
                {"w": weight(4, 2), "b": weight(2)}, opset=6)  # fmt: skip
    assert entry.domain == "digital"
    assert "opset 6" in entry.reason


def test_rank_not_known_on_the_right_of_a_constant(build):
    nodes = [
        helper.make_node("Odd", ["x"], ["a"], domain="odd"),
        helper.make_node("MatMul", ["w", "a"], ["y"]),
    ]
    entry = one(build, nodes, {"w": weight(4, 4)})
    assert entry.domain == "digital"
    assert "rank" in entry.reason


def test_shape_not_known_is_said(build):
    nodes = [
        helper.make_node("Odd", ["x"], ["a"], domain="odd"),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    entry = one(build, nodes, {"w": weight(4, 4)})
    assert (entry.domain, entry.macs, entry.positions) == ("analog", None, None)
    assert "not known" in entry.reason


def test_compensation_is_digital(build):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="cnpass.role", value="compensation")
    node.metadata_props.add(key="cnpass.name", value="fc")
    node.metadata_props.add(key="cnpass.op_type", value="Gemm")
    entry = one(build, node, {"w": weight(4, 4)})
    assert (entry.label, entry.op_type, entry.domain) == ("fc", "MatMul", "digital")
    assert (entry.reason, entry.compensates) == ("compensation of 'fc'", "fc")
    assert (entry.params, entry.macs) == (16, 16)


def test_streams_follow_first_use_and_tied_weights_share_one(build):
    nodes = [
        helper.make_node("MatMul", ["x", "b"], ["h1"]),
        helper.make_node("MatMul", ["h1", "a"], ["h2"]),
        helper.make_node("Transpose", ["b"], ["bt"]),
        helper.make_node("MatMul", ["h2", "bt"], ["h3"]),
        helper.make_node("MatMul", ["h3", "c"], ["y"]),
    ]
    found = plan(Document.from_proto(build(nodes, {name: weight(4, 4) for name in "abc"})))
    assert found.streams == {"b": 0, "a": 1, "c": 2}
    assert [node.stream for node in found.analog] == [0, 1, 0, 2]
    assert sum(found.constants.values()) == 48


def test_streams_do_not_depend_on_what_a_pass_inserts(build):
    nodes = [helper.make_node("MatMul", ["x", "b"], ["h"]), helper.make_node("MatMul", ["h", "a"], ["y"])]
    extra = helper.make_node("MatMul", ["x", "extra"], ["side"])
    extra.metadata_props.add(key="cnpass.role", value="compensation")
    weights = {name: weight(4, 4) for name in ("a", "b", "extra")}
    before = plan(Document.from_proto(build(nodes, weights))).streams
    after = plan(Document.from_proto(build([extra, *nodes], weights))).streams
    assert before == after == {"b": 0, "a": 1}


def test_bodies_and_functions_are_listed_node_by_node(build):
    inner = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "inner"], ["r"], name="m"),
            helper.make_node("Relu", ["r"], ["r2"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("r2", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight(4, 2), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["r3"])],
        "other",
        [],
        [helper.make_tensor_value_info("r3", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["flag"], ["a"], name="if", then_branch=inner, else_branch=other),
        helper.make_node("Mine", ["a"], ["y"], domain="local", name="call"),
        helper.make_node("Mine", ["square"], ["v"], domain="local", name="maker"),
        helper.make_node("MatMul", ["a", "v"], ["z"], name="made"),
    ]
    model = build(nodes, {"flag": np.array(True), "w": weight(4, 2), "square": weight(2, 2)})
    body = [helper.make_node("MatMul", ["p", "p"], ["q"])]
    model.functions.append(
        helper.make_function("local", "Mine", ["p"], ["q"], body, [helper.make_opsetid("", 18)])
    )
    found = plan(Document.from_proto(model))
    assert [node.label for node in found.nodes] == [
        *("if", "call", "maker", "made", "if/other/r3", "if/branch/m", "if/branch/r2", "Mine/q")
    ]
    assert [node.label for node in found.analog] == ["if/other/r3", "if/branch/m"]
    assert [node.stream for node in found.analog] == [0, 1]
    assert all("how often its body runs is not known" in node.reason for node in found.analog)
    assert "its body is listed" in found.nodes[0].reason
    assert "local function 'Mine'" in found.nodes[1].reason
    assert found.nodes[3].reason == "weight 'v' is computed by the local function 'Mine'"
    assert "local function 'Mine'" in found.nodes[7].reason
    assert [node.macs for node in found.nodes] == [0, None, None, None, None, None, 0, None]
    assert found.constants == {"square": 4, "inner": 8, "w": 8}


def test_weights_of_one_name_in_two_bodies_are_two(build):
    def branch():
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["r"])],
            "same",
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight(4, 2), "w")],
        )

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch(), else_branch=branch())
    found = plan(Document.from_proto(build([node], {"flag": np.array(True)})))
    assert found.streams == {"w": 0, "w@1": 1}
    assert [node.label for node in found.analog] == ["y/same0/r", "y/same1/r"]


def test_what_is_passed_to_a_body_is_no_weight_of_it(build):
    names = ("i", "c", "s")
    types = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "s"], ["t"]), helper.make_node("Identity", ["c"], ["c2"])],
        "body",
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(names, types, strict=True)],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight(4, 4), "s")],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    found = plan(Document.from_proto(build([node], {"n": np.int64(2)})))
    assert not found.analog


@pytest.mark.parametrize(
    ("node", "weights", "x", "macs"),
    [
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            {"w": weight(3, 5, 2, 2)},
            [1, 3, 4, 4],
            3 * 16 * 5 * 4,
        ),
        (
            helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6),
            {"w": weight(1, 24, 4), "r": weight(1, 24, 6)},
            [7, 1, 4],
            7 * (24 * 4 + 24 * 6),
        ),
        (
            helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij, jk -> bik"),
            {"w": weight(4, 5)},
            [1, 3, 4],
            3 * 4 * 5,
        ),
        (
            helper.make_node("Einsum", ["x", "w"], ["y"], equation="...j,jk->...k"),
            {"w": weight(4, 5)},
            [1, 4],
            4 * 5,
        ),
        (
            helper.make_node("Einsum", ["x", "w"], ["y"], equation="b...j,...jk->b...k"),
            {"w": weight(6, 1, 4, 5)},
            [1, 3, 4],
            6 * 3 * 4 * 5,
        ),
        (helper.make_node("Einsum", ["x"], ["y"], equation="ab...cd->a"), {}, [1, 4, 3], None),
        (helper.make_node("MatMul", ["x", "x"], ["y"]), {}, [1, 3, 4, 4], 3 * 64),
        (helper.make_node("Odd", ["x"], ["y"], domain="odd"), {}, [1, 4], None),
    ],
)
def test_work_of_digital_nodes(build, node, weights, x, macs):
    assert one(build, node, weights, inputs={"x": x}).macs == macs


def test_parameters_of_quantised_weights(build):
    node = helper.make_node("MatMulInteger", ["x", "w", "", "z"], ["y"])
    entry = one(build, node, {"w": weight(4, 4).astype(np.int8), "z": np.int8(1)})
    assert entry.constants == {"w": 16}


def test_every_zoo_model_has_a_plan(zoo_model):
    path, entry = zoo_model
    model = onnx.load(path, load_external_data=False)
    found = plan(Document.load(path))
    in_functions = sum(len(function.node) for function in model.functions)
    assert len(found.nodes) >= len(model.graph.node) + in_functions
    assert all(node.reason for node in found.nodes)
    expected = entry["const_weight_ops"]
    counted = sum(expected.get(op, 0) for op in ("Conv", "Gemm", "MatMul"))
    behind = str(entry["const_weight_location"])
    if "Quant(" in behind or entry["name"] in ("trt_qdq_conv", "silero_vad_16k_op15"):
        assert len(found.analog) <= counted
    else:
        assert len(found.analog) == counted
