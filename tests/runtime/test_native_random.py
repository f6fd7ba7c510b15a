"""The native library draws and programs the same bits as the reference, on every instruction set."""

import ctypes
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cnpass.runtime import LogNormal, get_library_path, has_library, program_weight
from cnpass.runtime.ops import MAX_CHIP, MAX_COPY, MAX_STREAM
from cnpass.runtime.philox import normals

pytestmark = pytest.mark.skipif(not has_library(), reason="the native library is not built")

CASES = [
    {"seed": 0, "chip": 0, "stream": 0, "purpose": 0, "copy": 0},
    {"seed": 2**64 - 1, "chip": MAX_CHIP, "stream": MAX_STREAM, "purpose": 255, "copy": MAX_COPY},
    {"seed": 2**40 + 17, "chip": 7, "stream": 3, "purpose": 3, "copy": 1},
]


@pytest.fixture(scope="module")
def library():
    u32, u64, floats = ctypes.c_uint32, ctypes.c_uint64, ctypes.POINTER(ctypes.c_float)
    loaded = ctypes.CDLL(str(get_library_path()))
    loaded.cnpass_normals.argtypes = [u64, u32, u32, u32, u32, u64, ctypes.c_size_t, floats]
    loaded.cnpass_normals.restype = None
    return loaded


def native_normals(library, count, *, first=0, seed, chip, stream, purpose, copy):
    out = np.empty(count, np.float32)
    pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    library.cnpass_normals(seed, chip, stream, purpose, copy, first, count, pointer)
    return out


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 15, 64, 65, 100_003])
def test_normals(library, case, count):
    drawn = native_normals(library, count, **case)
    np.testing.assert_array_equal(drawn.view(np.uint32), normals(count, **case).view(np.uint32))


def test_normals_from_the_middle(library):
    drawn = native_normals(library, 1000, first=640, **CASES[2])
    np.testing.assert_array_equal(drawn, normals(1640, **CASES[2])[640:])


PROGRAM = """
import ctypes, json, sys
import numpy as np
path, sigma = json.loads(sys.argv[1])
library = ctypes.CDLL(path)
library.cnpass_isa.restype = ctypes.c_char_p
floats = ctypes.POINTER(ctypes.c_float)
u32, u64 = ctypes.c_uint32, ctypes.c_uint64
program = library.cnpass_program_lognormal
program.argtypes = [u64, u32, u32, u64, ctypes.c_size_t, ctypes.c_float, floats, floats]
program.restype = None
weight = np.linspace(-3, 3, 10_007, dtype=np.float32)
out = np.empty_like(weight)
pointers = [array.ctypes.data_as(floats) for array in (weight, out)]
program(2**40 + 17, 7, 3, 0, weight.size, sigma, *pointers)
print(json.dumps([library.cnpass_isa().decode(), out.view(np.uint32).tolist()]))
"""


@pytest.mark.parametrize("isa", ["v1", "v3", "v4"])
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_programmed_weights_on_every_instruction_set(isa, sigma):
    """A process of its own, because the choice is made once; a CPU without the set takes a lower one."""
    task = json.dumps([str(get_library_path()), sigma])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, task],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "CNPASS_ISA": isa},
    )
    name, words = json.loads(run.stdout)
    if name != isa:
        pytest.skip(f"this CPU has {name}, not {isa}")
    weight = np.linspace(-3, 3, 10_007, dtype=np.float32)
    expected = program_weight(weight, LogNormal(sigma=sigma), seed=2**40 + 17, stream=3, chip=7)
    np.testing.assert_array_equal(np.array(words, np.uint32), expected.view(np.uint32))
