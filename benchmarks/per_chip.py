"""What corrections of one chip bring on a model as it is: chips that are measured, sigma 0.5.

python benchmarks/per_chip.py measure MODEL --data DATA.npz NORMALISATION    # goes on where it stopped
python benchmarks/per_chip.py table                                          # into docs/results.md

Every chip is one run of ``cnpass calibrate`` with default options; figures are on the whole test set.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pages import filled, measuring_or_table

import cnpass
from cnpass.evaluation.statistics import half_width
from cnpass.files import write_text

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "per_chip.json"
RESULTS = ROOT / "docs" / "results.md"
START = "<!-- made by benchmarks/per_chip.py -->"
SIGMA = 0.5
CORRECTIONS = ("batch-norm", "affine", "low-rank")
_DIGITS = 6


def measure(model: Path, chips: int, given: dict[str, Any]) -> None:
    """Correct chip after chip, and keep the figures; what is there is not repeated.

    Args:
        model: ONNX file.
        chips: Chips per correction.
        given: Options of ``calibrate``: where the data are, and what becomes of them.
    """
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    entry = store.setdefault(model.stem, {name: [] for name in CORRECTIONS})
    for name in CORRECTIONS:
        while len(entry[name]) < chips:
            with tempfile.TemporaryDirectory() as folder:
                record = cnpass.calibrate(
                    model,
                    sigma=SIGMA,
                    chip=len(entry[name]),
                    correction=name,
                    output=Path(folder) / "chip.onnx",
                    **given,
                )
            entry["clean"], entry["test"] = round(record.clean, _DIGITS), record.n.test
            figures = {"before": round(record.before, _DIGITS), "after": round(record.after, _DIGITS)}
            entry[name].append(figures | {"params": round(record.overhead.params, _DIGITS)})
            write_text(STORE, json.dumps(dict(sorted(store.items())), indent=1) + "\n")


def table() -> str:
    """Render the store: a row per model and correction."""
    store: dict[str, Any] = json.loads(STORE.read_text())
    lines = [
        "| model | clean | correction | chips | before | after | difference | worst chip | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, entry in store.items():
        for name in CORRECTIONS:
            before, after = (
                100 * np.array([chip[key] for chip in entry[name]]) for key in ("before", "after")
            )
            cells = (
                f"`{model}`",
                f"{100 * entry['clean']:.2f}",
                name,
                str(len(after)),
                _spread(before),
                _spread(after),
                f"{(after - before).mean():+.2f} ± {half_width(list(after - before)):.2f}",
                f"{after.min():.2f}",
                f"{100 * max(chip['params'] for chip in entry[name]):+.1f} %",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def render() -> str:
    """Return the page of results with the table in its place."""
    return filled(RESULTS, START, table())


def main() -> None:
    """Run one of the two commands."""
    parser, measuring = measuring_or_table(__doc__)
    measuring.add_argument("--chips", type=int, default=25)
    arguments = vars(parser.parse_args())
    if arguments.pop("command") == "table":
        RESULTS.write_text(render())
        return
    model, chips = arguments.pop("model"), arguments.pop("chips")
    measure(model, chips, {key: value for key, value in arguments.items() if value is not None})


if __name__ == "__main__":
    main()
