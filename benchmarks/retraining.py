"""What parts of the training recipe change at equal epochs, on validation samples and chips.

python benchmarks/retraining.py measure models/digits-vgg9.onnx --epochs 100     # goes on where it stopped
python benchmarks/retraining.py measure MODEL --data DATA.npz --scale 1/255 --mean M --std S --epochs 4
python benchmarks/retraining.py table                                    # into docs/results.md

Every training is one of ``cnpass retrain``. Its chips are measured after it, on the same numbers for every
training, which are none of those that it was stopped and judged by.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pages import filled, measuring_or_table

import cnpass
from cnpass import data as datasets
from cnpass.document import Document
from cnpass.evaluation import VALIDATION_CHIPS_START, MonteCarlo
from cnpass.evaluation.statistics import half_width
from cnpass.recipe import RetrainRecipe
from cnpass.runtime.devices import LogNormal

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "retraining.json"
RESULTS = ROOT / "docs" / "results.md"
START = "<!-- made by benchmarks/retraining.py -->"
SIGMA = 0.5
FIRST_CHIP = VALIDATION_CHIPS_START + 10_000
BASE = "injection"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "clipping at 2.5": {"clip_weights": 2.5},
    "censored at 1": {"censor": 1.0},
    "both": {"clip_weights": 2.5, "censor": 1.0},
    "clipping at 2": {"clip_weights": 2.0},
    "censored at 2": {"censor": 2.0},
    "4 chips per step": {"draws": 4},
    "no ramp": {"ramp": (1.0,)},
    "distillation at 0.5": {"distillation": 0.5},
    "penalty at 1e-4": {"beta": 1e-4},
    "penalty at 1e-3": {"beta": 1e-3},
    "penalty at 1e-3, no injection": {"beta": 1e-3, "injection": False},
    "chosen by 12 short trainings": {"tune": 12},
}
COMMON = {"sigma": SIGMA, "draws": 1}
"""What they have in common, but for what they say themselves."""
Entry = dict[str, Any]
_DIGITS = 6


def measure(model: Path, given: Mapping[str, Any], *, seeds: list[int], chips: int) -> None:
    """Train every variant with every seed, and keep the figure of every chip; what is there is not repeated.

    Args:
        model: ONNX file.
        given: Options of ``retrain``: epochs, and where the data are.
        seeds: Seeds of the trainings.
        chips: Chips per training.
    """
    store: list[Entry] = json.loads(STORE.read_text()) if STORE.exists() else []
    for seed in seeds:
        for name, options in VARIANTS.items():
            key = {"model": model.stem, "epochs": given["epochs"], "seed": seed, "training": name}
            if any(key.items() <= entry.items() and len(entry["values"]) == chips for entry in store):
                continue
            recipe = RetrainRecipe.build(None, {**COMMON, **given, **options, "seed": seed})
            store.append(key | _trained(model, recipe, chips))
            lines = ",\n".join(json.dumps(entry) for entry in store)
            STORE.write_text(f"[\n{lines}\n]\n")


def _trained(model: Path, recipe: RetrainRecipe, chips: int) -> Entry:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.onnx"
        record = cnpass.retrain(model, recipe=recipe, output=output)
        source, trained = Document.load(model), Document.load(output)
        split = datasets.prepare(source.proto, source.path, recipe).val
        with MonteCarlo(source, split) as run:
            target = run.prepare(trained, LogNormal(sigma=SIGMA), seed=0)
            values = run.values(target, range(FIRST_CHIP, FIRST_CHIP + chips))
            ideal = run.clean_of(trained)
    figures = {"ideal": round(ideal, _DIGITS), "values": [round(value, _DIGITS) for value in values]}
    return {"samples": len(split), "trained": record.epochs, **figures}


def table() -> str:
    """Render the store: for every model a row per variant, with what it changes chip by chip."""
    store: list[Entry] = json.loads(STORE.read_text())
    lines = []
    for model, epochs in sorted({(entry["model"], entry["epochs"]) for entry in store}):
        entries = [entry for entry in store if (entry["model"], entry["epochs"]) == (model, epochs)]
        seeds = list(dict.fromkeys(entry["seed"] for entry in entries))
        first = entries[0]
        sizes = f"{len(first['values'])} validation chips, {first['samples']} validation samples"
        lines += [
            f"`{model}`, {epochs} epochs, {sizes}:",
            "",
            "| training | "
            + " | ".join(f"seed {s}: mean | 5th pct. | ideal | difference" for s in seeds)
            + " |",
            "|---|" + "---|" * 4 * len(seeds),
        ]
        found = {(entry["training"], entry["seed"]): entry for entry in entries}
        for name in VARIANTS:
            if not any((name, seed) in found for seed in seeds):
                continue
            cells = [_cells(found.get((name, seed)), found.get((BASE, seed))) for seed in seeds]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cells(entry: Entry | None, base: Entry | None) -> str:
    """Mean with its 95 % interval, 5th percentile, ideal chip, and the mean paired difference to the base."""
    if entry is None or base is None:
        return "- | - | - | -"
    values = 100 * np.array(entry["values"])
    differences = values - 100 * np.array(base["values"])
    change = "" if entry is base else f"{differences.mean():+.2f} ± {half_width(list(differences)):.2f}"
    mean = f"{values.mean():.2f} ± {half_width(list(values)):.2f}"
    return f"{mean} | {np.percentile(values, 5):.2f} | {100 * entry['ideal']:.2f} | {change}"


def render() -> str:
    """Return the page of results with the tables in their place."""
    return filled(RESULTS, START, table())


def main() -> None:
    """Run one of the two commands."""
    parser, measuring = measuring_or_table(__doc__)
    measuring.add_argument("--epochs", type=int, required=True)
    measuring.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1])
    measuring.add_argument("--chips", type=int, default=100)
    arguments = vars(parser.parse_args())
    if arguments.pop("command") == "table":
        RESULTS.write_text(render())
        return
    model, seeds, chips = (arguments.pop(name) for name in ("model", "seeds", "chips"))
    measure(model, arguments, seeds=seeds, chips=chips)


if __name__ == "__main__":
    main()
