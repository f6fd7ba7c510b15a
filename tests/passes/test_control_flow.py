"""Nodes in bodies of If, Loop and Scan are mapped where they stand; local functions are inlined first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.inspection import inspect
from cnpass.mapping import plan
from cnpass.passes import Pipeline
from cnpass.passes.analog import analog_nodes
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.pipeline import Verifying
from cnpass.runtime.session import Session
from cnpass.training.lift import lift
from cnpass.training.writeback import write_back

KINDS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


def value(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name: str, op: str, local: np.ndarray) -> onnx.GraphProto:
    """A product with a weight of its own, and two with one of the main graph, one of them in an inner If."""
    kind = helper.np_dtype_to_tensor_dtype(local.dtype)
    inner = {
        f"{side}_branch": helper.make_graph(
            [
                helper.make_node("MatMul", ["r", "outer"], ["i"], name="deep"),
                helper.make_node(side_op, ["i"], ["o"]),
            ],
            side,
            [],
            [value("o", kind)],
        )
        for side, side_op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        helper.make_node("MatMul", ["h", "w"], ["m"], name="same"),
        helper.make_node(op, ["m"], ["r"], name="act"),
        helper.make_node("If", ["flag"], ["f"], name="inner", **inner),
        helper.make_node("Gemm", ["f", "outer"], ["out"], name="gemm", transB=1, alpha=2.0),
    ]
    return helper.make_graph(nodes, name, [], [value("out", kind)], [numpy_helper.from_array(local, "w")])


@pytest.fixture(params=[(np.float32, 12), (np.float32, 18), (np.float16, 18)], ids=str)
def flow(request, weight) -> onnx.ModelProto:
    """If with an If inside, then a Loop and a Scan; a weight of the main graph is used in all of them."""
    dtype, opset = request.param
    kind = KINDS[dtype]
    scales = {"a": 0.5, "b": 0.7, "outer": 0.3, "first": 0.4}
    w = {name: weight(4, 4, dtype=dtype) * dtype(scale) for name, scale in scales.items()}
    loop = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "outer"], ["t"], name="in loop"),
            helper.make_node("Tanh", ["t"], ["s2"]),
            helper.make_node("Identity", ["go"], ["go2"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("s", kind)],
        [value("go2", TensorProto.BOOL, []), value("s2", kind)],
    )
    scan = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "row"], ["sum2"]),
            helper.make_node("MatMul", ["sum2", "outer"], ["made"], name="in scan"),
        ],
        "rows",
        [value("sum", kind, [4]), value("row", kind, [4])],
        [value("sum2", kind, [4]), value("made", kind, [4])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="same"),
        helper.make_node(
            "If",
            ["flag"],
            ["y1"],
            name="if",
            then_branch=branch("t", "Relu", w["a"]),
            else_branch=branch("e", "Tanh", w["b"]),
        ),
        helper.make_node("Loop", ["count", "", "y1"], ["y2"], name="loop", body=loop),
        helper.make_node("Scan", ["zero", "y2"], ["last", "y"], name="scan", body=scan, num_scan_inputs=1),
    ]
    weights = {"first": w["first"], "outer": w["outer"], "zero": np.zeros(4, dtype), "count": np.array(3)}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", kind, ["n", 4]), value("flag", TensorProto.BOOL, [])],
        [value("y", kind), value("last", kind)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds(model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    return [{"x": x, "flag": np.array(flag)} for flag in (True, False)]


def serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def test_bodies_are_mapped_in_place_and_come_back(flow):
    document = Document.from_proto(flow)
    found = {node.label for node in plan(document).analog}
    assert found >= {"same", "loop/body/in loop", "scan/rows/in scan"}
    assert found >= {f"if/{side}/{name}" for side in "te" for name in ("same", "gemm", "inner/then/deep")}
    assert len(found) == 11
    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    before, after = Session(flow), Session(document.to_proto())
    for each in feeds(flow):
        expected, ideal, varied = before.run(each), after.run(each), after.run(each, chip=3)
        for a, b, c in zip(expected, ideal, varied, strict=True):
            assert np.abs(a - b).max() <= (1e-5 if a.dtype == np.float32 else 1e-2) * np.abs(a).max()
            assert np.abs(a - c).max() > 1e-2 * np.abs(a).max()
    reloaded = Document.from_proto(onnx.ModelProto.FromString(serialized(document.to_proto())))
    for mapped in (document, reloaded):
        Pipeline.parse("lower-analog{mark=false}").run(mapped, [Verifying()])
        assert serialized(mapped.to_proto()) == serialized(flow)


def test_weights_of_bodies_are_trained_and_written_back(flow):
    document = Document.from_proto(flow)
    module = lift(document)
    assert set(module.weights) == {"first", "outer", "w", "w@1", "zero"}
    assert {node.key for node in plan(document).analog} == set(module.weights) - {"zero"}
    assert write_back(document, module.weights) == []
    assert serialized(document.to_proto()) == serialized(flow)
    new = {name: weight.detach() * 0.5 + 0.125 for name, weight in module.weights.items()}
    assert sorted(write_back(document, new)) == sorted(new)
    for each in feeds(flow):
        x = torch.from_numpy(each["x"]).float()
        got = module(x, torch.from_numpy(each["flag"]), weights=new)
        sum(t.sum() for t in module(x, torch.from_numpy(each["flag"]))).backward()
        for a, b in zip(Session(document.to_proto()).run(each), got, strict=True):
            tolerance = 1e-5 if a.dtype == np.float32 else 2e-2
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=tolerance, atol=tolerance)
    assert all(weight.grad is not None for weight in module.weights.values())


def test_a_body_repeats_a_node_of_the_graph_around_it(build, weight):
    """ONNX wants other names; nodes that look the same must not be taken for each other all the same."""
    same = helper.make_node("MatMul", ["x", "w"], ["y"], name="call")
    bodies = {
        f"{side}_branch": helper.make_graph([same], side, [], [value("y")]) for side in ("then", "else")
    }
    nodes = [helper.make_node("If", ["flag"], ["h"], name="if", **bodies), same]
    model = build(nodes, {"w": weight(4, 4), "flag": np.array(True)}, outputs=("y", "h"))
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    assert len(plan(document).analog) == 3
    readers = document.tensors()["x"].outputs
    assert {id(node) for node in readers} == {id(node) for node in analog_nodes(document)}
    Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
    assert serialized(document.to_proto()) == serialized(model)


def dense(function: str, *more: onnx.NodeProto) -> onnx.FunctionProto:
    nodes = [helper.make_node("MatMul", ["p", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["q"]), *more]
    return helper.make_function(
        "local", function, ["p", "w", "b"], ["q"], nodes, [helper.make_opsetid("", 18)]
    )


@pytest.fixture
def functions(build, weight) -> onnx.ModelProto:
    """Two calls of a dense layer, one through another function, and one of a function without weights."""
    through = helper.make_function(
        "local",
        "Through",
        ["p", "w", "b"],
        ["q"],
        [helper.make_node("Dense", ["p", "w", "b"], ["q"], domain="local")],
        [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
    )
    plain = helper.make_function(
        "local",
        "Twice",
        ["p"],
        ["q"],
        [helper.make_node("Add", ["p", "p"], ["q"])],
        [helper.make_opsetid("", 18)],
    )
    nodes = [
        helper.make_node("Dense", ["x", "w1", "b"], ["h"], name="first", domain="local"),
        helper.make_node("Twice", ["h"], ["t"], domain="local"),
        helper.make_node("Through", ["t", "w2", "b"], ["y"], domain="local"),
    ]
    model = build(nodes, {"w1": weight(4, 4), "w2": weight(4, 4) * 2, "b": weight(4)})
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.extend([dense("Dense"), through, plain])
    return model


def test_functions_with_weights_are_inlined(functions):
    document = Document.from_proto(functions)
    result = Pipeline.parse("map-crossbar").run(document, [Verifying()])
    assert "map-crossbar: 2 local functions are inlined" in result.notes
    assert {f.name for f in document.functions if f.domain == "local"} == {"Twice"}
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    expected = Session(functions).run(x)[0]
    np.testing.assert_allclose(Session(document.to_proto()).run(x)[0], expected, rtol=1e-5)
    Pipeline.parse("lower-analog").run(document, [Verifying()])
    np.testing.assert_allclose(Session(document.to_proto()).run(x)[0], expected, rtol=1e-5)


def test_functions_are_inspected_as_they_would_be_mapped(functions):
    record = inspect(Document.from_proto(functions))
    assert sorted(node.weight for node in record.nodes if node.domain == "analog") == ["w1", "w2"]
    assert record.totals.params == 36


def test_a_constant_of_a_function_is_one_weight_for_all_calls(build, weight):
    """Called from the main graph, by another function, and in a body, which keeps one of its own."""
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    stored = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight(4, 4)))
    multiply = helper.make_node("MatMul", ["p", "w"], ["q"])
    block = helper.make_function("local", "Block", ["p"], ["q"], [stored, multiply], versions)
    body = helper.make_graph(
        [helper.make_node("Block", ["t"], ["o"], domain="local")],
        "body",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    calls = [
        helper.make_node("Block", ["p"], ["r"], domain="local"),
        helper.make_node("Block", ["r"], ["t"], domain="local"),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["q"], then_branch=body, else_branch=body),
    ]
    through = helper.make_function("local", "Through", ["p"], ["q"], calls, versions)
    nodes = [
        helper.make_node("Block", ["x"], ["h"], domain="local"),
        helper.make_node("Through", ["h"], ["i"], domain="local"),
        helper.make_node("Through", ["i"], ["y"], domain="local"),
    ]
    model = build(nodes)
    model.opset_import.append(versions[1])
    model.functions.extend([block, through])
    record = inspect(Document.from_proto(model))
    weights = [node.weight for node in record.nodes if node.domain == "analog"]
    assert len(weights) == 9
    assert len(set(weights[:5])) == 1
    assert len(set(weights)) == 1 + 4
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    assert b"function-constant" not in document.to_proto().SerializeToString()
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    expected = Session(model).run(x)[0]
    np.testing.assert_allclose(Session(document.to_proto()).run(x, chip=-1)[0], expected, rtol=1e-4)


def test_functions_without_weights_stay(build):
    body = [helper.make_node("MatMul", ["p", "p"], ["q"])]
    model = build([helper.make_node("Square", ["x"], ["y"], domain="local")], inputs={"x": [4, 4]})
    model.functions.append(
        helper.make_function("local", "Square", ["p"], ["q"], body, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    document = Document.from_proto(model)
    with pytest.raises(PassPreconditionError, match="inlines those with weights to map"):
        Pipeline.parse("map-crossbar").run(document)
    assert serialized(document.to_proto()) == serialized(model)
