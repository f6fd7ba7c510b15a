"""Mapped models compute the same on the ideal chip, and lowering brings back the source byte for byte."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document, node_metadata
from cnpass.errors import UsageError
from cnpass.passes import Pipeline
from cnpass.passes.analog import analog_nodes
from cnpass.passes.base import PassError, PassPreconditionError
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.passes.pipeline import Verifying
from cnpass.runtime.devices import Gaussian, LogNormal, Proportional
from cnpass.runtime.reference import program_weight
from cnpass.runtime.session import Session


def run(model: onnx.ModelProto, feeds, **options) -> np.ndarray:
    return Session(model).run(feeds, **options)[0]


def test_equal_on_the_ideal_chip_and_back(case, map_and_lower):
    mapped = map_and_lower(case)
    assert list(analog_nodes(mapped))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (0.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product([0, 1], [0, 1])))
@pytest.mark.parametrize("c", [None, (), (5,), (3, 1), (3, 5)])
def test_gemm(build, weight, map_and_lower, left, alpha, beta, trans_a, trans_b, c):
    a, b = ((4, 3) if trans_a else (3, 4)), ((5, 4) if trans_b else (4, 5))
    constant, activation = (a, b) if left else (b, a)
    inputs = (["w", "x"] if left else ["x", "w"]) + ([] if c is None else ["c"])
    node = helper.make_node(
        "Gemm", inputs, ["y"], "g", alpha=alpha, beta=beta, transA=trans_a, transB=trans_b
    )
    weights = {"w": weight(*constant)} | ({} if c is None else {"c": weight(*c)})
    map_and_lower(build([node], weights, inputs={"x": list(activation)}))


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25])
def test_opsets(named_case, map_and_lower, opset):
    for name in ("conv", "tied", "matmul-left"):
        mapped = map_and_lower(named_case(name, opset=opset, ir_version=3 if opset < 9 else 8))
        assert mapped.opset == opset
        assert bool(mapped.functions) == (opset >= 18)


def test_initializers_that_are_inputs(named_case, map_and_lower):
    for ir_version in (3, 8):
        model = named_case("conv", opset=8, ir_version=ir_version)
        for name, shape in (("w", [4, 3, 3, 3]), ("b", [4])):
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        mapped = map_and_lower(model)
        assert mapped.overridable == ["w", "b", *(["chip"] if ir_version == 8 else [])]
        assert [value.name for value in mapped.to_proto().graph.input] == ["x", "w", "b", "chip"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float16, 2e-3)])
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_other_float_types(build, weight, map_and_lower, op, dtype, tolerance):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape, x = ((4, 3, 2, 2), ["n", 3, 5, 5]) if op == "Conv" else ((4, 4), ["n", 4])
    inputs = ["x", "w"] + (["b"] if op != "MatMul" else [])
    options = {"alpha": 0.5, "beta": 2.0, "transB": 1} if op == "Gemm" else {}
    nodes = [helper.make_node(op, inputs, ["h"], "n", **options), helper.make_node("Relu", ["h"], ["y"])]
    weights = {"w": weight(*shape, dtype=dtype)} | ({"b": weight(4, dtype=dtype)} if "b" in inputs else {})
    model = build(nodes, weights, inputs={"x": x})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    mapped = map_and_lower(model, tolerance=tolerance)
    stored = {tensor.name: tensor.data_type for tensor in mapped.to_proto().graph.initializer}
    assert stored["w"] == kind


def test_bfloat16(build, weight):
    stored = weight(4, 3, dtype=ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("Cast", ["x"], ["xb"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["xb", "w"], ["yb"]),
        helper.make_node("Cast", ["yb"], ["y"], to=TensorProto.FLOAT),
    ]
    document = Document.from_proto(build(nodes, {"w": stored}))
    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    x = weight(2, 4, dtype=ml_dtypes.bfloat16).astype(np.float32)
    expected = (x @ stored.astype(np.float32)).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_allclose(run(document.to_proto(), x), expected, rtol=2**-7)


def test_shared_weight_of_another_type_is_cast_once(build, weight, map_and_lower):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    model = build(nodes, {"w": weight(4, 4, dtype=np.float64)})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    mapped = map_and_lower(model, tolerance=1e-6)
    assert sum(node.op == "Cast" and node.inputs[0].name == "w" for node in mapped.graph.nodes) == 1


def test_a_tied_weight_is_one_set_of_devices(named_case, weight):
    document = Document.from_proto(named_case("tied"))
    Pipeline.parse("map-crossbar{sigma=0.4,seed=9}").run(document)
    stored = weight(4, 3)
    x = weight(2, 4)
    for chip in (0, 5):
        w = program_weight(stored, LogNormal(sigma=0.4), seed=9, stream=0, chip=chip)
        expected = np.maximum(x @ w, 0) @ w.T + weight(4)
        np.testing.assert_allclose(run(document.to_proto(), x, chip=chip), expected, rtol=1e-4, atol=1e-6)


def test_columns_of_a_weight_used_both_ways_are_refused(named_case):
    step = Pipeline.parse("map-crossbar{device=gaussian,scale-floor=0.5}")
    with pytest.raises(PassError, match="uses a weight across that another node uses along"):
        step.run(Document.from_proto(named_case("tied")))


def test_nodes_programmed_elsewhere_have_no_columns_to_agree_on(build, weight):
    """They have no stream, so that they are not the uses of one weight."""
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "b"], ["i"]),
        helper.make_node("MatMul", ["i", "c"], ["y"]),
    ]
    document = Document.from_proto(build(nodes, {"a": weight(4, 4), "b": weight(4, 4), "c": weight(4, 2)}))
    Pipeline.parse("map-crossbar{portable=never}").run(document)
    first, second, last = analog_nodes(document)
    for node in (first, second):
        del node.attrs["stream"]
        node.attrs["device"] = "programmed"
    Pipeline.parse("map-crossbar{device=gaussian,scale-floor=0.5,portable=never}").run(document)
    assert [node.attrs["device"] for node in (first, second, last)] == [
        "programmed",
        "programmed",
        "gaussian",
    ]


@pytest.mark.parametrize("step", ["map-crossbar", "replicate-weights"])
@pytest.mark.parametrize("option", ["tile-rows", "tile-cols"])
def test_tiles_that_no_attribute_holds_are_refused(step, option):
    with pytest.raises(UsageError, match=f"option '{option}'"):
        Pipeline.parse(f"{step}{{{option}={2**63}}}")


def test_columns_with_a_full_scale_each(build, weight):
    """A Gemm that stores its weight transposed has its columns along the first axis."""
    model = build([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": weight(3, 4)})
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar{device=gaussian,sigma=0.2,scale-floor=0,stuck-high=0.1}").run(document)
    device = Gaussian(sigma=0.2, scale_floor=0.0, stuck_high=0.1)
    w = program_weight(weight(3, 4), device, seed=0, stream=0, chip=6, column_axis=0)
    x = weight(2, 4)
    np.testing.assert_allclose(run(document.to_proto(), x, chip=6), x @ w.T, rtol=1e-5, atol=1e-6)


def test_copies_stay_with_the_weight(build, weight):
    """A new device model leaves them, and nodes beside get one copy, for all share a function body."""
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    document = Document.from_proto(build(nodes, {"a": weight(4, 4), "b": weight(4, 2)}))
    Pipeline.parse("map-crossbar").run(document)
    first, second = document.graph.nodes
    first.attrs["copies"] = 3
    Pipeline.parse("map-crossbar{device=proportional}").run(document)
    assert (first.attrs["copies"], second.attrs["copies"]) == (3, 1)
    chip = {"device": Proportional(), "seed": 0, "chip": 2}
    a = program_weight(weight(4, 4), **chip, stream=0, copies=3)
    b = program_weight(weight(4, 2), **chip, stream=1)
    x = weight(2, 4)
    np.testing.assert_allclose(run(document.to_proto(), x, chip=2), x @ a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["conv-transposed-weight", "matmul-behind-everything"])
def test_devices_follow_the_stored_layout(named_case, weight, name):
    model = named_case(name)
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar{seed=3}").run(document)
    plain = Document.from_proto(model)
    device = LogNormal(sigma=0.5)
    if name == "conv-transposed-weight":
        root = plain.graph.nodes[0].inputs[0]
        root.values = program_weight(root.values, device, seed=3, stream=0, chip=1)
    else:
        stored = weight(2, 6).astype(np.float16).astype(np.float32)
        programmed = program_weight(stored, device, seed=3, stream=0, chip=1).reshape(3, 4)
        plain.graph.nodes[-1].inputs[1] = gs.Constant("programmed", np.ascontiguousarray(programmed.T))
    x = weight(*(2, 3, 6, 6) if name.startswith("conv") else (2, 4))
    actual, expected = run(document.to_proto(), x, chip=1), run(plain.to_proto(), x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_bodies_and_library_agree(case, monkeypatch):
    document = Document.from_proto(case)
    Pipeline.parse("map-crossbar").run(document)
    mapped = document.to_proto()
    shape = [d if isinstance(d, int) else 2 for d in document.graph.inputs[0].shape]
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    native = [run(mapped, x, chip=chip) for chip in (-1, 0, 77)]
    monkeypatch.setenv("CNPASS_NO_NATIVE", "1")
    bodies = [run(mapped, x, chip=chip) for chip in (-1, 0, 77)]
    for a, b in zip(native, bodies, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())
    assert not np.allclose(native[0], native[1])


def test_nodes_say_where_they_come_from(named_case):
    document = Document.from_proto(named_case("tied"))
    Pipeline.parse("map-crossbar").run(document)
    up = [node for node in document.graph.nodes if node.name.startswith("up")]
    assert [node_metadata(node)["cnpass.role"] for node in up] == ["analog", "digital"]
    for node in up:
        metadata = node_metadata(node)
        assert (metadata["cnpass.pass"], metadata["cnpass.name"]) == ("map-crossbar", "up")
        assert metadata["cnpass.op_type"] == "Gemm"
    assert document.metadata == {"cnpass.version": "1", "cnpass.chip_input": "chip"}


def test_metadata_of_the_source_node_stays_visible(build, weight):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="origin", value="layer 1")
    document = Document.from_proto(build([node], {"w": weight(4, 3)}))
    Pipeline.parse("map-crossbar").run(document)
    assert node_metadata(document.graph.nodes[0])["origin"] == "layer 1"


def test_mapping_again_sets_device_and_seed_only(named_case):
    document = Document.from_proto(named_case("tied"))
    first = Pipeline.parse("map-crossbar{sigma=0.2}")
    assert first.run(document, [Verifying()]).modified
    assert not first.run(document, [Verifying()]).modified
    streams = [node.attrs["stream"] for node in analog_nodes(document)]
    other = Pipeline.parse("map-crossbar{sigma=0.7,seed=5}")
    assert other.run(document, [Verifying()]).modified
    direct = Document.from_proto(named_case("tied"))
    other.run(direct)
    assert document.to_proto() == direct.to_proto()
    assert [node.attrs["stream"] for node in analog_nodes(document)] == streams


def test_mapping_again_takes_what_is_left(build, weight):
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    document = Document.from_proto(build(nodes, {"a": weight(4, 4), "b": weight(4, 4)}))
    node_metadata(document.graph.nodes[0])["cnpass.role"] = "compensation"
    Pipeline.parse("map-crossbar").run(document)
    del node_metadata(document.graph.nodes[0])["cnpass.role"]
    document = document.copy()
    Pipeline.parse("map-crossbar").run(document, [Verifying()])
    streams = {node.inputs[1].name: node.attrs["stream"] for node in analog_nodes(document)}
    assert streams == {"b": 0, "a": 1}


def test_mapped_convolutions_that_leave_their_kernel_to_the_weight(build, weight):
    """Their permutation is spelled out once another node has one; its rank is then the weight's."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "first"), helper.make_node("Relu", ["h"], ["y"])]
    x, inputs = weight(1, 2, 6, 6), {"x": [1, 2, 6, 6]}
    stored = {"w": weight(3, 2, 3, 3), "v": weight(3, 3, 2, 2)}
    document = Document.from_proto(build(nodes, {"w": stored["w"]}, inputs=inputs))
    MapCrossbar()(document)
    mapped = document.to_proto()
    [first] = [node for node in mapped.graph.node if node.op_type == "AnalogConv"]
    kept = [a for a in first.attribute if a.name not in {"kernel_shape", "weight_perm"}]
    first.ClearField("attribute")
    first.attribute.extend(kept)
    mapped.ClearField("functions")
    mapped.graph.initializer.append(numpy_helper.from_array(stored["v"], "v"))
    mapped.graph.node[-1].output[0] = "r"
    mapped.graph.node.extend(
        [
            helper.make_node("Transpose", ["v"], ["t"], perm=[1, 0, 2, 3]),
            helper.make_node("Conv", ["r", "t"], ["y"], "second"),
        ]
    )
    document = Document.from_proto(mapped)
    MapCrossbar()(document)
    assert [node.attrs["weight_perm"] for node in analog_nodes(document)] == [[0, 1, 2, 3], [1, 0, 2, 3]]
    nodes[1] = helper.make_node("Relu", ["h"], ["r"])
    plain = build([*nodes, *mapped.graph.node[-2:]], stored, inputs=inputs)
    expected = Session(plain).run({"x": x})[0]
    np.testing.assert_allclose(Session(document.to_proto()).run({"x": x}, chip=-1)[0], expected, rtol=1e-5)


