"""The main job: what it brings, what it writes, what it must not look at, and how it goes on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

import cnpass
from cnpass.document import Document
from cnpass.errors import DataError, ModelError, UsageError
from cnpass.files import write_text
from cnpass.optimization import stages
from cnpass.optimization.job import Job
from cnpass.passes.pipeline import Pipeline
from cnpass.records import SCHEMAS, OptimizeRecord
from cnpass.training.retrain import TrainResult

BUNDLED = Path(__file__).resolve().parents[2] / "models"
OPTIONS: dict[str, Any] = {"sigma": 1.2, "chips": 12, "epochs": 8, "trials": 2, "max_overhead": 0.5}


def _optimize(model: Path, output: Path | None = None, **options: Any) -> OptimizeRecord:
    return cnpass.optimize(model, output=output, **(OPTIONS | options))


def _weights(path: Path) -> dict[str, bytes]:
    graph = onnx.load(path).graph
    return {i.name: numpy_helper.to_array(i).tobytes() for i in graph.initializer}


def test_accuracy_under_variation_comes_back(model: Path) -> None:
    record = _optimize(model, epochs=32)
    assert record.clean > 0.75
    assert record.after.mean > record.before.mean + 0.02
    assert record.retention.after == pytest.approx(record.after.mean / record.clean)
    assert record.epochs is not None
    assert 32 < record.epochs <= 3 * 32 + 11 + 8, "three trainings, the shared compensation, the chosen one"
    steps = {rung.step: rung.point.mean for rung in record.ladder}
    first, placed, trained = list(steps)[:5], *list(steps)[5:6], list(steps)[6:]
    assert first == [
        "no correction",
        "mean-gain correction",
        "closed-form compensation",
        "centred inputs",
        "bypass compensation, untrained",
    ]
    assert placed.endswith(" compensation")
    injection, penalty, longest = trained
    assert injection == f"noise injection and {placed}"
    assert penalty == f"noise injection and Lipschitz penalty and {placed}"
    assert longest in {f"{injection}, trained on", f"{penalty}, trained on"}
    assert min(steps[injection], steps[longest]) > steps["no correction"] + 0.02
    assert steps["centred inputs"] > steps["mean-gain correction"]
    assert (record.n.train, record.n.val, record.n.test) == (160, 60, 80)
    output = model.with_name("quadrants.cnpass.onnx")
    assert record.output == str(output)
    beside = json.loads(output.with_suffix(".json").read_text())
    jsonschema.validate(beside, json.loads((SCHEMAS / "optimize.json").read_text()))
    assert OptimizeRecord.model_validate(beside) == record
    again = cnpass.evaluate(output, chips=12, data=str(model.with_suffix(".npz")))
    assert again.points[0].mean == record.after.mean
    assert again.clean == record.after_clean


def test_a_killed_run_ends_as_one_that_was_not(
    model: Path, tmp_path: Path, countdown, killed, monkeypatch
) -> None:
    monkeypatch.setattr("cnpass.training.retrain._SAVE_EVERY", 0.0)
    seen = countdown()
    whole = _optimize(model, tmp_path / "whole.onnx", progress=seen)
    stages_of_run = dict.fromkeys(seen.seen)
    assert {"retraining", "shared compensation", "placement", "training on", "chips after"} < set(
        stages_of_run
    )
    run, output = tmp_path / "run", tmp_path / "killed.onnx"
    for name in stages_of_run:
        with pytest.raises(killed):
            _optimize(model, output, run=run, progress=countdown(name, 1))
        assert not output.exists()
    resumed = _optimize(model, output, run=run, progress=countdown())
    assert _weights(output) == _weights(tmp_path / "whole.onnx")
    same = {"output", "seconds"}
    assert resumed.model_dump(exclude=same) == whole.model_dump(exclude=same)


def test_a_finished_run_asked_again_gives_its_record(model: Path, tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    record = _optimize(model, run=run)
    monkeypatch.setattr(stages, "train", lambda *_, **__: pytest.fail("trained again"))
    assert _optimize(model, run=run) == record
    with pytest.raises(UsageError, match="another recipe"):
        _optimize(model, run=run, sigma=0.3)


def test_a_kill_around_the_writing_of_the_output_leaves_nothing_to_mend(
    model: Path, tmp_path: Path, monkeypatch
) -> None:
    run, output = tmp_path / "run", model.with_name("quadrants.cnpass.onnx")
    beside = output.with_suffix(".json")
    options = {"run": run, "retrain": False, "compensation": False}

    def killed(path: Path, text: str) -> None:
        if path == beside:
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patched:
        patched.setattr("cnpass.optimization.setting.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            _optimize(model, **options)
    assert output.exists()
    assert not beside.exists()
    record = _optimize(model, **options)
    assert OptimizeRecord.model_validate_json(beside.read_text()) == record

    output.unlink()
    beside.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _optimize(model, **options)
    assert not output.exists()
    assert _optimize(model, **options).hashes == record.hashes
    output.write_bytes(b"the user's own")
    with pytest.raises(UsageError, match="exists already"):
        _optimize(model, **options)


def test_what_does_not_help_is_not_kept(model: Path, monkeypatch) -> None:
    def ruin(forward: Any, problem: Any, *_: Any, **__: Any) -> TrainResult:
        del problem
        weights = {key: 0 * weight.detach() for key, weight in forward.module.weights.items()}
        return TrainResult(weights, 1.0, 0.0, 1)

    monkeypatch.setattr(stages, "train", ruin)
    monkeypatch.setattr(stages, "correct_mean_gain", lambda *_: None)
    monkeypatch.setattr(stages, "centre_inputs", lambda _: None)
    monkeypatch.setattr(stages, "fit_closed_form", lambda job: stages.Placed(job.source, ()))
    monkeypatch.setattr(stages, "insert_untrained", lambda job, *_: stages.Placed(job.base, ()))
    record = _optimize(model)
    assert [rung.kept for rung in record.ladder] == [True, False, False, False, False]
    assert record.after == record.before
    assert record.after_clean == record.clean
    assert not record.placement
    assert record.overhead.params == 0
    source, written = _weights(model), _weights(model.with_name("quadrants.cnpass.onnx"))
    assert {name: written[name] for name in source} == source


def test_without_training_the_model_is_only_mapped(model: Path) -> None:
    record = _optimize(model, retrain=False, compensation=False, ramp=(1.0,), kinds=("gain",))
    assert record.after == record.before
    assert not record.ladder
    assert "--ramp does nothing beside --no-retrain" in record.notes
    assert any("--kinds do nothing beside --no-compensation" in note for note in record.notes)


def test_a_fixed_batch_of_one_trains_like_a_free_one(fixed_model: Path, model: Path) -> None:
    fixed = _optimize(fixed_model, compensation=False)
    free = _optimize(model, compensation=False)
    assert fixed.after.mean == pytest.approx(free.after.mean, abs=1e-6)
    shape = onnx.load(fixed_model.with_name("fixed.cnpass.onnx")).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 1


def test_without_labels_the_clean_model_is_followed(tmp_path: Path) -> None:
    model = tmp_path / "digits.onnx"
    shutil.copyfile(BUNDLED / "digits-lenet5.onnx", model)
    with np.load(BUNDLED / "digits-lenet5.npz") as arrays:
        np.savez(model.with_suffix(".npz"), **{name: arrays[name] for name in arrays if name.startswith("x")})
    record = _optimize(model, compensation=False, sigma=0.5, beta=0.0, epochs=30)
    assert (record.metric, record.clean) == ("agreement", 1.0)
    steps = {rung.step: rung.point.mean for rung in record.ladder}
    assert steps["noise injection"] > steps["no correction"] + 0.05


def test_the_bound_on_overhead_holds(model: Path) -> None:
    record = _optimize(model, max_overhead=0.0, retrain=False)
    assert not record.placement
    assert "no compensation fits the overhead allowed" in record.notes


def test_a_mapped_model_keeps_its_chips_unless_told(model: Path, tmp_path: Path) -> None:
    document = Document.load(model)
    Pipeline.parse("map-crossbar{sigma=1.2,seed=5}").run(document)
    mapped, data = tmp_path / "mapped.onnx", str(model.with_suffix(".npz"))
    document.save(mapped)
    (point,) = cnpass.evaluate(mapped, data, chips=4).points
    for seed, told in ((5, {}), (3, {"seed": 3})):
        record = cnpass.optimize(
            mapped, data, chips=4, retrain=False, compensation=False, output=tmp_path / f"{seed}.onnx", **told
        )
        assert (record.before == point) == (seed == 5)
        assert record.seeds == {"chips": seed, "training": seed}
        assert cnpass.evaluate(tmp_path / f"{seed}.onnx", data, chips=4).points == [record.after]


def test_what_a_mapped_model_loses_is_said(model: Path, tmp_path: Path) -> None:
    document = Document.load(model)
    Pipeline.parse("map-crossbar{sigma=0.8,tile-rows=64},replicate-weights{max-copies=3}").run(document)
    mapped = tmp_path / "mapped.onnx"
    document.save(mapped)
    data = str(model.with_suffix(".npz"))
    record = cnpass.optimize(
        mapped, data, retrain=False, compensation=False, chips=2, output=tmp_path / "o.onnx"
    )
    (lost,) = (note for note in record.notes if "left out" in note)
    assert "tile-rows" in lost
    assert "copies" not in lost


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_finished_run_whose_external_data_are_damaged_writes_them_again(
    model: Path, tmp_path: Path, damage: str
) -> None:
    proto = onnx.load(model)
    external_data_helper.convert_model_to_external_data(proto, location="weights", size_threshold=64)
    external_data_helper.write_external_data_tensors(proto, str(tmp_path))
    model.write_bytes(proto.SerializeToString())
    output, run = tmp_path / "out.onnx", tmp_path / "run"
    record = _optimize(model, output, run=run, retrain=False, compensation=False)
    data = output.with_name("out.onnx.data")
    whole = data.read_bytes()
    if damage == "gone":
        data.unlink()
    else:
        data.write_bytes(whole[:-1])
    again = _optimize(model, output, run=run, retrain=False, compensation=False, force=True)
    assert data.read_bytes() == whole
    assert again.hashes == record.hashes
    cnpass.Session(output)


def test_options_that_do_nothing_for_a_model_or_its_data_are_named(model: Path, tmp_path: Path) -> None:
    record = _optimize(model, tmp_path / "a.onnx", retrain=False, compensation=False, tile_rows=64)
    assert "--tile-rows does nothing: no weight has copies" in record.notes
    record = _optimize(
        model, tmp_path / "b.onnx", retrain=False, compensation=False, tile_rows=64, replicate=True
    )
    assert not any("tile" in note for note in record.notes)
    record = _optimize(
        model, tmp_path / "d.onnx", retrain=False, compensation=False, tile_rows=1, replicate=True
    )
    assert "--replicate does nothing: tiles of 1 x 256 have no room for copies" in record.notes
    with np.load(model.with_suffix(".npz")) as arrays:
        np.savez(tmp_path / "x.npz", **{name: a for name, a in arrays.items() if name[0] == "x"})
    record = cnpass.retrain(
        model, tmp_path / "x.npz", output=tmp_path / "c.onnx", sigma=0.5, epochs=1, distillation=0.5
    )
    assert any(note.startswith("--distillation does nothing: without labels") for note in record.notes)


def test_mirrored_images_need_a_model_of_images_before_any_work(model: Path, monkeypatch) -> None:
    monkeypatch.setattr("cnpass.optimization.setting.MonteCarlo", lambda *_, **__: pytest.fail("worked"))
    proto = onnx.load(model)
    del proto.graph.node[:-1]
    proto.graph.node[0].input[0] = "x"
    shape = proto.graph.input[0].type.tensor_type.shape
    del shape.dim[1:]
    shape.dim.add(dim_value=64)
    model.write_bytes(proto.SerializeToString())
    with np.load(model.with_suffix(".npz")) as arrays:
        flat = {n: a.reshape(len(a), -1) if n[0] == "x" else a for n, a in arrays.items()}
    np.savez(model.with_suffix(".npz"), **flat)
    with pytest.raises(UsageError, match="--augment: the model's first input is no image"):
        _optimize(model, augment=("flip",))


def test_refusals_come_before_any_work(model: Path, monkeypatch) -> None:
    monkeypatch.setattr("cnpass.optimization.setting.MonteCarlo", lambda *_, **__: pytest.fail("worked"))
    output = model.with_name("quadrants.cnpass.onnx")
    output.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        _optimize(model)
    assert output.read_bytes() == b"mine"
    output.unlink()
    with pytest.raises(UsageError, match="device"):
        _optimize(model, device="unknown")
    data = model.with_suffix(".npz")
    with np.load(data) as arrays:
        tested = {name: arrays[name] for name in ("x_test", "y_test")}
    np.savez(data, **tested)
    with pytest.raises(DataError, match="no training samples"):
        _optimize(model)
    plain = model.with_name("plain.onnx")
    proto = onnx.load(model)
    del proto.graph.node[:]
    proto.graph.node.append(onnx.helper.make_node("Softmax", ["x"], ["y"]))
    plain.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="no node can run on a crossbar"):
        _optimize(plain, data=str(data))


def test_the_last_training_takes_what_is_left_of_a_budget(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds_per_step(job: Job, document: Document) -> float:
        return 1.0 if document is job.source else 1e9  # what compensation does to a step, and more

    monkeypatch.setattr(Job, "seconds_per_step", seconds_per_step)
    record = _optimize(model, epochs=None, budget=80, trials=1, beta=0)
    assert record.ladder[-1].step.endswith((", trained on", ", for longer"))
    assert record.epochs == 4 + 1 + 1 + 1, "of 160 samples an epoch takes two steps"


NOTHING = {"retrain": False, "compensation": False}


def test_a_finished_run_is_told_with_the_output_that_was_asked_for(model: Path, tmp_path: Path) -> None:
    """The run folder knows its last output only; what else was written from it is no other's."""
    run, other = tmp_path / "run", tmp_path / "other.onnx"
    first = _optimize(model, run=run, **NOTHING)
    assert _optimize(model, other, run=run, **NOTHING).output == str(other)
    again = _optimize(model, run=run, min_retention=0.1, **NOTHING)
    assert (again.output, again.recipe["min-retention"]) == (first.output, 0.1)
    path = Path(first.output).with_suffix(".json")
    path.unlink()
    _optimize(model, run=run, **NOTHING)
    assert json.loads(path.read_text())["output"] == first.output


