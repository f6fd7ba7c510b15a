"""Whatever is wrong with a node or its inputs ends in an error of ORT that names the node and the matter."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

DEVICE = {"device": "lognormal", "sigma": 0.5}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


CONV = {"x": ones(1, 4, 8, 8), "w": ones(6, 4, 3, 3), "b": None}
MATMUL = {"x": ones(2, 4), "w": ones(4, 3)}

BAD_NODES = [
    ("strides", {"strides": [1]}, 'attribute "strides" has 1 value, needs 2'),
    ("strides zero", {"strides": [1, 0]}, 'attribute "strides" holds 0, must be at least 1'),
    ("strides type", {"strides": [1.5, 2.5]}, 'attribute "strides" is not a list of integers'),
    ("strides text", {"strides": "ab"}, 'attribute "strides" is not a list of integers'),
    ("dilations", {"dilations": [1, 2, 3]}, 'attribute "dilations" has 3 values, needs 2'),
    ("dilations negative", {"dilations": [1, -2]}, 'attribute "dilations" holds -2'),
    ("pads", {"pads": [1, 1]}, 'attribute "pads" has 2 values, needs 4'),
    ("pads negative", {"pads": [0, 0, -1, 0]}, 'attribute "pads" holds -1, must be at least 0'),
    ("kernel_shape", {"kernel_shape": [3, 5]}, 'attribute "kernel_shape" (3x5) is not that of W (6x4x3x3)'),
    ("kernel_shape length", {"kernel_shape": [3]}, 'attribute "kernel_shape" has 1 value, needs 2'),
    ("group", {"group": 0}, 'attribute "group" is 0'),
    ("group divides", {"group": 4}, 'attribute "group" is 4, must divide the 6 filters'),
    ("group type", {"group": 2.5}, 'attribute "group" is not an integer'),
    ("auto_pad", {"auto_pad": "SAME"}, 'attribute "auto_pad" is "SAME"'),
    ("auto_pad type", {"auto_pad": 1}, 'attribute "auto_pad" is not a string'),
    ("no device", {"device": None}, 'attribute "device" is missing'),
    ("device", {"device": "memristor"}, 'attribute "device" is "memristor", must be one of lognormal,'),
    ("device type", {"device": 3}, 'attribute "device" is not a string'),
    ("no sigma", {"sigma": None}, 'attribute "sigma" is missing'),
    ("sigma negative", {"sigma": -0.5}, 'attribute "sigma" is -0.5'),
    ("sigma nan", {"sigma": float("nan")}, 'attribute "sigma" is nan'),
    ("sigma large", {"sigma": 1e9}, 'attribute "sigma" is 1e+09, must be between 0 and 15'),
    ("sigma type", {"sigma": 1}, 'attribute "sigma" is not a float'),
    ("scale_floor", {"device": "gaussian"}, 'attribute "scale_floor" is missing'),
    ("scale_floor range", {"device": "gaussian", "scale_floor": 2.0}, 'attribute "scale_floor" is 2'),
    ("stuck_low", {"stuck_low": 1.5}, 'attribute "stuck_low" is 1.5, must be between 0 and 1'),
    ("stuck_high type", {"stuck_high": 1}, 'attribute "stuck_high" is not a float'),
    (
        "stuck",
        {"stuck_low": 0.6, "stuck_high": 0.5},
        'attributes "stuck_low" and "stuck_high" are more than 1',
    ),
    ("copies", {"copies": 0}, 'attribute "copies" is 0, must be between 1 and 65536'),
    ("copies high", {"copies": 2**16 + 1}, 'attribute "copies" is 65537'),
    ("extra", {"extra_copies": [4, 4]}, 'attribute "extra_copies" is 4, 4, must be some, but not all'),
    ("extra below", {"extra_copies": [-1, 4]}, 'attribute "extra_copies" is -1, 4, must be some'),
    (
        "extra deep",
        {"extra_copies": [1, 2**41]},
        'attribute "extra_copies" is 1, 2199023255552, must be some',
    ),
    (
        "extra many",
        {"copies": 2**16, "extra_copies": [1, 2]},
        'attribute "extra_copies" is 1, 2, must be some',
    ),
    ("extra short", {"extra_copies": [1]}, 'attribute "extra_copies" has 1 value, needs 2'),
    (
        "extra tile",
        {"copies": 2, "extra_copies": [1, 4], "tile_rows": 8},
        'attributes "copies" and "extra_copies" need 9 rows, but "tile_rows" is 8',
    ),
    ("copies type", {"copies": 1.5}, 'attribute "copies" is not an integer'),
    ("pair", {"device": "pcm"}, 'attribute "g_max" is missing'),
    (
        "on_off",
        {"device": "reram", "g_max": 40.0, "scale_floor": 1.0, "on_off": 1.0},
        'attribute "on_off" is 1,',
    ),
    (
        "levels",
        {
            "device": "conductance",
            "g_max": 25.0,
            "scale_floor": 1.0,
            "on_off": 9.0,
            "levels": 2.5,
            "noise": 0.5,
        },
        'attribute "levels" is not a whole number',
    ),
    ("seed type", {"seed": 1.5}, 'attribute "seed" is not an integer'),
    ("stream", {"stream": 2**24}, 'attribute "stream" is 16777216, must be between 0 and 16777215'),
    ("stream negative", {"stream": -1}, 'attribute "stream" is -1'),
    ("weight_perm length", {"weight_perm": [1, 0]}, 'attribute "weight_perm" has 2 values, needs 4'),
    ("weight_perm", {"weight_perm": [0, 1, 1, 3]}, 'attribute "weight_perm" is not a permutation of 0 to 3'),
    ("weight_perm range", {"weight_perm": [1, 2, 3, 4]}, 'attribute "weight_perm" is not a permutation'),
]


@pytest.mark.parametrize("weight", ["constant", "fed"])
@pytest.mark.parametrize(("attributes", "message"), [c[1:] for c in BAD_NODES], ids=[c[0] for c in BAD_NODES])
def test_bad_attributes(run_op, weight, attributes, message):
    given = {k: v for k, v in (DEVICE | attributes).items() if v is not None}
    with pytest.raises(Exception, match=re.escape('AnalogConv node "layer": ' + message)):
        run_op("AnalogConv", CONV, fed=("w",) if weight == "fed" else (), **given)


BAD_INPUTS = [
    ("chip low", "AnalogConv", {}, {"chip": -2}, 'input "chip" is -2, must be between -1 and 4294967294'),
    ("chip high", "AnalogMatMul", {}, {"chip": 2**32 - 1}, 'input "chip" is 4294967295'),
    ("chip vector", "AnalogMatMul", {}, {"chip": [1, 2]}, 'input "chip" (2) must be a scalar'),
    ("chip empty", "AnalogMatMul", {}, {"chip": []}, 'input "chip" (0) must be a scalar'),
    ("x rank", "AnalogConv", {"x": ones(1, 4, 8)}, {}, 'input "X" has 3 dimensions, needs 4'),
    ("x channels", "AnalogConv", {"x": ones(1, 5, 8, 8)}, {}, 'input "X" (1x5x8x8) has 5 channels, needs 4'),
    ("x channels in groups", "AnalogConv", {}, {"group": 3}, "needs 4 in each of 3 groups"),
    (
        "x small",
        "AnalogConv",
        {"x": ones(1, 4, 8, 2)},
        {},
        "is smaller than the kernel of W (6x4x3x3) along axis 3",
    ),
    ("x empty", "AnalogConv", {"x": ones(1, 4, 0, 8)}, {"pads": [3] * 4}, "is smaller than the kernel"),
    ("x empty, same", "AnalogConv", {"x": ones(1, 4, 0, 8)}, {"auto_pad": "SAME_UPPER"}, "is smaller than"),
    ("dilated", "AnalogConv", {}, {"dilations": [9, 1]}, "is smaller than the kernel"),
    ("w rank", "AnalogConv", {"w": ones(6, 4)}, {}, 'input "W" has 2 dimensions, needs 3, 4 or 5'),
    ("w rank high", "AnalogConv", {"w": ones(1, 1, 1, 1, 1, 1)}, {}, 'input "W" has 6 dimensions'),
    ("w empty", "AnalogConv", {"w": ones(0, 4, 3, 3)}, {}, 'input "W" (0x4x3x3) is empty'),
    ("b", "AnalogConv", {"b": ones(5)}, {}, 'input "B" (5) must have one value per filter of W (6)'),
    ("b rank", "AnalogConv", {"b": ones(6, 1)}, {}, 'input "B" (6x1)'),
    ("overflow", "AnalogConv", {}, {"dilations": [2**62, 1]}, "a size is too large"),
    ("overflow of pads", "AnalogConv", {}, {"pads": [2**62, 1, 2**62, 1]}, "a size is too large"),
    ("overflow of output", "AnalogConv", {}, {"pads": [2**40, 2**40, 0, 0]}, "a size is too large"),
    ("matmul w rank", "AnalogMatMul", {"w": ones(4)}, {}, 'input "W" has 1 dimension, needs 2'),
    ("matmul w empty", "AnalogMatMul", {"w": ones(4, 0)}, {}, 'input "W" (4x0) is empty'),
    (
        "matmul x",
        "AnalogMatMul",
        {"x": ones(2, 5)},
        {},
        'input "X" (2x5) must have 4 values along its last axis',
    ),
    ("matmul scalar x", "AnalogMatMul", {"x": ones()}, {}, 'input "X" (a scalar) must have 4 values'),
    ("matmul perm", "AnalogMatMul", {}, {"weight_perm": [0]}, 'attribute "weight_perm" has 1 value, needs 2'),
]


@pytest.mark.parametrize("weight", ["constant", "fed"])
@pytest.mark.parametrize("case", [c[1:] for c in BAD_INPUTS], ids=[c[0] for c in BAD_INPUTS])
def test_bad_inputs(run_op, weight, case):
    op, inputs, more, message = case
    good = CONV if op == "AnalogConv" else MATMUL
    with pytest.raises(Exception, match=f'{op} node "layer": .*{re.escape(message)}'):
        run_op(op, good | inputs, fed=("w",) if weight == "fed" else (), **DEVICE, **more)


def test_a_good_node_still_runs_after_a_bad_call(make_model, make_session):
    model = make_model("AnalogMatMul", MATMUL | {"chip": np.array(0)}, {"x", "chip"}, DEVICE)
    session = make_session(model)
    before = session.run(None, {"x": MATMUL["x"], "chip": np.array(0)})[0]
    for bad in ({"x": ones(2, 5), "chip": np.array(0)}, {"x": MATMUL["x"], "chip": np.array(-7)}):
        with pytest.raises(Exception, match="AnalogMatMul"):
            session.run(None, bad)
    assert np.array_equal(session.run(None, {"x": MATMUL["x"], "chip": np.array(0)})[0], before)


def test_output_that_does_not_fit_in_memory(run_op):
    with pytest.raises(Exception, match="layer"):
        run_op("AnalogConv", CONV, **DEVICE, pads=[2**20, 2**20, 2**20, 2**20])


def test_node_without_a_name_is_named_by_its_output(make_model, make_session):
    model = make_model("AnalogMatMul", MATMUL | {"chip": np.array(0)}, {"x", "chip"}, {"device": "x"})
    model.graph.node[0].name = ""
    with pytest.raises(Exception, match='AnalogMatMul node of output "y": attribute "device"'):
        make_session(model)


def test_unknown_instruction_set_is_refused(with_isa):
    code = (
        "import os, onnxruntime as ort\n"
        "ort.SessionOptions().register_custom_ops_library(os.environ['LIBRARY'])"
    )
    done = with_isa("v2", code)
    assert done.returncode == 1
    assert 'CNPASS_ISA is "v2", must be v1, v3 or v4' in done.stderr


def test_older_runtime_is_told_what_is_needed(library_path):
    """A stand-in for ORT 1.17: it knows API versions up to 17, of which only CreateStatus is called."""
    messages = []
    create_status_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    get_api_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)

    @create_status_type
    def create_status(_code: int, message: bytes) -> int:
        messages.append(message.decode())
        return 1

    table = (ctypes.c_void_p * 300)(ctypes.cast(create_status, ctypes.c_void_p).value)

    @get_api_type
    def get_api(version: int) -> int | None:
        return ctypes.addressof(table) if version <= 17 else None

    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value, None)
    register = ctypes.CDLL(str(library_path)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    assert len(messages) == 1
    assert "needs ONNX Runtime 1.18 or newer" in messages[0]
