"""Copies of weights: trained with, measured with, recorded, and never more than their tiles have room for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import cnpass
from cnpass.document import Document
from cnpass.optimization import stages
from cnpass.passes.analog import analog_nodes
from cnpass.passes.pipeline import Pipeline
from cnpass.placement import measuring
from cnpass.records import SCHEMAS
from cnpass.runtime.copies import Copies
from cnpass.training.crossbars import Crossbars

OPTIONS: dict[str, Any] = {"sigma": 1.2, "epochs": 4, "workers": 1}
SEARCH: dict[str, Any] = OPTIONS | {"trials": 2, "max_overhead": 0.5}
COPIES = {"first": Copies(28, 4, 9), "second": Copies(7, 4, 36), "last": Copies(4)}
"""What fits above 9, 36 and 64 rows in tiles of 256."""


def _copies(model: Path) -> dict[str, Copies]:
    return {node.name: Copies.from_attributes(node.attrs) for node in analog_nodes(Document.load(model))}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Crossbars]:
    """The crossbars of every training and of every process of a search."""
    seen = []
    train, start = stages.train, measuring.PlacementRunner.__init__

    def watched(forward: Any, problem: Any, *rest: Any, **named: Any) -> Any:
        assert problem.crossbars == problem.validator.crossbars
        seen.append(problem.crossbars)
        return train(forward, problem, *rest, **named)

    def started(self: Any, job: Any) -> None:
        start(self, job)
        seen.append(self._validator.crossbars)

    monkeypatch.setattr(stages, "train", watched)
    monkeypatch.setattr(measuring.PlacementRunner, "__init__", started)
    return seen


def test_optimize_trains_and_measures_with_the_copies_that_it_writes(model: Path, trained) -> None:
    output = model.with_name("quadrants.cnpass.onnx")
    record = cnpass.optimize(model, replicate=True, chips=6, **SEARCH)
    beside = json.loads(output.with_suffix(".json").read_text())
    jsonschema.validate(beside, json.loads((SCHEMAS / "optimize.json").read_text()))
    found = record.replication
    assert found is not None
    assert found.copies == {"first": 256 / 9, "second": 256 / 36, "last": 4}
    assert (found.tile_rows, found.tile_cols) == (256, 256)
    assert found.before.tiles == found.after.tiles == 3
    assert found.before.adc_conversions == found.after.adc_conversions == 64 * 4 + 16 * 4 + 4
    assert (found.before.cells_used, found.after.cells_used) == (436, 256 * 4 + 256 * 4 + 4 * 256)
    assert len(trained) > 3
    assert all(dict(zip(COPIES, crossbars.copies.values(), strict=True)) == COPIES for crossbars in trained)
    assert _copies(output) == COPIES
    again = cnpass.evaluate(output, str(model.with_suffix(".npz")), chips=6)
    assert again.points[0].mean == record.after.mean
    # Copies are a part of the method of their own, so what came in is measured with them, too.
    alone = cnpass.optimize(
        model, output=model.with_name("alone.onnx"), retrain=False, compensation=False, sigma=1.2, chips=6
    )
    assert alone.replication is None
    assert record.before.std < alone.before.std
    # A second run takes the model as it is mapped.
    second = cnpass.optimize(
        output,
        model.with_suffix(".npz"),
        output=model.with_name("second.onnx"),
        retrain=False,
        compensation=False,
        sigma=1.2,
        chips=6,
    )
    assert second.before.mean == record.after.mean
    assert second.replication == found
    assert not any("left out" in note for note in second.notes)


def test_training_sees_the_chips_that_are_measured(model: Path, trained) -> None:
    """Numbered chips with copies have the same bits in torch as in ONNX Runtime."""
    cnpass.retrain(model, replicate=True, tile_rows=64, **OPTIONS)
    (crossbars,) = {id(each): each for each in trained}.values()
    assert dict(crossbars.copies) == {"k1": Copies(7, 1, 9), "k2": Copies(1, 28, 36)}
    document = Document.load(model.with_name("quadrants.retrained.onnx"))
    mapped = document.copy()
    Pipeline.parse("map-crossbar{sigma=1.2}").run(mapped)
    tensors = document.tensors()
    weights = {name: torch.from_numpy(np.array(tensors[name].values)) for name in ("k1", "k2", "fc")}
    chip = crossbars.chip(weights, 3, seed=0)
    plain = document.copy()
    for name, value in chip.items():
        plain.tensors()[name].values = value.numpy()
    x = np.load(model.with_suffix(".npz"))["x_test"][:8]
    expected = cnpass.Session(mapped.to_proto()).run(x, chip=3)[0]
    np.testing.assert_allclose(cnpass.Session(plain.to_proto()).run(x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("verb", ["retrain", "search"])
def test_plain_models_keep_them_for_when_they_are_mapped(model: Path, tmp_path: Path, verb: str) -> None:
    options = OPTIONS if verb == "retrain" else SEARCH
    record = getattr(cnpass, verb)(model, output=tmp_path / "plain.onnx", replicate=True, **options)
    assert record.replication.copies == {"first": 256 / 9, "second": 256 / 36, "last": 4}
    jsonschema.validate(json.loads(record.to_json()), json.loads((SCHEMAS / f"{verb}.json").read_text()))
    data = str(model.with_suffix(".npz"))
    document = Document.load(tmp_path / "plain.onnx")
    Pipeline.parse("map-crossbar{sigma=1.2}").run(document)
    document.save(tmp_path / "mapped.onnx")
    assert _copies(tmp_path / "mapped.onnx") == COPIES
    chip = cnpass.calibrate(tmp_path / "mapped.onnx", data, output=tmp_path / "chip.onnx", max_overhead=2.0)
    assert _copies(tmp_path / "chip.onnx") == COPIES
    points = cnpass.evaluate(tmp_path / "plain.onnx", data, sigma=1.2, chips=2).points
    mapped = cnpass.evaluate(tmp_path / "mapped.onnx", data, chips=2).points
    assert points == mapped
    assert not any("left out" in note for note in chip.notes)


def test_tiles_without_room_leave_one_device_per_weight(model: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"retrain": False, "compensation": False, "sigma": 1.2, "chips": 2}
    record = cnpass.optimize(model, output=tmp_path / "a.onnx", replicate=True, tile_rows=1, **few)
    assert record.replication is None
    plain = cnpass.optimize(model, output=tmp_path / "b.onnx", **few)
    assert record.before == plain.before
