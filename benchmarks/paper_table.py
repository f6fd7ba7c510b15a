"""The table: collect what run.py measured, and render it into docs/paper.md.

python benchmarks/paper_table.py collect build/paper     # into benchmarks/paper/figures.json
python benchmarks/paper_table.py table                   # into docs/paper.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from optimized import PATHS, ladders
from pages import filled
from paper.rows import ROWS

from cnpass.records import Replication, Rung

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "paper" / "figures.json"
PAGE = ROOT / "docs" / "paper.md"
START = "<!-- made by benchmarks/paper_table.py -->"
SIGMA = 0.5
RECORDED = ("recipe", "hashes", "seeds", "notes", "placement", "ladder", "replication")
"""What the store keeps of the record of a rung that was trained."""
ORDER = (
    "plain",
    "longer",
    "mean-gain",
    "penalty",
    "injection",
    "distillation",
    "closed-form",
    "closed-form-full",
    "centring",
    "probes",
    "bypass",
    "paper-kind",
    "our-kinds",
    "paper",
    "best",
    "brief",
    "best-copies",
    "chip-affine",
    "chip-low-rank",
    "chip-full",
    "chip-best-affine",
    "chip-best",
    "chip-best-copies-affine",
    "chip-best-copies",
)
"""Rungs as the ladder has them, which is not the order in which they are made."""
STARTS = {"paper": "penalty", "best-copies": "best"}
"""Rungs that train on what another one made; what that took, they took too."""

COLUMNS = (
    "rung",
    "ideal",
    "mean ± std [95 %]",
    "5th percentile (worst)",
    "retention",
    "with copies",
    "parameters",
    "MACs",
    "epochs",
    "min",
)

Figures = Mapping[str, Any]
Seeds = Mapping[str, Mapping[str, Figures]]
"""Figures of a rung by training seed and rung."""
Line = tuple[str, list[Figures], float]
"""A title, points in the order of sigma, and the accuracy on the ideal chip."""


def collect(folder: Path) -> None:
    """Take all figures under a folder into the store."""
    store = json.loads(STORE.read_text()) if STORE.exists() else {}
    for path in sorted(folder.glob("*/seed-*/*.figures.json")):
        row, seed = path.parts[-3], path.parts[-2].removeprefix("seed-")
        rung, _, grid = path.name.removesuffix(".figures.json").partition(".")
        if not grid:
            figures = json.loads(path.read_text())
            others = path.with_name(f"{rung}.grid.figures.json")
            if others.exists():
                figures["points"] += json.loads(others.read_text())
                figures["points"].sort(key=_sigma)
            regained = path.with_name(f"{rung}.regained.figures.json")
            if regained.exists():
                figures["regained"] = json.loads(regained.read_text())
            record = path.with_name(f"{rung}.json")
            if record.exists():
                figures["record"] = _recorded(json.loads(record.read_text()))
            store.setdefault(row, {}).setdefault(seed, {})[rung] = figures
    STORE.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")


def _recorded(record: Figures) -> dict[str, Any]:
    kept = {key: record[key] for key in RECORDED if record.get(key) is not None}
    kept["recipe"] = {key: value for key, value in record["recipe"].items() if key not in PATHS}
    return kept


def table() -> str:
    """Render the store: per row the ladder at sigma 0.5, the grid, copies, and the main job step by step."""
    store: Mapping[str, Seeds] = json.loads(STORE.read_text())
    parts = (
        part
        for row, seeds in store.items()
        for part in (_ladder(row, seeds), _grid(seeds), _copies(seeds), _main_job(seeds))
    )
    return "\n\n".join(filter(None, parts))


def render() -> str:
    """Return the page with the table in its place."""
    return filled(PAGE, START, table())


def _ladder(row: str, seeds: Seeds) -> str:
    lines = [
        f"### `{row}`, training seeds {', '.join(seeds)}",
        "",
        ROWS[row].title,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for rung in ORDER:
        measured = [rungs for rungs in seeds.values() if rung in rungs]
        if measured:
            lines.append(_line(measured, rung))
    return "\n".join(lines)


def _line(measured: list[Mapping[str, Figures]], rung: str) -> str:
    found = [rungs[rung] for rungs in measured]
    clean = fmean(rungs["plain"]["clean"] for rungs in measured)
    points = [_point(figures) for figures in found]
    copies = [figures["copies"]["mean"] for figures in found if "copies" in figures]
    macs = [figures["overhead"]["macs"] for figures in found if figures["overhead"]["macs"] is not None]
    title = found[0]["title"] + (" (per chip)" if found[0]["scope"] == "per-chip" else "")
    cells = [
        title,
        _percent(figures["clean"] for figures in found if "clean" in figures),
        _spread(points),
        f"{_percent(point['p05'] for point in points)} ({100 * min(point['min'] for point in points):.2f})",
        _percent(point["mean"] / clean for point in points),
        f"{_percent(copies)} ({_percent(copy / clean for copy in copies)})" if copies else "",
        _percent(figures["overhead"]["params"] for figures in found),
        _percent(macs),
        _mean((_took(rungs, rung, "epochs") for rungs in measured), ".0f"),
        _mean((_took(rungs, rung, "seconds", 60) for rungs in measured), ".1f"),
    ]
    return "| " + " | ".join(cells) + " |"


def _took(rungs: Mapping[str, Figures], rung: str, what: str, unit: float = 1) -> float | None:
    """Epochs or seconds of a rung, with those of the rung that it starts from; None if not known."""
    parts = [rungs.get(name, {}).get(what) for name in (rung, STARTS.get(rung)) if name]
    return None if None in parts else sum(parts) / unit


def _spread(points: list[Figures]) -> str:
    """Mean and standard deviation over chips; behind them the mean's interval, or its range over seeds."""
    means = [point["mean"] for point in points]
    deviation = sqrt(fmean(point["std"] ** 2 for point in points))
    if len(points) > 1:
        behind = f"({100 * min(means):.2f} to {100 * max(means):.2f})"
    else:
        low, high = points[0]["ci95"]
        behind = f"[{100 * low:.2f}, {100 * high:.2f}]"
    return f"{100 * fmean(means):.2f} ± {100 * deviation:.2f} {behind}"