def test_seed_of_64_bits(named_case):
    for seed, stored in ((2**64 - 1, -1), (-(2**63), -(2**63)), (2**63, -(2**63))):
        document = Document.from_proto(named_case("matmul"))
        MapCrossbar(seed=seed)(document)
        assert document.graph.nodes[0].attrs["seed"] == stored


def test_no_candidate(build):
    document = Document.from_proto(build([helper.make_node("Relu", ["x"], ["y"])]))
    with pytest.raises(
        PassPreconditionError, match="no node can run on a crossbar: the model has no Conv"
    ) as e:
        Pipeline.parse("map-crossbar").run(document)
    assert e.value.exit_code == 3


def test_portable_never(named_case):
    document = Document.from_proto(named_case("conv"))
    Pipeline.parse("map-crossbar").run(document)
    assert document.functions
    result = Pipeline.parse("map-crossbar{portable=never}").run(document, [Verifying()])
    assert result.modified
    assert not document.functions


@pytest.mark.parametrize("opset", [7, 11, 13, 17])
def test_portable_always_converts(named_case, opset, monkeypatch, transform):
    model = named_case("tied", opset=opset, ir_version=7)
    document = transform(model, "map-crossbar{portable=always}")
    assert (document.opset, len(document.functions)) == (18, 1)
    monkeypatch.setenv("CNPASS_NO_NATIVE", "1")
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(document.to_proto(), x), run(model, x), rtol=1e-5)


