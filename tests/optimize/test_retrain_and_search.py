"""The verbs that do one part of the main job."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import cnpass
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.optimization import stages
from cnpass.passes.correct_mean_gain import CorrectMeanGain
from cnpass.passes.mean_gain import mean_gains
from cnpass.records import SCHEMAS
from cnpass.runtime.devices import LogNormal
from cnpass.training.retrain import TrainResult

TRAINING: dict[str, Any] = {"sigma": 1.2, "epochs": 16}
SEARCH: dict[str, Any] = {"sigma": 1.2, "epochs": 8, "trials": 4, "max_overhead": 0.5}


def _valid(path: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    jsonschema.validate(record, json.loads((SCHEMAS / f"{name}.json").read_text()))
    return record


def _weights(path: Path) -> dict[str, bytes]:
    return {i.name: numpy_helper.to_array(i).tobytes() for i in onnx.load(path).graph.initializer}


def test_retrain_writes_the_same_graph_with_better_weights(model: Path) -> None:
    record = cnpass.retrain(model, **TRAINING)
    output = model.with_name("quadrants.retrained.onnx")
    assert record.kept
    assert record.after.mean > record.before.mean + 0.02
    assert record.epochs == record.history[-1].epoch <= 16
    assert [check.epoch for check in record.history] == sorted({c.epoch for c in record.history})
    assert json.loads(record.to_json()) == _valid(output, "retrain")
    before, after = _weights(model), _weights(output)
    assert before.keys() == after.keys()
    assert all(after[key] != before[key] for key in ("k1", "k2", "fc"))
    assert after["shape"] == before["shape"]
    old, new = onnx.load(model).graph, onnx.load(output).graph
    assert [n.SerializeToString() for n in old.node] == [n.SerializeToString() for n in new.node]
    chips = cnpass.evaluate(output, str(model.with_suffix(".npz")), sigma=1.2, chips=30)
    assert chips.points[0].mean > cnpass.evaluate(model, sigma=1.2, chips=30).points[0].mean


def test_retrained_weights_are_made_for_the_device_and_can_be_made_right_for_another(model: Path) -> None:
    cnpass.retrain(model, **TRAINING)
    output = model.with_name("quadrants.retrained.onnx")
    (factor,) = set(mean_gains(Document.load(output)).values())
    assert factor == pytest.approx(math.exp(1.2**2 / 2), rel=1e-3)
    same, other = Document.load(output), Document.load(output)
    assert not CorrectMeanGain(device=LogNormal(sigma=1.2))(same).modified
    assert CorrectMeanGain(device=LogNormal(sigma=0.0))(other).modified
    assert not mean_gains(other)
    before, after = (numpy_helper.to_array(d.to_proto().graph.initializer[0]) for d in (same, other))
    np.testing.assert_allclose(after, factor * before, rtol=1e-6)
    notes = [
        cnpass.evaluate(output, sigma=sigma, chips=2, data=model.with_suffix(".npz")).notes
        for sigma in (1.2, 0.5)
    ]
    assert [any("correct-mean-gain" in note for note in told) for told in notes] == [False, True]


@pytest.mark.parametrize("options", [{"ramp": (0.5,)}, {"censor": 1.0}, {"injection": False, "beta": 1e-3}])
def test_weights_that_were_trained_for_other_variation_are_not_said_to_be_made_for_the_device(
    model: Path, options: dict[str, Any]
) -> None:
    record = cnpass.retrain(model, **TRAINING, **options)
    assert "cnpass.mean_gain" not in Document.load(record.output).metadata


def test_what_cannot_get_better_comes_back_as_it_was(model: Path) -> None:
    record = cnpass.retrain(model, sigma=0.0, epochs=1)
    assert not record.kept
    assert record.after == record.before
    assert _weights(model.with_name("quadrants.retrained.onnx")) == _weights(model)


def test_figures_are_those_of_what_is_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruin(forward: Any, problem: Any, *_: Any, **__: Any) -> TrainResult:
        del problem
        return TrainResult({k: 0 * w.detach() for k, w in forward.module.weights.items()}, 1.0, 0.0, 1)

    monkeypatch.setattr(stages, "train", ruin)
    record = cnpass.retrain(model, **TRAINING)
    assert not record.kept
    assert record.after == record.before
    assert record.after_clean == record.clean


def test_search_leaves_analog_weights_and_lists_what_it_measured(model: Path) -> None:
    record = cnpass.search(model, **SEARCH)
    output = model.with_name("quadrants.compensated.onnx")
    assert json.loads(record.to_json()) == _valid(output, "search")
    assert record.trials[0].placement == []
    assert record.trials[0].overhead.params == 0
    assert len(record.trials) == 4
    assert record.epochs == 3 + 2, "the shared compensation, the chosen one"
    assert all(trial.overhead.params <= 0.5 for trial in record.trials)
    assert record.candidates
    source, written = _weights(model), _weights(output)
    assert {name: written[name] for name in source} == source
    assert bool(record.placement) == record.kept == (record.overhead.params > 0)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "reinforce", "random"])
def test_the_number_of_processes_changes_nothing(sampler: str, model: Path, tmp_path: Path) -> None:
    records = []
    for workers in (1, 2):
        output = tmp_path / f"{workers}.onnx"
        options = SEARCH | {"trials": 10, "epochs": 2, "sampler": sampler}
        record = cnpass.search(model, output=output, workers=workers, **options)
        fields = record.model_dump(exclude={"seconds", "output"})
        assert fields["recipe"].pop("workers") == workers
        records.append((fields, output.read_bytes()))
    assert records[0] == records[1]
    record = records[0][0]
    assert record["recipe"]["sampler"] == sampler
    assert len(record["trials"]) == 10
    whole = max(trial["chips"] for trial in record["trials"])
    assert record["front"]
    assert all(trial in record["trials"] and trial["chips"] == whole for trial in record["front"])
    values = [trial["value"] for trial in record["front"]]
    assert values == sorted(values)
    assert values[-1] == max(trial["value"] for trial in record["trials"] if trial["chips"] == whole)


def test_search_keeps_to_the_kinds_that_it_is_given(model: Path) -> None:
    record = cnpass.search(model, **(SEARCH | {"kinds": "paper", "max_overhead": 4.0}))
    tried = {place.kind for trial in record.trials for place in trial.placement}
    assert tried == {"paper"}


def test_a_finished_one_asked_again_gives_its_record(model: Path, tmp_path: Path) -> None:
    for verb, options in ((cnpass.retrain, TRAINING), (cnpass.search, SEARCH)):
        run = tmp_path / verb.__name__
        record = verb(model, run=run, **options)
        assert verb(model, run=run, **options) == record


def _unknown(model: Path) -> Path:
    """The model with an operator that ONNX Runtime knows and training does not, behind its last node."""
    proto = onnx.load(model)
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.node.append(helper.make_node("QuickGelu", ["scores"], ["y"], "soft", domain="com.microsoft"))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path = model.with_name("unknown.onnx")
    path.write_bytes(proto.SerializeToString())
    path.with_suffix(".npz").write_bytes(model.with_suffix(".npz").read_bytes())
    return path


def test_operators_that_cannot_be_trained_are_named_and_leave_what_needs_no_gradients(model: Path) -> None:
    path = _unknown(model)
    for verb in (cnpass.retrain, cnpass.search):
        with pytest.raises(ModelError, match="QuickGelu"):
            verb(path, sigma=0.5)
    record = cnpass.optimize(path, sigma=0.8, chips=12, max_overhead=1)
    assert any("nothing is trained" in note and "QuickGelu" in note for note in record.notes)
    assert [rung.step for rung in record.ladder] == [
        "no correction",
        "mean-gain correction",
        "closed-form compensation",
        "centred inputs",
        "probe compensation, untrained",
        "bypass compensation, untrained",
    ]
    first, _, *compensated = record.ladder
    assert all(not rung.kept or rung.point.mean > first.point.mean for rung in compensated)
    best = [rung.step for rung in record.ladder if rung.kept][-1]
    assert bool(record.placement) == ("compensation" in best)


def _through(model: Path, node: int, *made: onnx.NodeProto) -> Path:
    """The model with nodes behind one of its own, from a tensor `before` to the one that it wrote."""
    proto = onnx.load(model)
    output = proto.graph.node[node].output
    made[-1].output[0] = output[0]
    output[0] = "before"
    after = [*proto.graph.node[: node + 1], *made, *proto.graph.node[node + 1 :]]
    del proto.graph.node[:]
    proto.graph.node.extend(after)
    path = model.with_name("through.onnx")
    path.write_bytes(proto.SerializeToString())
    path.with_suffix(".npz").write_bytes(model.with_suffix(".npz").read_bytes())
    return path


def test_weights_without_gradients_are_told(model: Path) -> None:
    path = _through(model, 0, helper.make_node("Floor", ["before"], [""]))
    notes = cnpass.retrain(path, sigma=0.5, epochs=1).notes
    assert "1 of 3 weights are not trained: 1 whose gradient is zero on the samples (k1)" in notes
    whole = helper.make_node("Cast", ["before"], ["whole"], to=TensorProto.INT64)
    path = _through(model, 5, whole, helper.make_node("Cast", ["whole"], [""], to=TensorProto.FLOAT))
    with pytest.raises(ModelError, match="3 of 3 weights are not trained: 3 before operators without"):
        cnpass.retrain(path, sigma=0.5, epochs=1, force=True)


def test_weights_in_local_functions_are_found(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    last = proto.graph.node[-1]
    opset = [helper.make_opsetid("", 18)]
    inner = helper.make_node("MatMul", ["p", "w"], ["q"], "product")
    proto.functions.append(helper.make_function("local", "Read", ["p", "w"], ["q"], [inner], opset))
    proto.opset_import.append(helper.make_opsetid("local", 1))
    last.op_type, last.domain = "Read", "local"
    del proto.graph.node[:-1]
    proto.graph.node[0].input[0] = "flat"
    proto.graph.node.insert(0, helper.make_node("Flatten", ["x"], ["flat"], "flatten"))
    path = tmp_path / "function.onnx"
    path.write_bytes(proto.SerializeToString())
    data = str(model.with_suffix(".npz"))
    record = cnpass.optimize(path, data, sigma=0.8, chips=2, retrain=False, compensation=False)
    assert record.before.std > 0  # chips differ, so the function's weight is on them


def _quantised(model: Path) -> Path:
    """The model as a quantiser leaves it: input and weights behind QuantizeLinear and DequantizeLinear."""
    graph = (proto := onnx.load(model)).graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    stored = {"s": np.float32([0.05]), "z": np.int8([0]), "one": np.float32(0.02), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], axis=1),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], axis=1),
        helper.make_node("QuantizeLinear", ["fc.float", "one", "zero"], ["fc.q"]),
        helper.make_node("DequantizeLinear", ["fc.q", "one", "zero"], ["fc"]),
    ]
    for name in ("k1", "k2"):
        scale = np.abs(weights[name]).max((1, 2, 3)) / 127
        stored[f"{name}.q"] = np.rint(weights.pop(name) / scale[:, None, None, None]).astype(np.int8)
        stored[f"{name}.s"], stored[f"{name}.z"] = scale, np.zeros(len(scale), np.int8)
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}.{part}" for part in "qsz"], [name], axis=0)
        )
    stored |= {"fc.float": weights.pop("fc")} | weights
    graph.node[0].input[0] = "xd"
    nodes += graph.node
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    path = model.with_name("qdq.onnx")
    path.write_bytes(proto.SerializeToString())
    path.with_suffix(".npz").write_bytes(model.with_suffix(".npz").read_bytes())
    return path


def test_records_say_which_way_quantised_weights_went_back(model: Path) -> None:
    path = _quantised(model)
    note = (
        "3 weights behind DequantizeLinear went back as float initializers, not requantised: 'fc', 'k1', 'k2'"
    )
    record = cnpass.retrain(path, **TRAINING)
    assert record.kept
    assert note in record.notes
    written = onnx.load(path.with_name("qdq.retrained.onnx")).graph
    ops = [node.op_type for node in written.node]
    assert ops == [
        "QuantizeLinear",
        "DequantizeLinear",
        "Conv",
        "MaxPool",
        "Conv",
        "Relu",
        "Reshape",
        "MatMul",
    ]
    assert {i.name for i in written.initializer} == {"s", "z", "k1", "k2", "fc", "shape"}
    optimized = cnpass.optimize(path, sigma=1.2, epochs=4, compensation=False, chips=10)
    assert (note in optimized.notes) == any(rung.kept for rung in optimized.ladder[1:])
    kept = cnpass.retrain(path, sigma=0.0, epochs=1, force=True)
    assert not kept.kept
    assert not any("requantised" in text for text in kept.notes)
    same = onnx.load(path.with_name("qdq.retrained.onnx")).graph
    assert [i.SerializeToString() for i in same.initializer] == [
        i.SerializeToString() for i in onnx.load(path).graph.initializer
    ]


def test_weights_of_nan_end_before_any_training(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "fc":
            values = numpy_helper.to_array(tensor) * np.float32(np.nan)
            tensor.CopyFrom(helper.make_tensor("fc", TensorProto.FLOAT, tensor.dims, values.ravel()))
    model.write_bytes(proto.SerializeToString())
    for verb in (cnpass.optimize, cnpass.retrain, cnpass.search):
        with pytest.raises(ModelError, match="NaN"):
            verb(model, sigma=0.5, output=tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
