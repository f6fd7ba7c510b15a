"""Function bodies: one file gives the same with and without the library, and in onnx's own evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx.reference import ReferenceEvaluator

from cnpass.errors import ModelError
from cnpass.runtime import LogNormal, Session, analog_conv, analog_matmul, has_library, reference_ops
from cnpass.runtime.bodies import BITWISE_OPSET, function_bodies
from cnpass.runtime.library import WITHOUT_LIBRARY
from cnpass.runtime.ops import MAX_CHIP, explicit_conv_attributes

CHIPS = [-1, 0, 5, MAX_CHIP]
SEEDS = [0, -1, 2**40 + 17, -(2**63)]


def with_bodies(model):
    model.functions.extend(function_bodies(model.graph.node, model.opset_import[0].version))
    onnx.checker.check_model(model)
    return model


def close(actual, expected, tolerance=1e-5):
    """Largest difference relative to the largest output."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture
def bodies_only(monkeypatch):
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")


@pytest.fixture
def mixed(rng):
    """Input and layers: convolutions of several sizes without and with bias."""
    layers = [
        (rng.standard_normal(shape).astype(np.float32), bias, explicit_conv_attributes(attributes, shape[2:]))
        for shape, bias, attributes in (
            ((6, 3, 3, 3), None, {"pads": [1, 1, 1, 1]}),
            ((8, 3, 1, 1), rng.standard_normal(8).astype(np.float32), {"group": 2, "strides": [2, 2]}),
        )
    ]
    return rng.standard_normal((2, 3, 9, 9)).astype(np.float32), layers


@pytest.mark.usefixtures("bodies_only")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (8, 8), (65, 3), (130, 257)])
def test_matmul_body(analog_model, rng, shape, seed):
    x, w = (
        rng.standard_normal((4, shape[0])).astype(np.float32),
        rng.standard_normal(shape).astype(np.float32),
    )
    session = Session(with_bodies(analog_model((w, None, {}), seed=seed)))
    for chip in CHIPS:
        expected = analog_matmul(x, w, device=LogNormal(sigma=0.3), seed=seed, stream=0, chip=chip)
        close(session.run(x, chip=chip)[0], expected)


@pytest.mark.usefixtures("bodies_only")
@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_conv_body(analog_model, conv_case, bias, explicit):
    """With every attribute written out, and with the source's own, some of them absent."""
    x, w, b, attributes = conv_case
    b = b if bias else None
    written = explicit_conv_attributes(attributes, w.shape[2:]) if explicit else attributes
    session = Session(with_bodies(analog_model((w, b, written))))
    chip = {"device": LogNormal(sigma=0.3), "seed": 2**40 + 17, "stream": 0}
    for number in (-1, 3):
        close(session.run(x, chip=number)[0], analog_conv(x, w, b, **chip, chip=number, **attributes))


@pytest.mark.usefixtures("bodies_only")
def test_programmed_body_is_the_plain_op(analog_model, plain_model, conv_case):
    x, w, b, attributes = conv_case
    session = Session(with_bodies(analog_model((w, b, attributes), device=None)))
    expected = Session(plain_model("Conv", w, b, **attributes)).run(x)[0]
    for chip in (-1, 7):
        np.testing.assert_array_equal(session.run(x, chip=chip)[0], expected)


@pytest.mark.usefixtures("bodies_only")
def test_perm_is_written_where_it_is_used(analog_model, rng):
    """Stored [out, in] and [in, out] in one file: a Transpose for both, with the identity for one."""
    stored = [rng.standard_normal(shape).astype(np.float32) for shape in ((70, 5), (70, 3))]
    x = rng.standard_normal((2, 5)).astype(np.float32)
    layers = [(w, None, {"weight_perm": perm}) for w, perm in zip(stored, ([1, 0], [0, 1]), strict=True)]
    chip = {"device": LogNormal(sigma=0.3), "seed": 2**40 + 17, "chip": 2}
    expected = analog_matmul(
        analog_matmul(x, stored[0], stream=0, weight_perm=[1, 0], **chip), stored[1], stream=1, **chip
    )
    close(Session(with_bodies(analog_model(*layers))).run(x, chip=2)[0], expected)
    with pytest.raises(ModelError, match="node 'analog1': a function body needs attribute 'weight_perm'"):
        with_bodies(analog_model(layers[0], (stored[1], None, {})))


