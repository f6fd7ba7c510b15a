"""Execute, transform, execute, compare; and the golden text of graphs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented  # noqa: A004 (ORT's own name)

from cnpass.document import Document
from cnpass.passes import Pipeline
from cnpass.passes.pipeline import Verifying
from cnpass.printer import to_text
from cnpass.runtime.session import Session

GOLDEN = Path(__file__).parent / "golden"
REGENERATE = "CNPASS_REGENERATE_GOLDEN"


def serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def execute(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A plain model in ONNX Runtime without fusions, of which some round more than the operators do.

    Operators that it has not for a type (Conv on double) run in ONNX's own reference.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    except NotImplemented:
        return ReferenceEvaluator(model).run(None, feeds)


def random_feeds(document: Document, open_dimension: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds = {}
    for tensor in document.graph.inputs:
        shape = [d if isinstance(d, int) and d > 0 else open_dimension for d in tensor.shape or ()]
        feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds


def deviation(before: list[np.ndarray], after: list[np.ndarray], least: float = 0.0) -> float:
    """The largest difference over all outputs, relative to the largest value of each, or to a least scale."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert np.array_equal(np.isfinite(a), np.isfinite(b))
        a64, b64 = (np.where(np.isfinite(v), v, 0).astype(np.float64) for v in (a, b))
        scale = np.max(np.abs(a64), initial=least)
        if scale > 0:
            worst = max(worst, float(np.max(np.abs(a64 - b64))) / scale)
    return worst


@pytest.fixture(scope="session")
def plain():
    """Runs a plain model without fusions; gives its first output."""
    return lambda document, x: execute(document.to_proto(), {document.graph.inputs[0].name: x})[0]


@pytest.fixture(scope="session")
def transform():
    """Runs a pipeline with every check; compares outputs before and after; gives the document."""

    def run(
        model: onnx.ModelProto | Path,
        pipeline: str,
        *,
        tolerance: float = 1e-5,
        least: float = 0.0,
        feeds=None,
    ) -> Document:
        document = Document.load(model) if isinstance(model, Path) else Document.from_proto(model)
        feeds = random_feeds(document) if feeds is None else feeds
        before = execute(document.embedded(), feeds)
        Pipeline.parse(pipeline).run(document, [Verifying()])
        after = Session(document.embedded()).run(feeds)
        assert deviation(before, after, least) <= tolerance
        return document

    return run


@pytest.fixture(scope="session")
def map_and_lower(transform):
    """As `transform` with map-crossbar; then saving, loading and lowering must bring back the source."""

    def run(model: onnx.ModelProto, options: str = "", **more) -> Document:
        mapped = transform(model, f"map-crossbar{options}", **more)
        reloaded = onnx.ModelProto.FromString(serialized(mapped.to_proto()))
        for document in (mapped.copy(), Document.from_proto(reloaded)):
            Pipeline.parse("lower-analog{mark=false}").run(document, [Verifying()])
            assert serialized(document.to_proto()) == serialized(model)
        return mapped

    return run


@pytest.fixture
def golden():
    """Compares the text of a document with a golden file; with CNPASS_REGENERATE_GOLDEN=1 writes the file."""

    def compare(name: str, document: Document) -> None:
        path, text = GOLDEN / f"{name}.txt", to_text(document)
        if os.environ.get(REGENERATE):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"differs from {path}; {REGENERATE}=1 rewrites it"

    return compare


def _weight(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.fixture(scope="session")
def weight():
    """Random weights of a shape, the same for the same shape."""
    return _weight


def _constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=f"make_{name}", value=numpy_helper.from_array(array))


