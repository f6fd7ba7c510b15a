"""AnalogMatMul against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from cnpass.runtime.devices import LogNormal
from cnpass.runtime.reference import analog_matmul

NODE = {"device": "lognormal", "sigma": 0.4, "seed": -3, "stream": 1}
DEVICE = LogNormal(sigma=0.4)


@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((7,), (7, 5)),
        ((1, 7), (7, 5)),
        ((1, 1), (1, 1)),
        ((3, 256), (256, 32)),
        ((13, 257), (257, 33)),
        ((97, 600), (600, 530)),
        ((2, 3, 4, 20), (20, 9)),
        ((200, 16), (16, 1200)),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chip", [-1, 2])
def test_shapes(run_op, x, w, transposed, chip):
    generator = np.random.default_rng(0)
    values = generator.standard_normal(x).astype(np.float32)
    stored = generator.standard_normal(w[::-1] if transposed else w).astype(np.float32)
    perm = {"weight_perm": [1, 0]} if transposed else {}
    y = run_op("AnalogMatMul", {"x": values, "w": stored}, chip=chip, threads=2, **NODE, **perm)
    expected = analog_matmul(values, stored, device=DEVICE, seed=-3, stream=1, chip=chip, **perm)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= 2e-6 * np.sqrt(w[0]) * max(1, np.abs(expected).max() / np.sqrt(w[0]))


@pytest.mark.parametrize("x", [(0, 4), (2, 0, 4)])
def test_empty_batch(run_op, x):
    w = np.ones((4, 3), np.float32)
    assert run_op("AnalogMatMul", {"x": np.ones(x, np.float32), "w": w}, **NODE).shape == (*x[:-1], 3)


def test_first_sample_is_accepted(run_op):
    inputs = {"x": np.ones((2, 4), np.float32), "w": np.ones((4, 3), np.float32)}
    plain = run_op("AnalogMatMul", inputs, **NODE)
    assert np.array_equal(run_op("AnalogMatMul", inputs | {"first_sample": np.array(9)}, **NODE), plain)


def test_tied_weight_is_one_set_of_devices(run_op):
    """Used plain and transposed, a stored weight has the same values on a chip."""
    stored = np.random.default_rng(1).standard_normal((6, 9)).astype(np.float32)
    plain = run_op("AnalogMatMul", {"x": np.eye(6, dtype=np.float32), "w": stored}, chip=3, **NODE)
    transposed = run_op(
        "AnalogMatMul", {"x": np.eye(9, dtype=np.float32), "w": stored}, chip=3, **NODE, weight_perm=[1, 0]
    )
    assert np.array_equal(plain, transposed.T)
