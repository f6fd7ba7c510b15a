"""Figures of ``cnpass optimize`` on many models: collect its records, render them as a table.

cnpass optimize MODEL --data DATA.npz NORMALISATION -o out/NAME.cnpass.onnx     # writes out/NAME.cnpass.json
python benchmarks/optimized.py collect out/*.cnpass.json     # into benchmarks/optimized.json
python benchmarks/optimized.py table                         # into docs/results.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import filled

from cnpass.compensation.kinds import kind_names
from cnpass.records import OptimizeRecord, Point, Rung

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "optimized.json"
RESULTS = ROOT / "docs" / "results.md"
START = "<!-- made by benchmarks/optimized.py -->"
PATHS = ("data", "workers")
"""Options that say something of the machine."""


def collect(records: list[Path]) -> None:
    """Take records into the store, by the name of the model, without paths of the machine that made them."""
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    for path in records:
        record = OptimizeRecord.model_validate_json(path.read_text())
        fields = record.model_dump(mode="json", by_alias=True)
        fields["input"], fields["output"] = Path(record.input).name, Path(record.output).name
        fields["recipe"] = {key: value for key, value in record.recipe.items() if key not in PATHS}
        fields["recipe"]["data"] = Path(str(record.recipe["data"] or f"{Path(record.input).stem}.npz")).name
        store[Path(record.input).stem] = fields
    STORE.write_text(json.dumps(dict(sorted(store.items())), indent=1) + "\n")


def table() -> str:
    """Render the store: a row per model, then what each rung of its ladder measured."""
    records = [OptimizeRecord.model_validate(fields) for fields in json.loads(STORE.read_text()).values()]
    lines = [
        "| model | clean | before | after | ideal | retention | gap closed | parameters | MACs | min |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(record) for record in records]
    found = {f"`{Path(record.input).stem}`": record.ladder for record in records}
    return "\n".join([*lines, "", ladders("model", found)])


def ladders(what: str, found: Mapping[str, Sequence[Rung]]) -> str:
    """Render what the main job measured on its way: a row per model, a column per rung."""
    steps = list(dict.fromkeys(_step(rung.step) for ladder in found.values() for rung in ladder))
    lines = [
        "The ladder, on validation samples and 30 validation chips; kept rungs in bold.",
        "",
        f"| {what} | " + " | ".join(steps) + " |",
        "|---|" + "---|" * len(steps),
    ]
    for title, ladder in found.items():
        rungs = {_step(rung.step): rung for rung in ladder}
        cells = [
            "" if step not in rungs else _bold(_percent(rungs[step].point.mean), kept=rungs[step].kept)
            for step in steps
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render() -> str:
    """Return the page of results with the table in its place."""
    return filled(RESULTS, START, table())


def _row(record: OptimizeRecord) -> str:
    gap = record.clean - record.before.mean
    closed = (record.after.mean - record.before.mean) / gap if gap > 0 else 1.0
    macs = "-" if record.overhead.macs is None else _percent(record.overhead.macs)
    cells = [
        f"`{Path(record.input).stem}`",
        _percent(record.clean),
        _point(record.before),
        _point(record.after),
        _percent(record.after_clean),
        _percent(record.after.mean / record.clean),
        _percent(closed),
        _percent(record.overhead.params),
        macs,
        f"{record.seconds / 60:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _point(point: Point) -> str:
    low, high = point.ci95
    return f"{_percent(point.mean)} ± {_percent(point.std)} [{_percent(low)}, {_percent(high)}]"


_TRAININGS = ("noise injection", "censored noise injection", "plain retraining")
_COMPENSATED = re.compile(rf"( and ({'|'.join(kind_names())}))+ compensation$")


def _step(step: str) -> str:
    """The name of a rung, whatever kinds of compensation it has."""
    if step.startswith("analog weights and") or step.endswith((", trained on", ", for longer")):
        return "together"
    if step.startswith(_TRAININGS):
        return _COMPENSATED.sub("", step)
    return "compensation" if step.endswith("compensation") and "closed" not in step else step


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _bold(text: str, *, kept: bool) -> str:
    return f"**{text}**" if kept else text


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("records", nargs="+", type=Path)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.records)
    else:
        RESULTS.write_text(render())


if __name__ == "__main__":
    main()