def _grid(seeds: Seeds) -> str:
    """Mean accuracy at every sigma, of the rungs that were measured there; nothing where none was.

    Only of training seeds for which all of these rungs were, so that lines can be compared.
    """
    measured = {seed: list(_lines(rungs)) for seed, rungs in seeds.items()}
    most = max(measured.values(), key=len)
    if not most:
        return ""
    chosen = [seed for seed, lines in measured.items() if _titles(lines) == _titles(most)]
    sigmas = [f"{_sigma(point):g}" for point in most[0][1]]
    head = f"trained for sigma 0.5, training seeds {', '.join(chosen)}; at sigma"
    lines = [f"| {head} | 0 | " + " | ".join(sigmas) + " |", "|---|---|" + "---|" * len(sigmas)]
    for (title, *_), *parts in zip(most, *(measured[seed] for seed in chosen), strict=True):
        values = ([clean, *(point["mean"] for point in points)] for _, points, clean in parts)
        found = (_percent(several) for several in zip(*values, strict=True))
        lines.append(f"| {title} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def _copies(seeds: Seeds) -> str:
    """What copies take, of the rung that was trained with them; all seeds have the same layers."""
    found = (rungs.get("best-copies", {}).get("record") for rungs in seeds.values())
    record = next(filter(None, found), None)
    if record is None:
        return ""
    taken = Replication.model_validate(record["replication"])
    fewest, most = min(taken.copies.values()), max(taken.copies.values())
    cells = taken.before.cells_used + taken.before.cells_free
    head = f"{fewest:.2f} to {most:.2f} devices per weight, by layer"
    lines = [
        f"| {head} | cells used, of {cells:,} | tiles | ADC conversions per inference |",
        "|---|---|---|---|",
    ]
    for name, cost in (("without copies", taken.before), ("with copies", taken.after)):
        lines.append(f"| {name} | {cost.cells_used:,} | {cost.tiles} | {cost.adc_conversions:,} |")
    return "\n".join(lines)


def _main_job(seeds: Seeds) -> str:
    """What the main job measured on its way, and which compensation it has in the end."""
    records = {
        f"seed {seed}, `{rung}`, {rungs[rung]['epochs']} epochs": rungs[rung]["record"]
        for seed, rungs in seeds.items()
        for rung in ("best", "brief")
        if "record" in rungs.get(rung, {})
    }
    if not records:
        return ""
    steps = {
        title: [Rung.model_validate(step) for step in record["ladder"]] for title, record in records.items()
    }
    lines = [ladders("everything that helps", steps), "", "What it has in the end, with its width:", ""]
    for title, record in records.items():
        placed = (f"`{at['node']}` {at['kind']} {at['ratio']:g}" for at in record["placement"])
        lines.append(f"- {title}: {', '.join(placed) or 'none'}")
    return "\n".join(lines)


def _lines(rungs: Mapping[str, Figures]) -> Iterator[Line]:
    """Return what was measured at every sigma."""
    for rung in ORDER:
        if rung in rungs and len(rungs[rung]["points"]) > 1:
            figures = rungs[rung]
            yield figures["title"], figures["points"], figures["clean"]
            if "regained" in figures:
                points = sorted([*figures["regained"]["points"], _point(figures)], key=_sigma)
                yield "the same, mean gain corrected for each sigma", points, figures["regained"]["clean"]


def _titles(lines: Iterable[Line]) -> list[str]:
    return [title for title, *_ in lines]


def _sigma(point: Figures) -> float:
    return float(point["params"]["sigma"])


def _point(figures: Figures) -> Figures:
    return next(point for point in figures["points"] if _sigma(point) == SIGMA)


def _percent(values: Iterable[float]) -> str:
    listed = list(values)
    return f"{100 * fmean(listed):.2f}" if listed else ""


def _mean(values: Iterable[float | None], form: str) -> str:
    listed = [value for value in values if value is not None]
    return format(fmean(listed), form) if listed else ""


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("folder", type=Path)
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        collect(arguments.folder)
    else:
        PAGE.write_text(render())


if __name__ == "__main__":
    main()
