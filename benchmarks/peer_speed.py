"""Our speed against that of other simulators: what peers/speed.py measured, as tables.

python benchmarks/peer_speed.py table     # into docs/speed.md
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import filled, run_table

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "peers" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"
START = "<!-- made by benchmarks/peer_speed.py -->"
OURS = "cnpass"


def table() -> str:
    """Render the store: a table per model."""
    store = json.loads(STORE.read_text())
    versions = ", ".join(f"{name} {number}" for name, number in store["versions"].items())
    lines = [f"{store['processor']}; {versions}."]
    for name, model in sorted(store["models"].items()):
        lines += ["", *_model(name, model)]
    return "\n".join(lines)


def _model(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    images, macs = model["images"], model["macs"]
    size = f"{images * macs / 1e9:.2f} GMAC, {model['weights'] / 1e6:.2f} million weights"
    yield f"`{name}`, {images} images: {size} per chip; {model['rounds']} rounds."
    yield ""
    yield "| per chip | simulator | ms | times ours | GMAC/s | outputs off by |"
    yield "|---|---|---|---|---|---|"
    ours = {entry["title"]: entry["seconds"] for entry in model["contenders"] if entry["name"] == OURS}
    for entry in model["contenders"]:
        median = statistics.median(entry["seconds"])
        base = ours.get(entry["title"])
        cells = [
            entry["title"],
            entry["name"] + ("" if entry["images"] == images else f" ({entry['images']} images, scaled)"),
            f"{1e3 * median:.1f}",
            "" if base is None or entry["name"] == OURS else _ratio(entry["seconds"], base),
            f"{images * macs / median / 1e9:.1f}",
            f"{100 * entry['deviation']:.0f} %",
        ]
        yield f"| {' | '.join(cells)} |"


def _ratio(seconds: list[float], base: list[float]) -> str:
    """Median and quartiles of the ratio within a round."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(seconds, base, strict=True)], n=4)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def render() -> str:
    """Return the page with the tables in their place."""
    return filled(PAGE, START, table())


if __name__ == "__main__":
    run_table(__doc__, PAGE, render)
