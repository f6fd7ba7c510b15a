"""Weights over the mean factor: each stored weight once, chips right on average, shared ones left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.document import Document
from cnpass.passes import Pipeline
from cnpass.passes.base import PassPreconditionError
from cnpass.passes.correct_mean_gain import CorrectMeanGain
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.passes.mean_gain import keep_trained, mean_factor, mean_gains
from cnpass.runtime.devices import LogNormal, make_device
from cnpass.runtime.session import Session

FACTOR = math.exp(0.5**2 / 2)


def stored(document: Document) -> dict[str, np.ndarray]:
    """Initializers and values of Constant nodes by name."""
    proto = document.to_proto()
    held = {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant"}
    named = {t.name: t for t in proto.graph.initializer} | held
    return {name: numpy_helper.to_array(tensor) for name, tensor in named.items()}


def correct(model, **device):
    document = Document.from_proto(model)
    before = stored(document)
    result = CorrectMeanGain(device=LogNormal(**device))(document)
    return before, stored(document), result


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("conv", ["w"]),
        ("conv-depthwise", ["w"]),
        ("conv-transposed-weight", ["w"]),
        ("two-convs-one-transposed", ["w", "v"]),
        ("matmul-left", ["w"]),
        ("matmul-behind-everything", ["c"]),
        ("tied", ["w"]),
        ("empty-names", ["w"]),
    ],
)
def test_divides_analog_weights_once_and_nothing_else(named_case, name, keys):
    before, after, result = correct(named_case(name))
    assert result.modified
    assert result.notes == (f"{len(keys)} of {len(keys)} weights divided by the mean factor {FACTOR:.6g}",)
    for key, values in before.items():
        expected = (values.astype(np.float64) / FACTOR).astype(values.dtype) if key in keys else values
        assert np.array_equal(after[key], expected), key
        assert after[key].dtype == values.dtype


def test_chips_are_right_on_average(named_case):
    document = Document.from_proto(named_case("matmul"))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    (clean,) = Session(document.to_proto()).run(x)
    Pipeline.parse("correct-mean-gain,map-crossbar").run(document)
    session = Session(document.to_proto())
    outputs = np.stack([session.run(x, chip=chip)[0] for chip in range(3000)])
    error = outputs.std(axis=0) / math.sqrt(len(outputs))
    assert (np.abs(outputs.mean(axis=0) - clean) < 4.5 * error).all()
    assert (np.abs(outputs.mean(axis=0) - FACTOR * clean) > 4.5 * error).any()


def test_a_second_time_divides_by_what_the_factor_has_changed_by(named_case):
    document = Document.from_proto(named_case("two-convs-one-transposed"))
    plain = stored(document)
    CorrectMeanGain(device=LogNormal(sigma=0.5))(document)
    once = stored(document)
    again = CorrectMeanGain(device=LogNormal(sigma=0.5))(document)
    assert not again.modified
    assert again.notes == ("0 of 2 weights divided by the mean factor 1.13315; 2 have been before",)
    Pipeline.parse("map-crossbar,lower-analog").run(document)
    assert all(np.array_equal(stored(document)[key], once[key]) for key in plain)
    other = CorrectMeanGain(device=LogNormal(sigma=0.3))(document)
    assert other.notes == ("2 of 2 weights divided by the mean factor 1.04603",)
    for key in ("w", "v"):
        assert stored(document)[key] == pytest.approx(plain[key] / math.exp(0.3**2 / 2), rel=1e-6)
    assert CorrectMeanGain(device=LogNormal(sigma=0.0))(document).modified
    assert "cnpass.mean_gain" not in document.metadata
    for key in ("w", "v"):
        assert stored(document)[key] == pytest.approx(plain[key], rel=1e-6)


def test_a_weight_that_had_to_stay_is_divided_when_it_can_be(build, weight):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
        helper.make_node("Relu", ["v"], ["z"]),
    ]
    document = Document.from_proto(build(nodes, {"w": weight(4, 4), "v": weight(4, 4)}, outputs=("y", "z")))
    plain = stored(document)
    assert len(CorrectMeanGain(device=LogNormal(sigma=0.5))(document).notes) == 2
    document.graph.outputs.pop()
    document.graph.nodes.pop().inputs.clear()
    again = CorrectMeanGain(device=LogNormal(sigma=0.5))(document)
    assert again.notes == ("1 of 2 weights divided by the mean factor 1.13315; 1 have been before",)
    for key in ("w", "v"):
        assert stored(document)[key] == pytest.approx(plain[key] / FACTOR)


@pytest.mark.parametrize(
    "known", ["", "nan", "[1.1]", '{"w": NaN}', '{"w": -1.0}', '{"w": Infinity}', '{"w": true}', '{"w": "1"}']
)
def test_a_factor_that_is_none_is_not_heeded(named_case, known):
    document = Document.from_proto(named_case("conv"))
    document.metadata["cnpass.mean_gain"] = known
    before = stored(document)["w"]
    assert CorrectMeanGain(device=LogNormal(sigma=0.5))(document).modified
    assert stored(document)["w"] == pytest.approx(before / FACTOR)


@pytest.mark.parametrize("name", ["gaussian", "pcm"])
def test_weights_trained_on_a_device_without_a_mean_factor_of_its_own_forget_the_first_ones(named_case, name):
    document = Document.from_proto(named_case("conv"))
    keep_trained(document, LogNormal(sigma=0.5), {"w"})
    assert mean_gains(document) == {"w": pytest.approx(FACTOR)}
    device = make_device(name)
    assert mean_factor(device) == (None if name == "pcm" else 1)
    keep_trained(document, device, {"w"})
    assert mean_gains(document) == {}


def test_a_mapped_model_is_corrected_as_well(named_case):
    plain, mapped = (Document.from_proto(named_case("tied")) for _ in range(2))
    MapCrossbar()(mapped)
    for document in (plain, mapped):
        CorrectMeanGain()(document)
    MapCrossbar()(plain)
    protos = [document.to_proto() for document in (plain, mapped)]
    for proto in protos:
        proto.metadata_props.sort(key=lambda entry: entry.key)
    one, two = (proto.SerializeToString(deterministic=True) for proto in protos)
    assert one == two


def test_a_device_of_the_right_mean_changes_nothing(named_case):
    model = named_case("conv")
    document = Document.from_proto(model)
    result = CorrectMeanGain(device=LogNormal(sigma=0))(document)
    assert not result.modified
    assert document.to_proto().SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "w"], ["y"])],
            "something digital reads it too",
        ),
        ([helper.make_node("Gemm", ["x", "w", "w"], ["y"])], "something digital reads it too"),
        (
            [
                helper.make_node("Transpose", ["w"], ["t"]),
                helper.make_node("MatMul", ["x", "t"], ["h"]),
                helper.make_node("Mul", ["h", "t"], ["y"]),
            ],
            "something digital reads it too",
        ),
    ],
    ids=["operand", "bias", "path"],
)
def test_shared_weights_stay_and_the_note_says_why(build, weight, nodes, reason):
    model = build(nodes, {"w": weight(4, 4), "s": np.float32(0.1)}, inputs={"x": [4, 4]})
    before, after, result = correct(model)
    assert not result.modified
    assert result.notes[1:] == (f"weight 'w' stays: {reason}",)
    assert np.array_equal(after["w"], before["w"])


def test_a_weight_that_a_body_multiplies_by_is_corrected(build, weight):
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }
    node = helper.make_node("If", ["flag"], ["y"], "if", **branches)
    before, after, result = correct(build([node], {"w": weight(4, 3), "flag": np.array(True)}), sigma=0.5)
    assert result.modified
    np.testing.assert_allclose(FACTOR * after["w"], before["w"], rtol=1e-6)
    inner = branches["then_branch"]
    inner.output[0].name = "w"
    node = helper.make_node("If", ["flag"], ["y"], "if", **branches)
    _, _, result = correct(build([node], {"w": weight(4, 3), "flag": np.array(True)}), sigma=0.5)
    assert not result.modified


def test_a_weight_that_is_an_output_stays(build, weight):
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 3)}, outputs=("y", "w"))
    before, after, result = correct(model)
    assert not result.modified
    assert np.array_equal(after["w"], before["w"])


def test_dequantised_weights_stay(named_case, build, weight):
    quantised = [
        helper.make_node("QuantizeLinear", ["w", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    _, _, result = correct(build(quantised, {"w": weight(4, 4), "s": np.float32(0.1)}))
    assert not result.modified
    before, after, result = correct(named_case("matmul-dequantized"))
    assert not result.modified
    assert "made of integers" in result.notes[1]
    assert all(np.array_equal(after[key], before[key]) for key in before)


def test_a_device_without_a_constant_factor_is_refused(named_case):
    @dataclass(frozen=True)
    class Squashing(LogNormal):
        def mean(self, weight):
            return np.tanh(np.asarray(weight, np.float64))

    document = Document.from_proto(named_case("matmul"))
    with pytest.raises(PassPreconditionError, match="no constant mean factor on weight 'w'"):
        CorrectMeanGain(device=Squashing())(document)


def test_reads_and_prints_as_text():
    text = "correct-mean-gain{sigma=0.3}"
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    assert pipeline.passes[0] == CorrectMeanGain(device=LogNormal(sigma=0.3))


def test_a_device_whose_mean_is_zero_is_refused(named_case):
    step = CorrectMeanGain(device=LogNormal(sigma=0.5, stuck_low=1.0))
    with pytest.raises(PassPreconditionError, match="mean factor is 0"):
        step(Document.from_proto(named_case("conv")))
