"""The rows of the table that need more than a bundled network: that they run to their end, and go on."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import cnpass
from cnpass import data as datasets
from cnpass.document import Document
from cnpass.optimization.replication import replicate
from cnpass.passes import Pipeline
from cnpass.progress import Progress
from cnpass.recipe import EvaluateRecipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Noise in the shape of CIFAR-10, brighter in one channel for one class in three."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 330), ("test", 70)):
        y = np.arange(count) % 10
        x = rng.integers(0, 128, (count, 3, 32, 32))
        x[np.arange(count), y % 3] += 100
        arrays |= {f"x_{part}": x.astype(np.uint8), f"y_{part}": y.astype(np.uint8)}
    path = tmp_path / "cifar.npz"
    np.savez(path, **arrays)
    return path


def test_a_cut_keeps_training_validation_and_test_images_apart(
    cifar: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rows = importlib.import_module("paper.rows")
    row = replace(rows.ROWS["vgg16-cifar10-cut"], parts=(200, 100, 50))
    with np.load(row.cut(cifar, tmp_path)) as cut, np.load(cifar) as whole:
        for kind in "xy":
            np.testing.assert_array_equal(cut[f"{kind}_train"], whole[f"{kind}_train"][:200])
            np.testing.assert_array_equal(cut[f"{kind}_val"], whole[f"{kind}_train"][200:300])
            np.testing.assert_array_equal(cut[f"{kind}_test"], whole[f"{kind}_test"][:50])
        seen = {image.tobytes() for part in ("train", "val", "test") for image in cut[f"x_{part}"]}
        assert len(seen) == 350


def _bench(rungs: ModuleType, models: Path, data: Path, folder: Path) -> Any:
    return rungs.Bench(
        plain=models / "digits-lenet5.onnx",
        data=data,
        preprocess={},
        seed=0,
        epochs=1,
        rate=1e-3,
        told=True,
        folder=folder,
        training=(1, None),
        device="cpu",
        progress=Progress(),
        train=lambda *_: None,
    )


def test_rungs_without_training_never_look_at_validation_or_test_images(
    models: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "paper")
    rungs = importlib.import_module("rungs")
    made = []
    with np.load(models / "digits-lenet5.npz") as file:
        arrays = dict(file)
    for name in ("as it is", "spoilt"):
        data = tmp_path / f"{name}.npz"
        spoilt = {k: v.max() - v if name == "spoilt" and "train" not in k else v for k, v in arrays.items()}
        np.savez(data, **spoilt)
        folder = tmp_path / name
        folder.mkdir()
        bench = _bench(rungs, models, data, folder)
        for rung in ("mean-gain", "closed-form", "closed-form-full", "probes", "centring", "bypass"):
            assert rungs.RUNGS[rung].make(bench, rung) == 0
        made.append({path.name: path.read_bytes() for path in folder.glob("*.onnx")})
    assert len(made[0]) == 6
    assert made[0] == made[1]


def test_a_rung_is_measured_with_its_mean_gain_corrected_for_other_sigmas(
    models: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "paper")
    run, rungs = importlib.import_module("run"), importlib.import_module("rungs")
    data = models / "digits-lenet5.npz"
    bench = _bench(rungs, models, data, tmp_path)
    rungs.RUNGS["mean-gain"].make(bench, "best")
    monkeypatch.setattr(run, "OTHERS", (0.3,))
    figures = run.measure(bench, "best", rungs.RUNGS["mean-gain"], 2)
    session = ort.InferenceSession(tmp_path / "best.onnx")
    with np.load(data) as arrays:
        right = (
            session.run(None, {session.get_inputs()[0].name: arrays["x_test"]})[0].argmax(1)
            == arrays["y_test"]
        )
    assert figures["clean"] == right.mean(), "the ideal chip as it is"
    found = run.measure_regained(bench, "best", 3)
    document = Document.load(bench.plain)
    Pipeline.parse("fold-batch-norm,correct-mean-gain{sigma=0.3}").run(document)
    expected = cnpass.evaluate(document, data, sigma=(0.3,), chips=3, workers=1)
    (point,) = found["points"]
    assert point["mean"] == pytest.approx(expected.points[0].mean, abs=1e-3)
    assert found["clean"] == pytest.approx(
        cnpass.evaluate(bench.plain, data, sigma=(0,), chips=2).clean, abs=1e-3
    )


def test_chips_in_torch_are_those_of_onnx_runtime(models: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    on_torch = importlib.import_module("paper.on_torch")
    document = replicate(Document.load(models / "digits-lenet5.onnx"), 64, 256)
    data = str(models / "digits-lenet5.npz")
    dataset = datasets.prepare(document.proto, document.path, EvaluateRecipe.build(None, {"data": data}))
    expected = cnpass.evaluate(document, data, sigma=(0.3, 0.8), chips=3, seed=4, workers=1)

    def measured() -> tuple[float, list[float]]:
        clean, points = on_torch.over_chips(
            document,
            dataset.test,
            (0.3, 0.8),
            3,
            seed=4,
            device=torch.device("cpu"),
            path=tmp_path / "chips.json",
            progress=Progress(),
        )
        return clean, [point.mean for point in points]

    first = measured()
    assert first[0] == pytest.approx(expected.clean, abs=0.002)
    assert first[1] == pytest.approx([point.mean for point in expected.points], abs=0.002)
    # Finished chips are read, not measured again.
    done = json.loads((tmp_path / "chips.json").read_text())
    (tmp_path / "chips.json").write_text(json.dumps({name: [0.0, 0.5] for name in done}))
    lasts = [values[2] for values in done.values()]
    assert measured()[1] == pytest.approx([(0.5 + last) / 3 for last in lasts])


def test_a_killed_vgg16_trains_on_to_the_same_network(
    cifar: Path, tmp_path: Path, monkeypatch, script
) -> None:
    """Two epochs at once, and one after the other in processes of their own."""
    train = script("train_vgg16")
    command = ["train_vgg16.py", "--data", str(cifar), "--width", "2"]

    def trained(name: str, epochs: str) -> onnx.ModelProto:
        monkeypatch.setattr(sys, "argv", [*command, "--epochs", epochs, "--out", str(tmp_path / name)])
        train.main()
        return onnx.load(tmp_path / name)

    whole = trained("whole.onnx", "2")
    run, epochs = train.Training.run, []

    def once(self: object, *arguments: torch.Tensor) -> None:
        if epochs:
            raise KeyboardInterrupt
        epochs.append(1)
        run(self, *arguments)

    monkeypatch.setattr(train.Training, "run", once)
    with pytest.raises(KeyboardInterrupt):
        trained("killed.onnx", "2")
    monkeypatch.setattr(train.Training, "run", run)
    resumed = trained("killed.onnx", "2")
    assert [i.raw_data for i in whole.graph.initializer] == [i.raw_data for i in resumed.graph.initializer]
    assert [node.op_type for node in whole.graph.node].count("Conv") == 13
    assert "BatchNormalization" not in {node.op_type for node in whole.graph.node}


@pytest.mark.slow
def test_a_dry_run_goes_on_after_a_kill_and_fills_the_table(cifar: Path, tmp_path: Path, monkeypatch) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "paper" / "run.py")]
    rungs = ["plain", "penalty", "chip-affine"]  # one of each sort
    row = ["vgg16-cifar10-cut", "--data", str(cifar), "--out", str(tmp_path)]
    command = [*script, *row, "--dry-run", "--rungs", *rungs]
    folder = tmp_path / "dry" / "vgg16-cifar10-cut" / "seed-0"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (folder / "penalty.run").exists():
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.figures.json")}
    assert "plain.figures.json" in made
    subprocess.run(command, env=environment, check=True)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module("paper_table")
    assert {path.name.partition(".")[0] for path in folder.glob("*.figures.json")} == set(rungs)
    assert all((folder / name).stat().st_mtime_ns == time_ for name, time_ in made.items())
    monkeypatch.setattr(table, "STORE", tmp_path / "figures.json")
    table.collect(tmp_path / "dry")
    text = table.table()
    assert "A cut: every layer has 16/64 of the filters" in text
    assert text.count("(per chip)") == 1


def test_the_store_keeps_records_without_paths_and_trials(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module("paper_table")
    folder = tmp_path / "lenet5-mnist" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "best.figures.json").write_text('{"points": []}')
    record = {
        "input": "/home/me/best.onnx",
        "recipe": {"data": "/home/me/mnist.npz", "workers": 2, "rate": 0.003},
        "trials": [1, 2],
        "notes": [],
        "seeds": {"chips": 0},
    }
    (folder / "best.json").write_text(json.dumps(record))
    monkeypatch.setattr(table, "STORE", tmp_path / "figures.json")
    table.collect(tmp_path)
    found = json.loads(table.STORE.read_text())["lenet5-mnist"]["0"]["best"]
    assert found == {"points": [], "record": {"recipe": {"rate": 0.003}, "seeds": {"chips": 0}, "notes": []}}


def test_the_table_tells_spread_over_chips_and_seeds_and_what_a_rung_took_in_all(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module("paper_table")

    def figures(mean: float, std: float, epochs: int) -> dict[str, Any]:
        point = {
            "device": "lognormal",
            "seed": 0,
            "chips": 30,
            "params": {"sigma": 0.5},
            "mean": mean,
            "std": std,
            "ci95": [mean - 0.01, mean + 0.01],
            "p05": mean - 0.1,
            "min": mean - 0.2,
        }
        return {
            "title": "",
            "scope": "agnostic",
            "clean": 0.8,
            "points": [point],
            "overhead": {"params": 0.0, "macs": 0.0},
            "epochs": epochs,
            "seconds": 60.0 * epochs,
        }

    seeds = {
        "0": {
            "plain": figures(0.3, 0.03, 9),
            "penalty": figures(0.4, 0.02, 5),
            "paper": figures(0.5, 0.01, 7),
        },
        "1": {"plain": figures(0.2, 0.04, 9)},
    }
    best = figures(0.6, 0.01, 9)
    best["points"].append({"params": {"sigma": 0.8}, "mean": 0.5})
    best["regained"] = {"clean": 0.7, "points": [{"params": {"sigma": 0.8}, "mean": 0.55}]}
    steps = [("no correction", 0.3, True), ("probe compensation, untrained", 0.2, False)]
    best["record"] = {
        "ladder": [
            {"step": step, "scope": "agnostic", "kept": kept, "point": figures(mean, 0.01, 0)["points"][0]}
            for step, mean, kept in steps
        ],
        "placement": [{"node": "conv1", "kind": "gain", "ratio": 0.5}],
    }
    seeds["0"]["best"] = best
    brief = figures(0.6, 0.01, 9)
    brief["record"] = best["record"] | {"placement": []}
    seeds["0"]["brief"] = brief
    cells = {"tiles": 6, "cells_free": 1000, "adc_conversions": 7000}
    copied = figures(0.6, 0.01, 9)
    copied["record"] = {
        "replication": {
            "copies": {"conv1": 3.414, "fc": 1.28},
            "tile_rows": 256,
            "tile_cols": 256,
            "before": cells | {"cells_used": 2000},
            "after": cells | {"cells_used": 2500, "cells_free": 500},
        }
    }
    seeds["0"]["best-copies"] = copied
    monkeypatch.setattr(table, "STORE", tmp_path / "figures.json")
    table.STORE.write_text(json.dumps({"lenet5-mnist": seeds}))
    text = table.table()
    ladder, (head, _, grid, regained), copies, job = (
        [line.split(" | ") for line in part.splitlines() if line.startswith("|")]
        for part in text.split("\n\n")
        if "\n|" in part or part.startswith("|")
    )
    assert [head[1:], grid[1:], regained[1:]] == [
        ["0", "0.5", "0.8 |"],
        ["80.00", "60.00", "50.00 |"],
        ["70.00", "60.00", "55.00 |"],
    ]
    assert [line[0].removeprefix("| ") for line in copies] == [
        "1.28 to 3.41 devices per weight, by layer",
        "|---|---|---|---|",
        "without copies",
        "with copies",
    ]
    assert [line[1:] for line in copies[2:]] == [["2,000", "6", "7,000 |"], ["2,500", "6", "7,000 |"]]
    assert "- seed 0, `best`, 9 epochs: `conv1` gain 0.5" in text
    assert len(job) == 4
    assert job[2] == ["| seed 0, `best`, 9 epochs", "**30.00**", "20.00 |"]
    assert text.endswith("- seed 0, `brief`, 9 epochs: none")
    plain, penalty, paper, *_ = ladder[2:]
    assert plain[2:5] == ["25.00 ± 3.54 (20.00 to 30.00)", "15.00 (0.00)", "31.25"]
    assert penalty[2:5] == ["40.00 ± 2.00 [39.00, 41.00]", "30.00 (20.00)", "50.00"]
    assert [line[-2:] for line in (plain, penalty, paper)] == [
        ["9", "9.0 |"],
        ["5", "5.0 |"],
        ["12", "12.0 |"],
    ]