@pytest.mark.usefixtures("bodies_only")
def test_ideal_chip_is_exact_and_others_differ(analog_model, plain_model, rng):
    x, w = rng.standard_normal((3, 70)).astype(np.float32), rng.standard_normal((70, 9)).astype(np.float32)
    session = Session(with_bodies(analog_model((w, None, {}))))
    np.testing.assert_array_equal(session.run(x)[0], Session(plain_model("MatMul", w)).run(x)[0])
    outputs = [session.run(x, chip=chip)[0] for chip in (0, 1)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


@pytest.mark.parametrize("explicit", [True, False])
def test_same_file_with_and_without_library(analog_model, conv_case, monkeypatch, explicit):
    if not has_library():
        pytest.skip("the native library is not built")
    x, w, b, attributes = conv_case
    written = explicit_conv_attributes(attributes, w.shape[2:]) if explicit else attributes
    model = with_bodies(analog_model((w, b, written)))
    native = Session(model)
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    body = Session(model)
    for chip in CHIPS:
        close(body.run(x, chip=chip)[0], native.run(x, chip=chip)[0])


def test_library_comes_before_bodies(analog_model, conv_case):
    """With the library registered, a file with bodies gives the very bits of the file without."""
    if not has_library():
        pytest.skip("the native library is not built")
    x, w, b, attributes = conv_case
    plain, portable = analog_model((w, b, attributes)), with_bodies(analog_model((w, b, attributes)))
    np.testing.assert_array_equal(Session(portable).run(x, chip=4)[0], Session(plain).run(x, chip=4)[0])


def test_medium_network_with_and_without_library(analog_model, rng, monkeypatch):
    if not has_library():
        pytest.skip("the native library is not built")
    widths = [(784, 300), (300, 100), (100, 10)]
    layers = [((rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32), None, {}) for s in widths]
    x = rng.standard_normal((64, 784)).astype(np.float32)
    model = with_bodies(analog_model(*layers))
    native = Session(model)
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    close(Session(model).run(x, chip=12)[0], native.run(x, chip=12)[0])


@pytest.mark.usefixtures("bodies_only")
def test_reference_evaluator(analog_model, mixed):
    """Through the bodies, and through `reference_ops` without any."""
    x, layers = mixed
    model = analog_model(*layers)
    expected = x
    for stream, (weight, bias, attributes) in enumerate(layers):
        chip = {"device": LogNormal(sigma=0.3), "seed": 2**40 + 17, "stream": stream, "chip": 9}
        expected = analog_conv(expected, weight, bias, **chip, **attributes)
    feeds = {"x": x, "chip": np.array(9)}
    by_ops = ReferenceEvaluator(model, new_ops=reference_ops()).run(None, feeds)[0]
    np.testing.assert_array_equal(by_ops, expected)
    with_bodies(model)
    close(ReferenceEvaluator(model).run(None, feeds)[0], expected)
    close(Session(model).run(x, chip=9)[0], expected)


def test_reference_evaluator_on_matmul(analog_model, rng):
    x, w = rng.standard_normal((2, 3, 70)).astype(np.float32), rng.standard_normal((9, 70)).astype(np.float32)
    model = analog_model((w, None, {"weight_perm": [1, 0]}), rank=3)
    chip = {"device": LogNormal(sigma=0.3), "seed": 2**40 + 17, "stream": 0, "chip": 4}
    expected = analog_matmul(x, w, weight_perm=[1, 0], **chip)
    feeds = {"x": x, "chip": np.array(4)}
    close(ReferenceEvaluator(with_bodies(model)).run(None, feeds)[0], expected)
    by_ops = ReferenceEvaluator(analog_model((w, None, {"weight_perm": [1, 0]})), new_ops=reference_ops())
    np.testing.assert_array_equal(by_ops.run(None, feeds)[0], expected)


@pytest.mark.usefixtures("bodies_only")
def test_inlined_by_onnx(analog_model, mixed):
    x, layers = mixed
    model = with_bodies(analog_model(*layers))
    inlined = onnx.inliner.inline_local_functions(model)
    assert all(node.domain == "" for node in inlined.graph.node)
    np.testing.assert_array_equal(Session(inlined).run(x, chip=3)[0], Session(model).run(x, chip=3)[0])


@pytest.mark.usefixtures("bodies_only")
@pytest.mark.parametrize("extra", ["", "first"])
def test_first_sample_may_be_given(analog_model, rng, extra):
    """Absent, empty or present, first_sample changes nothing while there is no read noise."""
    x, w = rng.standard_normal((2, 70)).astype(np.float32), rng.standard_normal((70, 3)).astype(np.float32)
    expected = Session(with_bodies(analog_model((w, None, {})))).run(x, chip=1)[0]
    model = analog_model((w, None, {}))
    model.graph.node[0].input.append(extra)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(5), "first"))
    np.testing.assert_array_equal(Session(with_bodies(model)).run(x, chip=1)[0], expected)


@pytest.mark.usefixtures("bodies_only")
def test_failing_op_is_named(analog_model, rng):
    """ONNX Runtime forgets the node's own name when it inlines a function; the op remains."""
    w = rng.standard_normal((70, 3)).astype(np.float32)
    with pytest.raises(ModelError, match="AnalogMatMul"):
        Session(with_bodies(analog_model((w, None, {})))).run(np.ones((2, 5)))


@pytest.mark.usefixtures("bodies_only")
@pytest.mark.parametrize("opset", [BITWISE_OPSET, 20, 21])
def test_opsets_that_can(analog_model, rng, opset):
    x, w = rng.standard_normal((2, 70)).astype(np.float32), rng.standard_normal((70, 3)).astype(np.float32)
    model = analog_model((w, None, {}), opset=opset)
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    expected = analog_matmul(x, w, device=LogNormal(sigma=0.3), seed=2**40 + 17, stream=0, chip=1)
    close(Session(with_bodies(model)).run(x, chip=1)[0], expected)


def test_opset_that_cannot(analog_model):
    with pytest.raises(ModelError, match="function bodies need opset 18, the model has 17"):
        with_bodies(analog_model((np.ones((3, 3), np.float32), None, {}), opset=17))


def test_nothing_analog_needs_no_body(plain_model):
    model = plain_model("MatMul", np.ones((3, 3), np.float32), opset=13)
    assert function_bodies(model.graph.node, 13) == []


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("sigma", "device 'lognormal' needs attribute 'sigma'"),
        ("seed", "'seed'"),
        ("device", "'device' is missing"),
    ],
)
def test_missing_attribute_names_the_node(analog_model, attribute, message):
    model = analog_model((np.ones((3, 3), np.float32), None, {}))
    node = model.graph.node[0]
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)
    with pytest.raises(ModelError, match=f"node 'analog0': .*{message}"):
        with_bodies(model)


def test_one_device_model_per_file(analog_model):
    w = np.ones((3, 3), np.float32)
    model = analog_model((w, None, {}), (w, None, {}))
    for attribute in model.graph.node[1].attribute:
        if attribute.name == "device":
            attribute.s = b"programmed"
    with pytest.raises(ModelError, match="node 'analog1': one file describes one device model"):
        with_bodies(model)
