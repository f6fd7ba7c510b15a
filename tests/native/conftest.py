"""The native library as C functions and as operators in ONNX Runtime sessions."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.runtime.library import get_library_path, has_library
from cnpass.runtime.ops import DOMAIN

Run = Callable[..., np.ndarray]
Inputs = Mapping[str, np.ndarray | None]


@pytest.fixture(scope="session")
def library_path() -> Path:
    """The native library; skips where it has not been built."""
    if not has_library():
        pytest.skip("the native library is not built (scripts/build_native.sh)")
    return get_library_path()


class Library:
    """The functions that the library exports for tests, on NumPy arrays."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.cnpass_isa.restype = ctypes.c_char_p

    @property
    def isa(self) -> str:
        return self._library.cnpass_isa().decode()

    def normals(self, count: int, *, seed=0, chip=0, stream=0, purpose=0, copy=0, first=0) -> np.ndarray:
        out = np.full(count, np.nan, np.float32)
        words = [ctypes.c_uint32(word) for word in (chip, stream, purpose, copy)]
        where = ctypes.c_uint64(first), ctypes.c_size_t(count), out.ctypes.data_as(ctypes.c_void_p)
        self._library.cnpass_normals(ctypes.c_uint64(seed), *words, *where)
        return out

    def lognormal(self, weight: np.ndarray, sigma: float, *, seed=0, chip=0, stream=0, first=0) -> np.ndarray:
        weight = np.ascontiguousarray(weight, np.float32)
        out = np.full_like(weight, np.nan)
        self._library.cnpass_program_lognormal(
            ctypes.c_uint64(seed),
            ctypes.c_uint32(chip),
            ctypes.c_uint32(stream),
            ctypes.c_uint64(first),
            ctypes.c_size_t(weight.size),
            ctypes.c_float(sigma),
            weight.ctypes.data_as(ctypes.c_void_p),
            out.ctypes.data_as(ctypes.c_void_p),
        )
        return out


@pytest.fixture(scope="session")
def library(library_path: Path) -> Library:
    return Library(library_path)


def _model(op: str, inputs: Inputs, fed: set[str], attributes: dict) -> onnx.ModelProto:
    """One node; inputs in `fed` are graph inputs, the others initializers, None an absent one."""
    types = {"chip": TensorProto.INT64, "first_sample": TensorProto.INT64}
    constants = [numpy_helper.from_array(v, k) for k, v in inputs.items() if v is not None and k not in fed]
    fed_infos = [
        helper.make_tensor_value_info(k, types.get(k, TensorProto.FLOAT), [None] * v.ndim)
        for k, v in inputs.items()
        if k in fed and v is not None
    ]
    names = [name if value is not None else "" for name, value in inputs.items()]
    while names[-1] == "":
        names.pop()
    domain = "" if op in ("Conv", "MatMul") else DOMAIN
    node = helper.make_node(op, names, ["y"], name="layer", domain=domain, **attributes)
    graph = helper.make_graph(
        [node], "g", fed_infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    return _model


@pytest.fixture(scope="session")
def make_session(library_path: Path) -> Callable[..., ort.InferenceSession]:
    """Gives a session on a model, with the library registered."""

    def make(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(str(library_path))
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    return make


@pytest.fixture(scope="session")
def run_op(make_session) -> Run:
    """Runs one node: `run_op("AnalogConv", {"x": ..., "w": ..., "b": None}, chip=3, device=..., ...)`.

    `fed` names the inputs that are fed instead of being initializers, besides x and chip.
    """

    def run(
        op: str,
        inputs: Inputs,
        *,
        chip: int | None = 0,
        threads: int = 1,
        fed: tuple[str, ...] = (),
        **attributes: Any,
    ) -> np.ndarray:
        inputs = dict(inputs)
        if chip is not None:
            first_sample = inputs.pop("first_sample", None)
            inputs |= {"chip": np.array(chip, np.int64), "first_sample": first_sample}
        feeds = {"x", "chip", "first_sample", *fed}
        session = make_session(_model(op, inputs, feeds, attributes), threads)
        return session.run(None, {k: v for k, v in inputs.items() if k in feeds and v is not None})[0]

    return run


@pytest.fixture(scope="session")
def with_isa(library_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs Python code in a process of its own, with a value for CNPASS_ISA, and further variables."""

    def run(isa: str, code: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {"CNPASS_ISA": isa, "LIBRARY": str(library_path), "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    return run


_OUTPUT = """
import os
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.register_custom_ops_library(os.environ["LIBRARY"])
folder = os.environ["FOLDER"]
session = ort.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
np.save(folder + "/y.npy", session.run(None, {"x": np.load(folder + "/x.npy"), "chip": np.array(3)})[0])
"""


@pytest.fixture
def output_with_isa(with_isa, tmp_path: Path) -> Callable[..., np.ndarray]:
    """What a model of an input x gives on chip 3 in a process with a value for CNPASS_ISA."""

    def run(isa: str, model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        np.save(tmp_path / "x.npy", x)
        done = with_isa(isa, _OUTPUT, FOLDER=str(tmp_path))
        assert done.returncode == 0, done.stderr
        return np.load(tmp_path / "y.npy")

    return run


def _floats(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


Case = tuple[np.ndarray, np.ndarray, np.ndarray | None, dict]


def _random_case(generator: np.random.Generator, axes: int) -> Case:
    """Input, weight, bias and attributes of a convolution over `axes` axes."""
    depthwise = generator.random() < 0.3
    group = int(generator.choice([1, 1, 2, 3, 8]))
    channels = 1 if depthwise else int(generator.integers(1, 9))
    filters = int(generator.integers(1, 3)) if depthwise else int(generator.integers(1, 20))
    kernel = generator.integers(1, 5, axes)
    auto_pad = str(generator.choice(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    # ORT's own Conv refuses dilations together with SAME padding.
    dilations = generator.integers(1, 2 if auto_pad.startswith("SAME") else 4, axes)
    attributes = {
        "group": group,
        "kernel_shape": kernel.tolist(),
        "strides": generator.integers(1, 4, axes).tolist(),
        "dilations": dilations.tolist(),
    }
    if auto_pad == "NOTSET":
        attributes["pads"] = generator.integers(0, 3, 2 * axes).tolist()
    else:
        attributes["auto_pad"] = auto_pad
    for optional in ("kernel_shape", "strides", "dilations", "pads"):
        if generator.random() < 0.2:
            attributes.pop(optional, None)
    size = (kernel - 1) * dilations + 1 + generator.integers(0, 40 if axes < 3 else 8, axes)
    x = _floats(generator, int(generator.integers(1, 5)), group * channels, *size)
    w = _floats(generator, group * filters, channels, *kernel)
    b = _floats(generator, group * filters) if generator.random() < 0.5 else None
    return x, w, b, attributes


@pytest.fixture(scope="session")
def random_case() -> Callable[[np.random.Generator, int], Case]:
    return _random_case
