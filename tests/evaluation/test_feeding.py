"""First outputs come sample by sample, however a model arranges them; what cannot be compared is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import DataError, ModelError
from cnpass.evaluation import MonteCarlo
from cnpass.evaluation.feeding import arrange, open_session, sample_outputs
from cnpass.training.forward import Forward, Samples
from cnpass.training.lift import lift

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, 2, 4)).astype(np.float32)
SEQUENCE = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
STRINGS = numpy_helper.from_array(np.array(["a", "b", "c"], object), "names")


def model(*tail, batch: int | str = "n", output: ValueInfoProto | None = None) -> Document:
    """A product of [batch, 2, 4] as `h`, and nodes that make `y` of it."""
    constants = {
        "w": W,
        "flat": np.int64([-1, 3]),
        "line": np.int64([-1]),
        "zero": np.int64([0]),
        "places": np.int64([0, 1]),
        "none": np.float32(0),
    }
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *tail],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2, 4])],
        [output or helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*(numpy_helper.from_array(value, name) for name, value in constants.items()), STRINGS],
    )
    return Document.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    )


@pytest.mark.parametrize(
    ("tail", "batch", "expected"),
    [
        ([helper.make_node("Reshape", ["h", "flat"], ["y"])], "n", X @ W),
        ([helper.make_node("Reshape", ["h", "flat"], ["y"])], 2, X @ W),
        ([helper.make_node("Squeeze", ["h", "zero"], ["y"])], 1, X @ W),
        ([helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0)], "n", (X @ W).sum((1, 2))),
        ([helper.make_node("Transpose", ["h"], ["y"], perm=[1, 0, 2])], 1, (X @ W)[:, :, None]),
    ],
)
def test_outputs_by_sample(tmp_path: Path, tail, batch, expected) -> None:
    document, feed, _ = arrange(model(*tail, batch=batch), {"x": X}, tmp_path)
    session = open_session(document, tmp_path, "model")
    found = np.concatenate(list(sample_outputs(session, {"x": X}, feed)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    forward = Forward(lift(document), feed.batch if feed.padded or feed.batch == 1 else None)
    lifted = forward(Samples((torch.from_numpy(X),)))
    np.testing.assert_allclose(lifted.detach().numpy(), expected, rtol=1e-5)


def test_a_run_is_one_row_where_the_output_has_no_samples(tmp_path: Path) -> None:
    document = model(helper.make_node("ReduceSum", ["h", "zero"], ["y"], keepdims=0), batch=3)
    arranged, feed, _ = arrange(document, {"x": X}, tmp_path)
    session = open_session(arranged, tmp_path, "model")
    found = np.concatenate(list(sample_outputs(session, {"x": X}, feed)))
    expected = [(X @ W)[[0, 1, 2]].sum(0), (X @ W)[[3, 4, 4]].sum(0)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with MonteCarlo(document, Split({"x": X}), workers=1) as run:
        assert (run.metric, run.clean) == ("ser", 150.0)
    samples = Samples((torch.from_numpy(X[:3]),))
    with pytest.raises(ModelError, match=r"'y' has 2 rows for 3 samples, so there is nothing to train for"):
        Forward(lift(document), 3)(samples)


def test_a_fixed_batch_larger_than_memory(tmp_path: Path) -> None:
    document = model(helper.make_node("Relu", ["h"], ["y"]), batch=2**31 - 1)
    with pytest.raises(ModelError, match="fixes a batch of 2147483647 samples"):
        arrange(document, {"x": X}, tmp_path)


def test_labels_need_a_row_for_each_sample() -> None:
    document = model(helper.make_node("ReduceSum", ["h", "places"], ["y"], keepdims=0), batch=2)
    with pytest.raises(DataError, match="for each of 5 samples, but output 'y' has them for 3"):
        MonteCarlo(document, Split({"x": X}, np.zeros(5, np.int64)), workers=1)


@pytest.mark.parametrize(
    ("tail", "output", "text"),
    [
        ([helper.make_node("SequenceConstruct", ["h"], ["y"])], SEQUENCE, "'y' is no tensor of numbers"),
        (
            [
                helper.make_node("ArgMax", ["h"], ["best"], axis=2, keepdims=0),
                helper.make_node("Gather", ["names", "best"], ["y"]),
            ],
            helper.make_tensor_value_info("y", TensorProto.STRING, None),
            "'y' is no tensor of numbers",
        ),
        (
            [
                helper.make_node("Greater", ["h", "none"], ["above"]),
                helper.make_node("Reshape", ["above", "line"], ["chosen"]),
                helper.make_node("Compress", ["h", "chosen"], ["y"]),
            ],
            None,
            "'y' depends on the samples .* so there are no figures",
        ),
    ],
)
def test_outputs_that_cannot_be_compared(tail, output, text) -> None:
    document = model(*tail, output=output)
    with pytest.raises(ModelError, match=text):
        MonteCarlo(document, Split({"x": X}), workers=1)
