"""Our device models against those of other simulators: what peers/compare_devices.py measured, as tables.

python benchmarks/peer_devices.py table     # into docs/devices.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import filled, run_table

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "peers" / "devices.json"
PAGE = ROOT / "docs" / "devices.md"
START = "<!-- made by benchmarks/peer_devices.py -->"
SHOWN = 0.25
"""The level whose moments are shown."""


def table() -> str:
    """Render the store: a row per case, then why some differ."""
    store = json.loads(STORE.read_text())
    intro = (
        f"{store['devices']:,} pairs per case and level, at {_levels(store)} of `F`. D is the largest\n"
        "two-sample Kolmogorov-Smirnov statistic of the levels; "
        f"above {store['limit']:.4f} a difference is no chance, at 99.9 %\n"
        f"confidence over all rows together. Mean and standard deviation in fractions of `F`, at {SHOWN} `F`."
    )
    lines = [intro]
    for peer in store["peers"].values():
        lines += [
            "",
            f"| {peer['version']} | mean, ours | theirs | std, ours | theirs | D | levels that agree |",
            "|---|---|---|---|---|---|---|",
            *(_row(name, case, store["limit"]) for name, case in peer["cases"].items()),
        ]
    return "\n".join([*lines, "", *_reasons(store)])


def _levels(store: Mapping[str, Any]) -> str:
    peer = next(iter(store["peers"].values()))
    case = next(iter(peer["cases"].values()))
    levels = [f"{row['level']:g}" for row in case["rows"]]
    return f"{', '.join(levels[:-1])} and {levels[-1]}"


def _row(name: str, case: Mapping[str, Any], limit: float) -> str:
    rows = case["rows"]
    shown = next(row for row in rows if row["level"] == SHOWN)
    figures = [f"{shown[key]:.4f}" for key in ("mean", "peer_mean", "std", "peer_std")]
    distances = [row["distance"] for row in rows]
    agree = sum(distance <= limit for distance in distances)
    return f"| {name} | {' | '.join(figures)} | {max(distances):.4f} | {agree} of {len(rows)} |"


def _reasons(store: Mapping[str, Any]) -> Iterator[str]:
    for peer in store["peers"].values():
        for name, case in peer["cases"].items():
            if case["differs"]:
                yield f"- {name}: {case['differs']}."


def render() -> str:
    """Return the page with the tables in their place."""
    return filled(PAGE, START, table())


if __name__ == "__main__":
    run_table(__doc__, PAGE, render)
