"""Pages of docs that hold tables made by scripts, between two marks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

END = "<!-- end -->"


def filled(page: Path, start: str, table: str) -> str:
    """Return the text of a page with a table behind its start mark, up to the next end mark."""
    head, _, rest = page.read_text().partition(start)
    _, _, tail = rest.partition(END)
    return f"{head}{start}\n\n{table}\n\n{END}{tail}"


def measuring_or_table(doc: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the command line of a script that measures models and renders, and its command `measure`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("model", type=Path)
    for name in ("data", "scale", "mean", "std"):
        measuring.add_argument(f"--{name}")
    commands.add_parser("table")
    return parser, measuring


def run_table(doc: str | None, page: Path, render: Callable[[], str]) -> None:
    """Run the command line of a script that only renders: its one command, `table`, writes the page."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_subparsers(dest="command", required=True).add_parser("table")
    parser.parse_args()
    page.write_text(render())
