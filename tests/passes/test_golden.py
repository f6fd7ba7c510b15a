"""The text of graphs before and after each pass; CNPASS_REGENERATE_GOLDEN=1 rewrites the files."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from cnpass.document import Document
from cnpass.passes import Pipeline


@pytest.mark.parametrize(
    "name",
    ["conv", "two-convs-one-transposed", "matmul-left", "matmul-behind-everything", "tied", "odd-names"],
)
def test_map_crossbar_and_lower_analog(named_case, golden, name):
    document = Document.from_proto(named_case(name))
    golden(f"{name}.source", document)
    Pipeline.parse("map-crossbar{sigma=0.25,seed=7}").run(document)
    golden(f"{name}.mapped", document)
    Pipeline.parse("lower-analog").run(document)
    golden(f"{name}.lowered", document)


def test_gemm_with_everything(build, weight, golden):
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], "fc", alpha=0.5, beta=2.0, transA=1, transB=1)
    model = build([node], {"w": weight(5, 4, dtype=np.float16), "c": weight(5, dtype=np.float16)})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    document = Document.from_proto(model)
    Pipeline.parse("map-crossbar{portable=never}").run(document)
    golden("gemm-float16.mapped", document)


def test_strip_portable(named_case, golden):
    document = Document.from_proto(named_case("conv"))
    Pipeline.parse("map-crossbar,strip-portable").run(document)
    golden("conv.stripped", document)


@pytest.mark.parametrize("name", ["conv", "two-convs-one-transposed", "tied"])
def test_replicate_weights(named_case, golden, name):
    document = Document.from_proto(named_case(name))
    Pipeline.parse("map-crossbar{sigma=0.25,seed=7},replicate-weights{tile-rows=64}").run(document)
    golden(f"{name}.replicated", document)


def test_fold_batch_norm(build, weight, golden):
    names = ["scale", "shift", "mean", "var"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("BatchNormalization", ["a", *names], ["b"], "norm"),
        helper.make_node("Flatten", ["b"], ["c"], "flat"),
        helper.make_node("MatMul", ["c", "v"], ["d"], "dense"),
        helper.make_node("BatchNormalization", ["d", *names], ["y"], "norm2"),
    ]
    weights = {"w": weight(4, 3, 2, 2), "v": weight(4, 4)} | {name: np.ones(4, np.float32) for name in names}
    document = Document.from_proto(build(nodes, weights, inputs={"x": [1, 3, 2, 2]}))
    golden("batch-norm.source", document)
    Pipeline.parse("fold-batch-norm").run(document)
    golden("batch-norm.folded", document)
