"""Measure one row of the table, for one training seed: every rung of the ladder, one after the other.

They are measured at the sigma they are made for, and at last some of them at all others.

python benchmarks/paper/run.py lenet5-cifar10 --data cifar10.npz --seed 0
python benchmarks/paper_table.py collect build/paper
python benchmarks/paper_table.py table

What was made or measured is kept under --out; the same command goes on where it stopped, or was killed. So
rows for a GPU (--device cuda) can be run in slices, as often as needed:

timeout 9m python benchmarks/paper/run.py vgg16-cifar10 --data cifar10.npz --device cuda
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import on_torch
import torch
from rows import ROWS
from rungs import PER_CHIP, RUNGS, SIGMA, TEST_SEED, TILE, Bench, PerChip, Rung

import cnpass
from cnpass import data as datasets
from cnpass.allocator import keep_freed_memory
from cnpass.cli.console import Console, Format
from cnpass.compensation.overhead import overhead
from cnpass.document import Document
from cnpass.evaluation.statistics import summarise
from cnpass.files import write_text
from cnpass.optimization.replication import replicate
from cnpass.passes.mean_gain import keep_mean_gains
from cnpass.passes.pipeline import Pipeline
from cnpass.recipe import EvaluateRecipe
from cnpass.records import Point
from cnpass.runtime.devices import make_device

OTHERS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
"""The sigmas that rungs are not made for."""


def measure(bench: Bench, name: str, rung: Rung, chips: int) -> dict[str, Any]:
    """Make a rung's model, and measure it on test chips: as it is, and with copies in spare rows."""
    kept = (bench.folder / f"{name}{suffix}" for suffix in (".run", ".pt"))
    resumed = any(path.exists() for path in kept)  # then nobody knows how long it took
    start = time.perf_counter()
    epochs = rung.make(bench, name)
    seconds = None if resumed else round(time.perf_counter() - start, 1)
    if name == "plain":
        epochs, seconds = bench.training
    document = bench.single(name)
    keep_mean_gains(document, {})  # the ideal figure is that of the ideal chip, which has no mean gain
    clean, points = _over_chips(bench, document, (SIGMA,), chips, f"{name}.chips")
    copied = replicate(document, TILE, TILE)
    _, (copies,) = _over_chips(bench, copied, (SIGMA,), chips, f"{name}.copies")
    return {
        "title": rung.title,
        "scope": "agnostic",
        "clean": clean,
        "points": [point.model_dump(mode="json") for point in points],
        "copies": copies.model_dump(mode="json"),
        "overhead": overhead(document).model_dump(mode="json"),
        "epochs": epochs,
        "seconds": seconds,
    }


def measure_grid(bench: Bench, name: str, chips: int) -> list[dict[str, Any]]:
    """Measure a rung's model, as it is, at the sigmas that it was not made for."""
    _, points = _over_chips(bench, bench.single(name), OTHERS, chips, f"{name}.grid")
    return [point.model_dump(mode="json") for point in points]


def measure_regained(bench: Bench, name: str, chips: int) -> dict[str, Any]:
    """Measure a rung's model with its mean gain corrected for each of these sigmas and for the ideal chip."""
    measured = {}
    for sigma in (0.0, *OTHERS):
        document = bench.single(name)
        Pipeline.parse(f"correct-mean-gain{{sigma={sigma}}}").run(document)
        kept = f"{name}.for-{sigma}"
        measured[sigma] = _over_chips(bench, document, (sigma,), chips if sigma else 2, kept)
    clean, _ = measured.pop(0.0)
    return {"clean": clean, "points": [point.model_dump(mode="json") for _, (point,) in measured.values()]}