@pytest.mark.parametrize(
    ("options", "device", "params"),
    [
        ({}, "gaussian", {"sigma": 0.1}),
        ({"param": {"stuck_low": 0.02}}, "gaussian", {"sigma": 0.1, "stuck_low": 0.02}),
        ({"sigma": 0.3}, "gaussian", {"sigma": 0.3}),
        ({"device": "lognormal"}, "lognormal", {"sigma": 0.5}),
    ],
)
def test_a_mapped_model_is_optimised_for_its_own_device(
    model: Path, tmp_path: Path, options: dict[str, Any], device: str, params: dict[str, float]
) -> None:
    document = Document.load(model)
    Pipeline.parse("map-crossbar{device=gaussian,sigma=0.1}").run(document)
    document.save(tmp_path / "mapped.onnx")
    given = {"data": model.with_suffix(".npz"), "chips": 2, **NOTHING, **options}
    record = cnpass.optimize(tmp_path / "mapped.onnx", **given)
    assert record.after.device == device
    assert params.items() <= record.after.params.items()
    calibrated = cnpass.calibrate(
        tmp_path / "mapped.onnx", data=given["data"], correction="affine", max_overhead=1.0, **options
    )
    assert (calibrated.device, calibrated.params) == (record.after.device, record.after.params)


def test_decibels_have_no_retention(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="r2"))
    maps = tmp_path / "maps.onnx"
    maps.write_bytes(proto.SerializeToString())
    with np.load(model.with_suffix(".npz")) as arrays:
        np.savez(maps.with_suffix(".npz"), **{name: arrays[name] for name in arrays if name[0] == "x"})
    record = _optimize(maps, **NOTHING)
    assert (record.metric, record.retention) == ("ser", None)
    with pytest.raises(UsageError, match="--min-retention"):
        _optimize(maps, force=True, min_retention=0.3, **NOTHING)


def test_only_kinds_that_are_named_are_inserted(model: Path) -> None:
    record = _optimize(model, retrain=False, kinds=("gain",), epochs=1)
    steps = [rung.step for rung in record.ladder]
    assert "closed-form compensation" not in steps
    assert {place.kind for place in record.placement} <= {"gain"}