@pytest.mark.parametrize("opset", [13, 18])
def test_conversion_keeps_what_nodes_say_of_themselves(named_case, build, weight, opset):
    document = Document.from_proto(named_case("conv", opset=opset))
    steps = "map-crossbar,replicate-weights,lower-analog,insert-compensation{node=c},"
    Pipeline.parse(steps + "map-crossbar{portable=always}").run(document)
    (node,) = analog_nodes(document)
    assert node.attrs["copies"] > 1
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["r"], name)],
            name,
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    for branch in branches.values():
        branch.node[0].metadata_props.add(key="note", value=branch.name)
    model = build(
        [helper.make_node("If", ["flag"], ["y"], "if", **branches)],
        {"w": weight(4, 4), "flag": np.array(True)},
        opset=opset,
    )
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar{portable=always}").run(document)
    kept = [node_metadata(node).get("note") for node in analog_nodes(document)]
    assert sorted(kept) == ["else_branch", "then_branch"]


def test_portable_always_says_why_it_cannot(build, weight):
    nodes = [
        helper.make_node("Odd", ["x"], ["h"], domain="third.party"),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    model = build(nodes, {"w": weight(4, 4)}, opset=13)
    model.opset_import.append(helper.make_opsetid("third.party", 1))
    with pytest.raises(PassError, match=r"conversion to opset 18 cannot be checked: .*third.party"):
        Pipeline.parse("map-crossbar{portable=always}").run(Document.from_proto(model))


def test_a_conversion_that_changes_results_is_refused(named_case, monkeypatch):
    model = named_case("conv", opset=13)
    wrong = named_case("conv")
    wrong.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    monkeypatch.setattr("onnx.version_converter.convert_version", lambda *_: wrong)
    with pytest.raises(PassError, match="changes output 'y'"):
        Pipeline.parse("map-crossbar{portable=always}").run(Document.from_proto(model))


def test_options_as_text():
    step = Pipeline.parse("map-crossbar{sigma=0.25,seed=4,portable=never}").passes[0]
    assert step == MapCrossbar(device=LogNormal(sigma=0.25), seed=4, portable="never")
    assert str(step) == "map-crossbar{sigma=0.25,seed=4,portable=never}"
    assert str(Pipeline.parse("map-crossbar{device=lognormal,sigma=0.5}")) == "map-crossbar"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("map-crossbar{sigma=-1}", "parameter 'sigma'"),
        ("map-crossbar{device=magic}", "device 'magic' is unknown"),
        ("map-crossbar{mu=1}", "has no option 'mu'"),
        ("map-crossbar{seed=99999999999999999999999}", "option 'seed'"),
        ("map-crossbar{portable=maybe}", "option 'portable'"),
    ],
)
def test_bad_options(text, message):
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(text)


def test_external_weights_stay_external(build, weight, tmp_path):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 4)})
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    document = Document.load(tmp_path / "m.onnx")
    Pipeline.parse("map-crossbar").run(document)
    document.save(tmp_path / "out.onnx")
    initializers = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert {t.name: t.data_location for t in initializers} == {"w": 1, "chip": 0}
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x), x @ weight(4, 4), rtol=1e-5)
