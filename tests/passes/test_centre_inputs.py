"""`centre-inputs`: the same on the ideal chip, whatever is padded; only what varies on the crossbar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import cnpass
from cnpass.compensation.overhead import overhead
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.passes.centre_inputs import centre
from cnpass.passes.pipeline import Pipeline
from cnpass.runtime.session import Session


def _model(
    op: str,
    x: tuple[int | str, ...],
    weight: np.ndarray,
    *,
    bias: int = 0,
    **attributes: Any,
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    held = {"w": weight} | ({"b": np.linspace(-1, 1, bias).astype(weight.dtype)} if bias else {})
    node = helper.make_node(op, ["x", *held], ["y"], "site", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, x)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
    return model


def _normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CONV = {
    "plain": ((7, 3, 9, 8), (5, 3, 3, 3), {}),
    "padded": ((7, 3, 9, 8), (5, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "unevenly": ((7, 3, 9, 11), (4, 3, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 3]}),
    "dilated": ((7, 3, 12, 12), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 4, 2, 1]}),
    "smaller than its kernel": ((7, 3, 2, 2), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "same lower": ((7, 3, 7, 7), (4, 3, 4, 3), {"auto_pad": "SAME_LOWER"}),
    "same upper, strided": ((7, 3, 8, 7), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "valid": ((7, 3, 7, 7), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    "grouped": ((7, 4, 8, 8), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((7, 4, 8, 8), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "1-D": ((7, 3, 20), (4, 3, 5), {"strides": [3], "pads": [2, 2]}),
    "3-D": ((7, 2, 5, 6, 7), (3, 2, 2, 3, 3), {"pads": [1, 1, 1, 0, 1, 1]}),
}


def test_the_order_of_it_and_the_mean_gain_makes_no_difference() -> None:
    bundled = Path(__file__).parents[2] / "models" / "digits-lenet5.onnx"
    data = f"centre-inputs{{data={bundled.with_suffix('.npz')}}}"
    held = []
    for text in (f"{data},correct-mean-gain", f"correct-mean-gain,{data}"):
        document = Document.load(bundled)
        Pipeline.parse(text).run(document)
        held.append({t.name: numpy_helper.to_array(t) for t in document.to_proto().graph.initializer})
    one, other = held
    assert set(one) == set(other)
    assert sum("bias" in name or "offset" in name for name in one) >= 3
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CONV)
def test_a_convolution_computes_what_it_did(case: str, bias: bool) -> None:
    shape, weight, attributes = CONV[case]
    model = _model("Conv", shape, _normal(*weight), bias=weight[0] if bias else 0, **attributes)
    _check(model, 3 + _normal(*shape, seed=1))


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attributes"),
    [
        ("MatMul", (7, 6), (6, 4), {}),
        ("MatMul", (7, 5, 6), (6, 4), {}),
        ("Gemm", (7, 6), (6, 4), {"alpha": 0.5, "beta": 2.0}),
        ("Gemm", (7, 6), (4, 6), {"transB": 1}),
    ],
)
def test_a_product_computes_what_it_did(op: str, shape: Any, weight: Any, attributes: Any) -> None:
    _check(
        _model(op, shape, _normal(*weight), bias=4 if op == "Gemm" else 0, **attributes), 3 + _normal(*shape)
    )


def _check(model: onnx.ModelProto, x: np.ndarray) -> None:
    document = Document.from_proto(model)
    before = Session(model).run([x])[0]
    assert centre(document, {"x": x}) == (1, ())
    centred = document.to_proto()
    onnx.checker.check_model(centred, full_check=True)
    after = Session(centred).run([x])[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
    (site,) = find_sites(document, plan(document))[0].values()
    assert site.label == "site"
    added = [node for node in cnpass.inspect(document).nodes if node.name != "site"]
    assert {(node.reason, node.compensates) for node in added} == {("added by centre-inputs", None)}
    document.graph.outputs.append(site.x)
    entering = Session(document.to_proto()).run([x])[1]
    axes = tuple(axis for axis in range(entering.ndim) if axis != site.axis)
    np.testing.assert_allclose(entering.mean(axes), 0, atol=2e-6)
    assert overhead(Document.from_proto(centred)).macs == 0
    assert centre(Document.from_proto(centred), {"x": x}) == (0, ()), "what is centred has no mean"


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_any_convolution_computes_what_it_did(size, kernel, pads, strides, dilations, groups, seed) -> None:
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    padded = [s + pads[i] + pads[i + 2] for i, s in enumerate(size)]
    if any(p < r for p, r in zip(padded, reach, strict=True)):
        return
    model = _model(
        "Conv",
        (3, 2 * groups, *size),
        _normal(2 * groups, 2, *kernel, seed=seed),
        pads=pads,
        strides=strides,
        dilations=dilations,
        group=groups,
    )
    x = 2 + _normal(3, 2 * groups, *size, seed=seed + 1)
    document = Document.from_proto(model)
    centre(document, {"x": x})
    before, after = Session(model).run([x])[0], Session(document.to_proto()).run([x])[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * (1 + np.abs(before).max()))


def test_what_has_no_mean_is_left_alone() -> None:
    x = _normal(50, 6)
    document = Document.from_proto(_model("MatMul", ("n", 6), _normal(6, 4)))
    before = document.to_proto().SerializeToString()
    assert centre(document, {"x": np.concatenate([x, -x])}) == (0, ())
    assert document.to_proto().SerializeToString() == before


def test_padding_of_an_unknown_size_stays_with_the_reason() -> None:
    weight = _normal(4, 3, 3, 3)
    unknown = Document.from_proto(_model("Conv", ("n", 3, "h", "w"), weight, pads=[1, 1, 1, 1]))
    done, (note,) = centre(unknown, {"x": 1 + _normal(4, 3, 6, 6)})
    assert done == 0
    assert "site" in note
    assert "size is not known" in note
    free = Document.from_proto(_model("Conv", ("n", 3, "h", "w"), weight))
    assert centre(free, {"x": 1 + _normal(4, 3, 6, 6)})[0] == 1


def test_chips_err_by_what_varies_only() -> None:
    """A constant input makes no error at all; without the pass it does."""
    x = np.full((6, 5), 2.0, np.float32)
    document = Document.from_proto(_model("MatMul", ("n", 5), _normal(5, 4)))
    ideal = Session(document.to_proto()).run([x])[0]
    errors = []
    for centred in (False, True):
        twin = document.copy()
        if centred:
            centre(twin, {"x": x})
        Pipeline.parse("map-crossbar{sigma=0.5}").run(twin)
        found = Session(twin.to_proto()).run([x], chip=7)[0]
        errors.append(float(np.abs(found - ideal).max()))
    assert errors[0] > 0.1
    assert errors[1] < 1e-5


def test_the_pass_reads_data_and_says_what_it_did(tmp_path) -> None:
    model, x = _model("Gemm", ("n", 6), _normal(6, 4), bias=4), 3 + _normal(90, 6)
    y = Session(model).run([x])[0].argmax(1)
    np.savez(tmp_path / "m.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    document = Document.load(tmp_path / "m.onnx")
    result = Pipeline.parse("centre-inputs{samples=40}").run(document)
    assert result.modified
    assert any("1 inputs centred by 40 samples" in note for note in result.notes)
    before, after = (
        cnpass.evaluate(one, data=tmp_path / "m.npz", sigma=0.5, chips=30) for one in (model, document)
    )
    assert after.clean == before.clean == 1
    assert after.points[0].mean > before.points[0].mean
