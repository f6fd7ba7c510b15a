"""A correction for one chip: what it brings there, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import cnpass
from cnpass.document import Document
from cnpass.errors import DataError, ModelError, UsageError
from cnpass.passes.pipeline import Pipeline
from cnpass.records import SCHEMAS

OPTIONS: dict[str, Any] = {"sigma": 0.8, "max_overhead": 1.0, "samples": 160}


def _on_chip(model: Path, x: np.ndarray, chip: int) -> np.ndarray:
    return np.asarray(cnpass.Session(model).run(x, chip=chip)[0])


def _constants(model: Path) -> dict[str, bytes]:
    return {i.name: numpy_helper.to_array(i).tobytes() for i in onnx.load(model).graph.initializer}


def _selector(model: Path) -> str:
    """The name of the scalar that selects the chip."""
    metadata = onnx.load(model).metadata_props
    return next(entry.value for entry in metadata if entry.key == "cnpass.chip_input")


@pytest.mark.parametrize("correction", ["affine", "low-rank"])
def test_a_chip_is_brought_nearer_to_the_ideal_one(model: Path, correction: str) -> None:
    record = cnpass.calibrate(model, chip=7, correction=correction, **OPTIONS)
    output = model.with_name("quadrants.chip7.onnx")
    beside = json.loads(output.with_suffix(".json").read_text())
    jsonschema.validate(beside, json.loads((SCHEMAS / "calibrate.json").read_text()))
    assert beside == json.loads(record.to_json())
    assert [node.node for node in record.nodes] == ["first", "second", "last"]
    assert all(node.error_after < node.error_before for node in record.nodes)
    assert record.after >= record.before
    assert record.kept
    assert record.clean == cnpass.evaluate(model, sigma=0.8, chips=2).clean
    with np.load(model.with_suffix(".npz")) as arrays:
        right = _on_chip(output, arrays["x_test"], 7).argmax(1) == arrays["y_test"]
    assert record.after == right.mean()
    # The file's own chip is the one that it was made for.
    assert _constants(output)[_selector(output)] == np.int64(7).tobytes()


def test_a_model_for_the_mean_gain_is_brought_nearer_to_what_it_is_made_for(
    model: Path, tmp_path: Path
) -> None:
    corrected = Document.load(model)
    Pipeline.parse("correct-mean-gain{sigma=0.8}").run(corrected)
    corrected.save(tmp_path / "corrected.onnx")
    data, output = model.with_suffix(".npz"), tmp_path / "chip.onnx"
    record = cnpass.calibrate(tmp_path / "corrected.onnx", data, chip=7, output=output, **OPTIONS)
    assert record.clean == pytest.approx(cnpass.evaluate(model, sigma=0.8, chips=2).clean, abs=0.01)
    with np.load(data) as arrays:
        x = arrays["x_test"]
    wanted, got = np.asarray(cnpass.Session(model).run(x)[0]), _on_chip(output, x, 7)
    slope = float((wanted * got).sum() / (wanted * wanted).sum())
    assert slope == pytest.approx(1, abs=0.1), "each of three layers would else lack its gain"


@pytest.fixture
def normalised(model: Path) -> Path:
    """The same model with BatchNormalization behind both convolutions, whose means are one initializer."""
    proto = onnx.load(model)
    nodes, statistics = proto.graph.node, {"g": 1.5, "b": 0.1, "m": 0.2, "v1": 0.3, "v2": 0.1}
    for place, (tensor, variance) in ((1, ("c1", "v1")), (4, ("c2", "v2"))):
        norm = helper.make_node("BatchNormalization", [tensor, "g", "b", "m", variance], [f"{tensor}.n"])
        nodes.insert(place, norm)
        nodes[place + 1].input[0] = f"{tensor}.n"
    for name, value in statistics.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.full(4, value, np.float32), name))
    path = model.with_name("normalised.onnx")
    path.write_bytes(proto.SerializeToString())
    path.with_suffix(".npz").write_bytes(model.with_suffix(".npz").read_bytes())
    return path


def _channels(model: Path, chip: int) -> list[np.ndarray]:
    """Mean and deviation by channel of what the normalisations give on the training inputs."""
    proto = onnx.load(model)
    proto.graph.output.extend([onnx.ValueInfoProto(name="c1.n"), onnx.ValueInfoProto(name="c2.n")])
    with np.load(model.parent / "quadrants.npz") as arrays:
        _, *outputs = cnpass.Session(proto).run(arrays["x_train"], chip=chip)
    return [f(output, axis=(0, 2, 3)) for output in outputs for f in (np.mean, np.std)]


def test_normalisations_get_statistics_of_the_chip(normalised: Path) -> None:
    output = normalised.with_name("normalised.chip7.onnx")
    record = cnpass.calibrate(normalised, chip=7, correction="batch-norm", **OPTIONS | {"max_overhead": 0.0})
    assert record.kept
    assert record.overhead.params == 0
    assert [(node.node, node.rank) for node in record.nodes] == [("c1.n", 0), ("c2.n", 0)]
    assert all(node.error_after < node.error_before for node in record.nodes)
    before, after = _constants(normalised), _constants(output)
    assert {name for name in before if before[name] != after[name]} == {"m", "v1", "v2"}
    assert len(set(after) - set(before)) == 2  # a mean for the other node, and what selects the chip
    mapped = normalised.with_name("mapped.onnx")
    document = Document.load(normalised)
    Pipeline.parse("map-crossbar{sigma=0.8}").run(document)
    document.save(mapped)
    ideal, chip, corrected = _channels(mapped, -1), _channels(mapped, 7), _channels(output, 7)
    for wanted, was, found in zip(ideal, chip, corrected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
        assert np.abs(was - wanted).max() > 0.02
    with np.load(normalised.with_suffix(".npz")) as arrays:
        x, y = arrays["x_test"], arrays["y_test"]
    assert record.after == (_on_chip(output, x, 7).argmax(1) == y).mean()


def test_a_normalisation_before_all_analog_nodes_keeps_its_statistics(normalised: Path) -> None:
    """Nothing varies there; those behind are fitted all the same."""
    proto = onnx.load(normalised)
    for name, value in (("g0", 2.0), ("b0", 0.3), ("m0", -0.1), ("v0", 0.5)):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(1, value, np.float32), name))
    first = helper.make_node("BatchNormalization", ["x", "g0", "b0", "m0", "v0"], ["x.n"])
    proto.graph.node.insert(0, first)
    proto.graph.node[1].input[0] = "x.n"
    normalised.write_bytes(proto.SerializeToString())
    record = cnpass.calibrate(normalised, chip=7, correction="batch-norm", **OPTIONS | {"max_overhead": 0.0})
    assert record.kept
    errors = {node.node: (node.error_before, node.error_after) for node in record.nodes}
    assert errors["x.n"] == (0, 0)
    assert all(errors[name][1] < errors[name][0] for name in ("c1.n", "c2.n"))
    after = _constants(normalised.with_name("normalised.chip7.onnx"))
    before = _constants(normalised)
    assert (after["m0"], after["v0"]) == (before["m0"], before["v0"])


def test_the_same_command_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cnpass.calibrate(model, output=tmp_path / f"{name}.onnx", chip=3, **OPTIONS)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_analog_weights_and_what_compensates_them_stay_as_they_are(model: Path, tmp_path: Path) -> None:
    document = Document.load(model)
    passes = "insert-compensation{node=second,kind=gain,ratio=0.5},map-crossbar{sigma=0.8,seed=5}"
    Pipeline.parse(passes).run(document)
    mapped, output = tmp_path / "mapped.onnx", tmp_path / "chip.onnx"
    document.save(mapped)
    data = str(model.with_suffix(".npz"))
    record = cnpass.calibrate(mapped, data, output=output, chip=2, max_overhead=2.0)
    assert record.device == "lognormal"
    assert record.params == {"sigma": 0.8}
    assert record.seeds == {"chips": 5}
    before, after, chip = _constants(mapped), _constants(output), _selector(output)
    assert {name: after[name] for name in before if name != chip} == {
        name: value for name, value in before.items() if name != chip
    }


def test_no_variation_needs_no_correction(model: Path) -> None:
    record = cnpass.calibrate(model, sigma=0.0, max_overhead=1.0)
    assert not record.kept
    assert record.before == record.after == record.clean
    assert record.overhead.params == 0


def test_a_factor_and_an_offset_per_channel_are_all_that_is_inserted(model: Path) -> None:
    record = cnpass.calibrate(model, chip=7, correction="affine", **OPTIONS)
    assert record.kept
    weights = {"first": 4 * 9, "second": 4 * 4 * 9, "last": 64 * 4}
    assert record.overhead.params == 2 * 4 * len(weights) / sum(weights.values())
    assert record.overhead.macs == 0
    # With less allowed than that, as many nodes are corrected as fit.
    allowed = OPTIONS | {"max_overhead": 2 * 4 / sum(weights.values())}
    narrow = cnpass.calibrate(model, chip=7, correction="affine", force=True, **allowed)
    assert len(narrow.nodes) == 1


def test_refusals(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--max-overhead"):
        cnpass.calibrate(model, sigma=0.5, max_overhead=0.0)
    with pytest.raises(ModelError, match=r"--max-overhead 0; allow more$"):
        cnpass.calibrate(model, sigma=0.5, max_overhead=0.0, correction="affine")
    with pytest.raises(ModelError, match="--correction affine"):
        cnpass.calibrate(model, sigma=0.5, correction="batch-norm")
    with pytest.raises(UsageError, match="sigma is given by --sigma already"):
        cnpass.calibrate(model, sigma=0.5, param={"sigma": 0.3})
    with pytest.raises(UsageError, match="--chip"):
        cnpass.calibrate(model, chip=-1)
    (tmp_path / "quadrants.chip0.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        cnpass.calibrate(model)
    data = tmp_path / "test-only.npz"
    with np.load(model.with_suffix(".npz")) as arrays:
        np.savez(data, x_test=arrays["x_test"], y_test=arrays["y_test"])
    with pytest.raises(DataError, match="no training samples"):
        cnpass.calibrate(model, str(data), output=tmp_path / "other.onnx")


def test_a_model_for_one_chip_stays_one(model: Path, tmp_path: Path) -> None:
    record = cnpass.calibrate(model, chip=7, **OPTIONS)
    data = str(model.with_suffix(".npz"))
    for verb in (cnpass.calibrate, cnpass.optimize, cnpass.retrain, cnpass.search):
        with pytest.raises(ModelError, match="was made for chip 7 alone"):
            verb(record.output, data=data, output=tmp_path / "other.onnx")
    lowered = Document.load(record.output)
    Pipeline.parse("lower-analog").run(lowered)
    with pytest.raises(ModelError, match="was made for chip 7 alone"):
        cnpass.calibrate(lowered, data=data, output=tmp_path / "other.onnx")
    measured = cnpass.evaluate(record.output, data=data, chips=2)
    assert any("made for chip 7 alone" in note for note in measured.notes)
    with np.load(data) as arrays:
        x, session = arrays["x_test"], cnpass.Session(record.output)
    own, seventh, ideal = (session.run(x, **given)[0] for given in ({}, {"chip": 7}, {"chip": -1}))
    np.testing.assert_array_equal(own, seventh)
    assert (own != ideal).any()
    with pytest.raises(UsageError, match="whole number"):
        session.run(x, chip=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["", "-1", "7.0", "seven", "4294967295", "5" * 5000])
def test_a_chip_that_is_none_is_not_heeded(model: Path, tmp_path: Path, said: str) -> None:
    document = Document.load(model)
    Pipeline.parse("map-crossbar").run(document)
    document.metadata["cnpass.only_chip"] = said
    document.save(tmp_path / "odd.onnx")
    data = str(model.with_suffix(".npz"))
    assert not cnpass.evaluate(tmp_path / "odd.onnx", data=data, chips=2, workers=1).notes
    with np.load(data) as arrays:
        x, session = arrays["x_test"], cnpass.Session(tmp_path / "odd.onnx")
    np.testing.assert_array_equal(session.run(x)[0], session.run(x, chip=-1)[0])


def test_what_a_correction_costs_is_told_apart_from_what_was_there(model: Path, tmp_path: Path) -> None:
    document = Document.load(model)
    Pipeline.parse("insert-compensation{node=first,kind=linear},map-crossbar{sigma=0.8}").run(document)
    document.save(tmp_path / "compensated.onnx")
    given = {"data": str(model.with_suffix(".npz")), "chip": 7, "correction": "affine", "samples": 160}
    alone = cnpass.calibrate(model, sigma=0.8, max_overhead=1.0, **given)
    record = cnpass.calibrate(tmp_path / "compensated.onnx", max_overhead=1.0, **given)
    assert alone.added == alone.overhead
    assert record.kept
    assert record.added.params == pytest.approx(alone.added.params)
    assert record.overhead.params > record.added.params
