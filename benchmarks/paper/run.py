"""Measure one row of the table, for one training seed: every rung of the ladder, one after the other.

python benchmarks/paper/run.py lenet5-cifar10 --data cifar10.npz --seed 0
python benchmarks/paper_table.py collect build/paper
python benchmarks/paper_table.py table

What was made or measured is kept under --out; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rows import ROWS
from rungs import PER_CHIP, RUNGS, SIGMA, TEST_SEED, Bench, PerChip, Rung

import cnpass
from cnpass.allocator import keep_freed_memory
from cnpass.cli.console import Console, Format
from cnpass.compensation.overhead import overhead
from cnpass.document import Document
from cnpass.evaluation.statistics import summarise
from cnpass.files import write_text
from cnpass.optimization.replication import without_copies
from cnpass.optimization.setting import unmapped
from cnpass.passes.pipeline import Pipeline
from cnpass.runtime.devices import make_device

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def measure(bench: Bench, name: str, rung: Rung, chips: int) -> dict[str, Any]:
    """Make a rung's model, and measure it on test chips: as it is, and with copies in spare rows."""
    resumed = (bench.folder / f"{name}.run").exists()  # then nobody knows how long it took
    start = time.perf_counter()
    epochs = rung.make(bench, name)
    seconds = None if resumed else round(time.perf_counter() - start, 1)
    document = without_copies(unmapped(Document.load(bench.model(name))))
    common: dict[str, Any] = {
        **bench.preprocess,
        "data": bench.data,
        "chips": chips,
        "seed": TEST_SEED,
        "progress": bench.progress,
    }
    single = cnpass.evaluate(
        document, sigma=GRID if rung.grid else (SIGMA,), run=bench.folder / f"{name}.chips", **common
    )
    copied = document.copy()
    Pipeline.parse(f"fold-batch-norm,map-crossbar{{sigma={SIGMA}}},replicate-weights").run(copied)
    spread = cnpass.evaluate(copied, run=bench.folder / f"{name}.copies", **common)
    return {
        "title": rung.title,
        "scope": "agnostic",
        "clean": single.clean,
        "points": [point.model_dump(mode="json") for point in single.points],
        "copies": spread.points[0].model_dump(mode="json"),
        "overhead": overhead(document).model_dump(mode="json"),
        "epochs": epochs,
        "seconds": seconds,
    }


def calibrate(bench: Bench, name: str, rung: PerChip, chips: int) -> dict[str, Any]:
    """Correct chip after chip; finished ones are kept."""
    path = bench.folder / f"{name}.values.json"
    values: list[float] = json.loads(path.read_text()) if path.exists() else []
    with bench.progress.task(rung.title, chips, done=len(values)) as task:
        while len(values) < chips:
            values.append(rung.figure(bench, name, len(values)))
            write_text(path, json.dumps(values) + "\n")
            task.advance()
    device = make_device("lognormal", sigma=SIGMA)
    point = summarise(device.name, device.attributes(), TEST_SEED, values)
    made = Document.load(bench.folder / f"{name}.chip.onnx")
    return {
        "title": rung.title,
        "scope": "per-chip",
        "points": [point.model_dump(mode="json")],
        "overhead": overhead(made).model_dump(mode="json"),
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
    parser.add_argument("--out", type=Path, default=Path("build/paper"))
    arguments = parser.parse_args()
    keep_freed_memory()
    folder = arguments.out / arguments.row / f"seed-{arguments.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    row, data = ROWS[arguments.row], arguments.data.resolve()
    console = Console(Format.TABLE, verbose=False, quiet=False)
    plain = row.plain(arguments.row, data, arguments.seed, folder)
    bench = Bench(plain, data, row.preprocess, arguments.seed, row.rung, folder, console)
    for name in arguments.rungs or (*RUNGS, *PER_CHIP):
        path = folder / f"{name}.figures.json"
        if path.exists():
            continue
        figures = (
            measure(bench, name, RUNGS[name], arguments.chips)
            if name in RUNGS
            else calibrate(bench, name, PER_CHIP[name], arguments.corrected_chips)
        )
        write_text(path, json.dumps(figures, indent=1) + "\n")
        shown = next(point["mean"] for point in figures["points"] if point["params"]["sigma"] == SIGMA)
        console.line(f"{name}: {100 * shown:.2f} %")


if __name__ == "__main__":
    main()