CASES = {
    "conv": ([helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c", pads=[1] * 4)],
             {"w": _weight(4, 3, 3, 3), "b": _weight(4)}, ["n", 3, 6, 6]),
    "conv-no-bias": ([helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1])],
                     {"w": _weight(4, 3, 3, 2)}, ["n", 3, 6, 6]),
    "conv-empty-bias": ([helper.make_node("Conv", ["x", "w", ""], ["y"])],
                        {"w": _weight(4, 3, 3, 2)}, ["n", 3, 6, 6]),
    "conv-depthwise": ([helper.make_node("Conv", ["x", "w"], ["y"], group=3, dilations=[2, 1])],
                       {"w": _weight(6, 1, 2, 2)}, ["n", 3, 6, 6]),
    "conv-1d": ([helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2])],
                {"w": _weight(4, 3, 5)}, ["n", 3, 9]),
    "conv-3d": ([helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="VALID")],
                {"w": _weight(2, 1, 2, 3, 2)}, ["n", 1, 4, 5, 6]),
    "conv-transposed-weight": (
        [helper.make_node("Transpose", ["w"], ["t"], perm=[3, 2, 0, 1]),
         helper.make_node("Conv", ["x", "t"], ["y"])],
        {"w": _weight(3, 2, 3, 5)}, ["n", 3, 6, 6]),
    "two-convs-one-transposed": (
        [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0, 2, 3]),
         helper.make_node("Conv", ["x", "t"], ["h"], name="first"),
         helper.make_node("Conv", ["h", "v"], ["y"], name="second")],
        {"w": _weight(3, 5, 2, 2), "v": _weight(2, 5, 1, 1)}, ["n", 3, 6, 6]),
    "matmul": ([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": _weight(4, 3)}, ["n", 4]),
    "matmul-1d": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(4, 3)}, [4]),
    "matmul-3d": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weight(4, 3)}, ["n", 5, 4]),
    "matmul-left": ([helper.make_node("MatMul", ["w", "x"], ["y"], name="m")], {"w": _weight(6, 4)}, [4, 5]),
    "matmul-left-1d": ([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": _weight(6, 4)}, [4]),
    "matmul-left-4d": ([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": _weight(6, 4)}, ["n", 3, 4, 5]),
    "matmul-behind-everything": (
        [_constant("c", _weight(2, 6).astype(np.float16)), helper.make_node("Identity", ["c"], ["i"]),
         helper.make_node("Reshape", ["i", "s"], ["r"]), helper.make_node("Cast", ["r"], ["f"], to=1),
         helper.make_node("Transpose", ["f"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])],
        {"s": np.int64([3, 4])}, ["n", 4]),
    "matmul-dequantized": (
        [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
         helper.make_node("MatMul", ["x", "d"], ["y"])],
        {"q": _weight(4, 3).astype(np.int8), "s": np.float32([1, 2, 3]), "z": np.int8([0, 1, 2])}, ["n", 4]),
    "tied": (
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="down"), helper.make_node("Relu", ["h"], ["r"]),
         helper.make_node("Gemm", ["r", "w", "b"], ["y"], name="up", transB=1)],
        {"w": _weight(4, 3), "b": _weight(4)}, ["n", 4]),
    "empty-names": (
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Clip", ["h", "", "top"], ["c"]),
         helper.make_node("MatMul", ["c", "w"], ["y"])],
        {"w": _weight(4, 4), "top": np.float32(1)}, ["n", 4]),
    "odd-names": (
        [helper.make_node("Gemm", ["x", "größe/w: 1"], ["chip"], name="a/b c", transA=0, alpha=3.0),
         helper.make_node("Gemm", ["chip", "größe/w: 1", "chip"], ["y"], name="chip.analog", beta=-1.0)],
        {"größe/w: 1": _weight(4, 4)}, ["n", 4]),
    "same-input-twice": ([helper.make_node("Gemm", ["x", "w", "x"], ["y"], beta=0.0, alpha=2.0)],
                         {"w": _weight(4, 4)}, [4, 4]),
}  # fmt: skip
"""Nodes, weights, shape of the input `x`."""


@pytest.fixture(scope="session", params=CASES)
def case(request, build) -> onnx.ModelProto:
    """Models with an analog node each, in many forms."""
    nodes, weights, shape = CASES[request.param]
    return build(nodes, weights, inputs={"x": shape})


@pytest.fixture(scope="session")
def named_case(build):
    """One of the models of `case`, by name."""

    def get(name: str, **options) -> onnx.ModelProto:
        nodes, weights, shape = CASES[name]
        return build(nodes, weights, inputs={"x": shape}, **options)

    return get
