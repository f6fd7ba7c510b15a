"""The NumPy reference: equal to ORT's Conv and MatMul on the ideal chip, to itself in torch elsewhere."""

import numpy as np
import onnxruntime as ort
import pytest

from cnpass.errors import ModelError
from cnpass.runtime.devices import LogNormal, device_from_attributes
from cnpass.runtime.ops import MAX_CHIP, explicit_conv_attributes
from cnpass.runtime.philox import normals
from cnpass.runtime.reference import analog_conv, analog_matmul, program_weight

IDEAL = {"device": LogNormal(sigma=0.5), "chip": -1}


def run(model, x):
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("bias", [True, False])
def test_ideal_conv_is_conv(conv_case, plain_model, bias):
    x, w, b, attributes = conv_case
    b = b if bias else None
    expected = run(plain_model("Conv", w, b, **attributes), x)
    np.testing.assert_allclose(analog_conv(x, w, b, **IDEAL, **attributes), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7)])
def test_ideal_matmul_is_matmul(plain_model, rng, shape):
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((7, 5)).astype(np.float32)
    np.testing.assert_allclose(
        analog_matmul(x, w, **IDEAL), run(plain_model("MatMul", w), x), rtol=1e-5, atol=1e-6
    )


def test_explicit_attributes_say_the_same(conv_case, plain_model):
    x, w, b, attributes = conv_case
    explicit = explicit_conv_attributes(attributes, w.shape[2:])
    assert ("pads" in explicit) != ("auto_pad" in explicit)
    expected = run(plain_model("Conv", w, b, **attributes), x)
    np.testing.assert_array_equal(run(plain_model("Conv", w, b, **explicit), x), expected)


def test_perm_transposes_the_programmed_weight(rng):
    """A weight stored transposed is the same devices: the draws follow the stored layout."""
    stored = rng.standard_normal((5, 7)).astype(np.float32)
    x = rng.standard_normal((2, 7)).astype(np.float32)
    chip = {"device": LogNormal(sigma=0.5), "seed": 1, "stream": 2, "chip": 3}
    y = analog_matmul(x, stored, weight_perm=[1, 0], **chip)
    np.testing.assert_allclose(y, x @ program_weight(stored, **chip).T, rtol=1e-5, atol=1e-6)


def test_programmed_weight_is_taken_as_it_is(rng):
    x, w = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(analog_matmul(x, w, device=None, chip=5), x @ w, rtol=1e-5, atol=1e-6)


def test_program_weight_follows_the_formula(rng):
    w = rng.standard_normal((6, 5, 4)).astype(np.float32)
    where = {"seed": -3, "stream": 9, "chip": 11, "copy": 2}
    expected = w.astype(np.float64) * np.exp(0.4 * normals(w.shape, **where).astype(np.float64))
    np.testing.assert_allclose(program_weight(w, LogNormal(sigma=0.4), **where), expected, rtol=1e-6)


@pytest.mark.parametrize("chip", [-2, MAX_CHIP + 1])
def test_chip_out_of_range(chip):
    with pytest.raises(ModelError, match=r"chip is .* between -1 and"):
        program_weight(np.ones(3, np.float32), LogNormal(), seed=0, stream=0, chip=chip)


@pytest.mark.parametrize(
    ("x_shape", "attributes", "message"),
    [
        ((1, 3, 5, 5), {"kernel_shape": [2, 2]}, "kernel_shape is"),
        ((1, 4, 5, 5), {}, "does not fit input"),
        ((1, 3, 5), {}, "does not fit input"),
        ((1, 3, 2, 2), {}, "does not fit padded input"),
    ],
)
def test_conv_that_cannot_be(x_shape, attributes, message):
    with pytest.raises(ModelError, match=message):
        analog_conv(np.ones(x_shape, np.float32), np.ones((2, 3, 3, 3), np.float32), **IDEAL, **attributes)


def test_device_from_attributes():
    assert device_from_attributes({"device": "lognormal", "sigma": 0.25, "seed": 1}) == LogNormal(sigma=0.25)
    assert device_from_attributes({"device": "programmed"}) is None
    with pytest.raises(ModelError, match="'device' is missing"):
        device_from_attributes({})
    with pytest.raises(ModelError, match="needs attribute 'sigma'"):
        device_from_attributes({"device": "lognormal"})
    with pytest.raises(ModelError, match="'nonesuch' is unknown"):
        device_from_attributes({"device": b"nonesuch"})
