"""Tiles, converters and read noise in function bodies: what the reference and the library give."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cnpass.errors import ModelError
from cnpass.runtime import LogNormal, Session, analog_conv, analog_matmul, has_library, reference_ops
from cnpass.runtime.bodies import function_bodies
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.runtime.library import WITHOUT_LIBRARY
from cnpass.runtime.ops import META_FIRST_SAMPLE_INPUT
from cnpass.runtime.periphery import Periphery

CHIP = {"device": LogNormal(sigma=0.3), "seed": 2**40 + 17}
RANGES = {"input_range": 2.0, "output_range": 4.0}
KINDS = {
    "dac": {"dac_bits": 5},
    "adc": {"adc_bits": 6},
    "tiles": {"adc_bits": 6, "tile_rows": 14, "tile_cols": 2},
    "noise": {"read_noise": 0.02},
    "all": {"dac_bits": 6, "adc_bits": 7, "tile_rows": 13, "read_noise": 0.01},
    "only tiles": {"tile_rows": 13},
}


@pytest.fixture(params=KINDS)
def periphery(request):
    return KINDS[request.param] | RANGES


def with_first_sample(model):
    """Numbers the samples by an input `first`, as map-crossbar does where there is read noise."""
    for node in model.graph.node:
        node.input.append("first")
    model.graph.input.append(helper.make_tensor_value_info("first", TensorProto.INT64, []))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    entry = model.metadata_props.add()
    entry.key, entry.value = META_FIRST_SAMPLE_INPUT, "first"
    return model


def with_bodies(model):
    model.functions.extend(function_bodies(model.graph.node, model.opset_import[0].version))
    onnx.checker.check_model(model)
    return model


def agree(y, expected, attributes):
    """To 1e-5 without ADC; with it one step in a tile or two, at 1 % of the elements at most."""
    assert y.shape == expected.shape
    difference, near = np.abs(y - expected), 1e-5 * np.abs(expected).max()
    if not attributes.get("adc_bits"):
        assert difference.max() <= near
        return
    assert np.mean(difference > near) <= max(0.01, 1.5 / y.size)
    assert difference.max() <= 2 * attributes["output_range"] / (2 ** (attributes["adc_bits"] - 1) - 1) + near


@pytest.mark.parametrize("copies", [SINGLE, Copies(2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_conv(analog_model, conv_case, periphery, monkeypatch, bias, copies):
    x, w, b, attributes = conv_case
    b = b if bias else None
    layer = (w, b, attributes | periphery | copies.attributes())
    model = with_bodies(with_first_sample(analog_model(layer)))
    native = Session(model) if has_library() else None
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    body = Session(model)
    for chip, first in ((-1, 0), (3, 2**20 + 5)):
        y = body.run(x, chip=chip, first_sample=first)[0]
        around = Periphery.from_attributes(periphery)
        how = {"periphery": around, "first_sample": first, "copies": copies, **attributes}
        agree(y, analog_conv(x, w, b, **CHIP, stream=0, chip=chip, **how), periphery)
        if native is not None:
            agree(y, native.run(x, chip=chip, first_sample=first)[0], periphery)


@pytest.mark.parametrize("copies", [SINGLE, Copies(3), Copies(1, 2, 3), Copies(2, 3, 5)])
@pytest.mark.parametrize(("shape", "rows"), [((23,), 1), ((4, 23), 1), ((3, 5, 23), 1), ((12, 2, 23), 4)])
def test_matmul(analog_model, rng, periphery, monkeypatch, shape, rows, copies):
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((7, 23)).astype(np.float32)
    layer = (w, None, {"weight_perm": [1, 0], **copies.attributes(), "sample_rows": rows, **periphery})
    session = Session(with_bodies(with_first_sample(analog_model(layer, rank=len(shape)))))
    around = Periphery.from_attributes(periphery | {"sample_rows": rows})
    for chip in (-1, 3):
        expected = analog_matmul(
            x,
            w,
            **CHIP,
            stream=0,
            chip=chip,
            periphery=around,
            first_sample=9,
            weight_perm=[1, 0],
            copies=copies,
        )
        agree(session.run(x, chip=chip, first_sample=9)[0], expected, periphery)


@pytest.mark.parametrize("shape", [(0, 23), (0, 2, 23)])
def test_empty_batch(analog_model, periphery, monkeypatch, shape):
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    layer = (np.ones((23, 7), np.float32), None, periphery)
    session = Session(with_bodies(with_first_sample(analog_model(layer, rank=len(shape)))))
    assert session.run(np.ones(shape), chip=3)[0].shape == (*shape[:-1], 7)


def test_nodes_with_and_without_extra_copies(analog_model, rng, monkeypatch):
    """One body serves both; 0, 0 is none."""
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    x = rng.standard_normal((4, 9)).astype(np.float32)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((9, 11), (11, 5))]
    given = [{"copies": 2, "extra_copies": [1, 4]}, {"copies": 1, "extra_copies": [0, 0]}]
    layers = [(w, None, a) for w, a in zip(weights, given, strict=True)]
    y = Session(with_bodies(analog_model(*layers))).run(x, chip=2)[0]
    expected = x
    for stream, (w, copies) in enumerate(zip(weights, (Copies(2, 1, 4), SINGLE), strict=True)):
        expected = analog_matmul(expected, w, **CHIP, stream=stream, chip=2, copies=copies)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_extra_copies_alone_are_on_top_of_one(analog_model, rng, monkeypatch):
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    x, w = rng.standard_normal((4, 9)).astype(np.float32), rng.standard_normal((9, 5)).astype(np.float32)
    y = Session(with_bodies(analog_model((w, None, {"extra_copies": [2, 4]})))).run(x, chip=2)[0]
    expected = analog_matmul(x, w, **CHIP, stream=0, chip=2, copies=Copies(1, 2, 4))
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_nodes_with_and_without_converters(analog_model, rng, monkeypatch):
    """One body serves both."""
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    x = rng.standard_normal((4, 9)).astype(np.float32)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((9, 11), (11, 5))]
    attributes = [
        {"dac_bits": bits[0], "adc_bits": bits[1], "tile_rows": rows, "read_noise": 0.0, **RANGES}
        for bits, rows in (((6, 7), 4), ((0, 0), 0))
    ]
    layers = [(w, None, a) for w, a in zip(weights, attributes, strict=True)]
    y = Session(with_bodies(analog_model(*layers))).run(x, chip=2)[0]
    expected = x
    for stream, (w, a) in enumerate(zip(weights, attributes, strict=True)):
        expected = analog_matmul(
            expected, w, **CHIP, stream=stream, chip=2, periphery=Periphery.from_attributes(a)
        )
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["all", "noise"])
def test_reference_evaluator(analog_model, rng, kind):
    x, w = rng.standard_normal((2, 3, 6, 6)).astype(np.float32), rng.standard_normal((4, 3, 3, 3))
    b = rng.standard_normal(4).astype(np.float32)
    attributes = {"group": 1, "kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4}
    attributes |= {"dilations": [1, 1]}
    around = KINDS[kind] | RANGES
    model = with_first_sample(analog_model((w.astype(np.float32), b, attributes | around)))
    feeds = {"x": x, "chip": np.array(9), "first": np.array(4)}
    expected = analog_conv(
        x, w.astype(np.float32), b, **CHIP, stream=0, chip=9,
        periphery=Periphery.from_attributes(around), first_sample=4, **attributes,
    )  # fmt: skip
    by_ops = ReferenceEvaluator(model, new_ops=reference_ops()).run(None, feeds)[0]
    np.testing.assert_array_equal(by_ops, expected)
    agree(ReferenceEvaluator(with_bodies(model)).run(None, feeds)[0], expected, around)


@pytest.mark.parametrize(
    ("attributes", "chip"),
    [({"adc_bits": 8}, -1), ({"dac_bits": 8}, -1), ({"read_noise": 0.1}, 0)],
)
def test_ranges_that_are_not_set_give_nan(analog_model, monkeypatch, attributes, chip):
    """A body cannot raise an error, as the library does."""
    monkeypatch.setenv(WITHOUT_LIBRARY, "1")
    layer = (np.ones((5, 3), np.float32), None, attributes | {"input_range": 0.0, "output_range": 0.0})
    session = Session(with_bodies(with_first_sample(analog_model(layer))))
    assert np.isnan(session.run(np.ones((2, 5)), chip=chip)[0]).all()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"dac_bits": 1, "input_range": 1.0}, "'dac_bits' is 1"),
        ({"read_noise": 0.1, "output_range": 1.0}, "with read noise needs input 'first_sample'"),
    ],
)
def test_nodes_that_can_have_no_body(analog_model, attributes, message):
    with pytest.raises(ModelError, match=f"node 'analog0': .*{message}"):
        with_bodies(analog_model((np.ones((3, 3), np.float32), None, attributes)))
