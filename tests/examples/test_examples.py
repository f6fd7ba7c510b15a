"""The example programs give the outputs that cnpass gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from cnpass.document import Document
from cnpass.passes import Pipeline
from cnpass.runtime.library import get_library_path, has_library
from cnpass.runtime.session import Session

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CHIPS = (-1, 0, 7)


@pytest.fixture(scope="module")
def mapped(models, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A mapped model, and images for it."""
    if not has_library():
        pytest.skip("the native library is not built (scripts/build_native.sh)")
    path = tmp_path_factory.mktemp("examples") / "mapped.onnx"
    document = Document.load(models / "digits-lenet5.onnx")
    Pipeline.parse("fold-batch-norm,map-crossbar{sigma=0.3}").run(document)
    document.save(path)
    shape = [5, *document.graph.inputs[0].shape[1:]]
    return path, np.random.default_rng(0).standard_normal(shape, np.float32)


def outputs(*command: object) -> dict[int, np.ndarray]:
    """What a program prints, by chip."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {
        chip: np.array([line[1:] for line in lines if int(line[0]) == chip], np.float32) for chip in CHIPS
    }


def check(found: dict[int, np.ndarray], model: Path, x: np.ndarray) -> None:
    session = Session(model)
    for chip in CHIPS:
        assert np.array_equal(found[chip], session.run(x, chip=chip)[0])
    assert not np.array_equal(found[0], found[7])


def test_python(mapped, tmp_path):
    model, x = mapped
    np.save(tmp_path / "x.npy", x)
    found = outputs(
        sys.executable, EXAMPLES / "run_chip.py", get_library_path(), model, tmp_path / "x.npy", *CHIPS
    )
    check(found, model, x)


def test_python_without_cnpass():
    """So that the program runs where cnpass is not installed."""
    assert "import cnpass" not in (EXAMPLES / "run_chip.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The C++ program, built as its README says, with warnings as errors."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    path = tmp_path_factory.mktemp("program") / "run_chip"
    source = EXAMPLES / "run_chip.cc"
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", path, "-ldl"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def runtime_library() -> Path:
    """The shared library of the installed ONNX Runtime."""
    found = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this onnxruntime package has no libonnxruntime.so")
    return found[0]


def test_cpp(mapped, program, runtime_library, tmp_path):
    model, x = mapped
    x.tofile(tmp_path / "x.f32")
    check(outputs(program, runtime_library, get_library_path(), model, tmp_path / "x.f32", *CHIPS), model, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "none.so"}, "none.so"),
        ({1: "none.so"}, "none.so"),
        ({2: "none.onnx"}, "none.onnx"),
        ({3: "none.f32"}, "cannot read none.f32"),
        ({4: "-7"}, 'input "chip" is -7, must be between -1 and 4294967294'),
    ],
)
def test_cpp_says_what_is_wrong(mapped, program, runtime_library, tmp_path, change, message):
    model, x = mapped
    x.tofile(tmp_path / "x.f32")
    arguments = [runtime_library, get_library_path(), model, tmp_path / "x.f32", "0"]
    for place, value in change.items():
        arguments[place] = value
    done = subprocess.run(list(map(str, [program, *arguments])), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]  # ONNX Runtime's own log comes before it
    assert last.startswith("run_chip: ")
    assert message in last