def _over_chips(
    bench: Bench, document: Document, sigmas: Sequence[float], chips: int, name: str
) -> tuple[float, Sequence[Point]]:
    """The figure without variation, and those over chips; finished chips are kept under a name."""
    options = {**bench.preprocess, "data": str(bench.data)}
    if bench.device == "cpu":
        record = cnpass.evaluate(
            document,
            sigma=sigmas,
            chips=chips,
            seed=TEST_SEED,
            run=bench.folder / name,
            progress=bench.progress,
            **options,
        )
        return record.clean, record.points
    dataset = datasets.prepare(
        document.proto, document.path, EvaluateRecipe.build(None, options), parts=("test",)
    )
    return on_torch.over_chips(
        document,
        dataset.test,
        sigmas,
        chips,
        seed=TEST_SEED,
        device=torch.device(bench.device),
        path=bench.folder / f"{name}.json",
        progress=bench.progress,
    )


def calibrate(bench: Bench, name: str, rung: PerChip, chips: int) -> dict[str, Any]:
    """Correct chip after chip; finished ones are kept. A chip that no correction helps has no overhead."""
    path = bench.folder / f"{name}.corrected.json"
    done: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    with bench.progress.task(rung.title, chips, done=len(done)) as task:
        while len(done) < chips:
            record = rung.corrected(bench, name, len(done))
            done.append(record.model_dump(mode="json", include={"after", "overhead"}))
            write_text(path, json.dumps(done) + "\n")
            task.advance()
    device = make_device("lognormal", sigma=SIGMA)
    values = [chip["after"] for chip in done]
    point = summarise(device.name, device.attributes(), TEST_SEED, values)
    return {
        "title": rung.title,
        "scope": "per-chip",
        "points": [point.model_dump(mode="json")],
        "overhead": max((chip["overhead"] for chip in done), key=lambda found: found["params"]),
    }


def main() -> None:
    """Go through the rungs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--data", type=Path, required=True, help="NPZ file of the dataset")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the plain network and all else")
    parser.add_argument("--chips", type=int, default=250, help="test chips of a chip-agnostic figure")
    parser.add_argument("--corrected-chips", type=int, default=25, help="test chips of a per-chip figure")
    parser.add_argument("--rungs", nargs="+", choices=(*RUNGS, *PER_CHIP), help="only these, in this order")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where training runs")
    parser.add_argument("--dry-run", action="store_true", help="two epochs, few images, under OUT/dry")
    parser.add_argument("--out", type=Path, default=Path("build/paper"))
    arguments = parser.parse_args()
    keep_freed_memory()
    row, out, seed = ROWS[arguments.row], arguments.out, arguments.seed
    chips, corrected = arguments.chips, arguments.corrected_chips
    if arguments.dry_run:
        row, out, chips, corrected = row.dry(), out / "dry", 3, 2
    folder = out / arguments.row / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = row.cut(arguments.data.resolve(), folder)
    console = Console(Format.TABLE, verbose=False, quiet=False)
    plain, training = row.plain(arguments.row, data, seed, folder, arguments.device)

    def train(epochs: int, target: Path) -> None:
        row.train(data, seed, epochs, target, arguments.device)

    options = row.preprocess, seed, row.rung, row.rate, row.told
    bench = Bench(plain, data, *options, folder, training, arguments.device, console, train)
    names = arguments.rungs or row.rungs or (*RUNGS, *PER_CHIP)
    for name in names:
        path = folder / f"{name}.figures.json"
        if path.exists():
            continue
        figures = (
            measure(bench, name, RUNGS[name], chips)
            if name in RUNGS
            else calibrate(bench, name, PER_CHIP[name], corrected)
        )
        write_text(path, json.dumps(figures, indent=1) + "\n")
        console.line(f"{name}: {100 * figures['points'][0]['mean']:.2f} %")
    for name in names:
        path = folder / f"{name}.grid.figures.json"
        if name in RUNGS and RUNGS[name].grid and not path.exists():
            write_text(path, json.dumps(measure_grid(bench, name, chips), indent=1) + "\n")
    for name in names:
        path = folder / f"{name}.regained.figures.json"
        if name in RUNGS and RUNGS[name].regained and not path.exists():
            write_text(path, json.dumps(measure_regained(bench, name, chips), indent=1) + "\n")


if __name__ == "__main__":
    main()
