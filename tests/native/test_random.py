"""Random numbers and programmed weights: the same bits as the Python reference, on every instruction set."""

from __future__ import annotations

import hashlib
import platform

import numpy as np
import pytest

from cnpass.runtime.devices import LogNormal, device_names, make_device
from cnpass.runtime.philox import normals
from cnpass.runtime.reference import program_weight


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize(
    "draws",
    [
        {"seed": 0, "chip": 0, "stream": 0},
        {"seed": 1, "chip": 2, "stream": 3},
        {"seed": 2**64 - 1, "chip": 2**32 - 2, "stream": 2**24 - 1, "purpose": 255, "copy": 2**16 - 1},
        {"seed": 2**40 + 17, "chip": 7, "stream": 3, "purpose": 8, "copy": 2},
    ],
)
def test_normals_are_those_of_the_reference(library, draws):
    expected = normals(100_003, **draws)
    assert same_bits(library.normals(100_003, **draws), expected)


def test_normals_depend_on_the_element_only(library):
    whole = library.normals(1000, seed=5, chip=1, stream=2)
    generator = np.random.default_rng(0)
    for _ in range(50):
        first, end = np.sort(generator.integers(0, 1001, 2))
        assert same_bits(
            library.normals(int(end - first), seed=5, chip=1, stream=2, first=int(first)), whole[first:end]
        )


def test_normals_beyond_32_bit_blocks(library):
    """Block 2^32 starts at element 2^34; its high word goes into the second counter word, beside the copy."""
    low = library.normals(64, seed=1)
    high = library.normals(64, seed=1, first=2**34)
    assert not np.array_equal(low, high)
    assert same_bits(library.normals(128, seed=1, first=2**34 - 64)[64:], high)


def test_normals_are_standard(library):
    values = library.normals(4_000_000, seed=11).astype(np.float64)
    moments = [np.mean(values**power) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.02)
    assert np.abs(values).max() < 5.8


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(1,), (63,), (64,), (65,), (6, 3, 5, 5), (400, 120)])
def test_lognormal_is_that_of_the_reference(library, sigma, shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = program_weight(weight, LogNormal(sigma=sigma), seed=2**63 + 5, stream=4, chip=9)
    assert same_bits(library.lognormal(weight, sigma, seed=2**63 + 5, stream=4, chip=9), expected)


def test_lognormal_passes_special_weights_on(library):
    weight = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38] * 30, np.float32)
    programmed = library.lognormal(weight, 0.5, seed=1)
    with np.errstate(over="ignore"):
        expected = program_weight(weight, LogNormal(sigma=0.5), seed=1, stream=0, chip=0)
    assert np.array_equal(np.isnan(programmed), np.isnan(weight))
    numbers = ~np.isnan(weight)
    assert same_bits(programmed[numbers], expected[numbers])


PROGRAM = """
import ctypes, hashlib, os
import numpy as np
library = ctypes.CDLL(os.environ["LIBRARY"])
library.cnpass_isa.restype = ctypes.c_char_p
weight = np.random.default_rng(3).standard_normal(70_001).astype(np.float32)
out = np.empty_like(weight)
pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
library.cnpass_program_lognormal(
    ctypes.c_uint64(2**40), ctypes.c_uint32(5), ctypes.c_uint32(6), ctypes.c_uint64(0),
    ctypes.c_size_t(weight.size), ctypes.c_float(0.5), pointer(weight), pointer(out))
print(library.cnpass_isa().decode(), hashlib.sha256(out.tobytes()).hexdigest())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one instruction set")
@pytest.mark.parametrize("isa", ["v1", "v3", "v4"])
def test_every_instruction_set_programs_the_same_weights(with_isa, isa):
    weight = np.random.default_rng(3).standard_normal(70_001).astype(np.float32)
    expected = program_weight(weight, LogNormal(sigma=0.5), seed=2**40, stream=6, chip=5)
    done = with_isa(isa, PROGRAM)
    assert done.returncode == 0, done.stderr
    used, digest = done.stdout.split()
    assert used <= isa
    assert digest == hashlib.sha256(expected.tobytes()).hexdigest()


READ_OUT = """
import hashlib, os
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.register_custom_ops_library(os.environ["LIBRARY"])
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
x = np.eye(300, dtype=np.float32)
print(hashlib.sha256(session.run(None, {"x": x, "chip": np.array(5)})[0].tobytes()).hexdigest())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one instruction set")
@pytest.mark.parametrize("isa", ["v1", "v3", "v4"])
@pytest.mark.parametrize("name", device_names())
def test_every_device_on_every_instruction_set(make_model, with_isa, tmp_path, isa, name):
    """With faults and copies, several pieces of 1024 elements; the unit matrix reads the weight out."""
    device = make_device(name, stuck_low=0.1, stuck_high=0.05)
    weight = np.random.default_rng(3).standard_normal((300, 29)).astype(np.float32)
    attributes = {"device": name, **device.attributes(), "seed": 2**40, "stream": 6, "copies": 3}
    inputs = {"x": np.eye(300, dtype=np.float32), "w": weight, "chip": np.array(0)}
    path = tmp_path / "model.onnx"
    path.write_bytes(make_model("AnalogMatMul", inputs, {"x", "chip"}, attributes).SerializeToString())
    expected = program_weight(weight, device, seed=2**40, stream=6, chip=5, copies=3)
    done = with_isa(isa, READ_OUT, MODEL=str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(expected.tobytes()).hexdigest()
