"""Pages of docs that hold tables made by scripts, between two marks."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end -->"


def filled(page: Path, start: str, table: str) -> str:
    """Return the text of a page with a table behind its start mark, up to the next end mark."""
    head, _, rest = page.read_text().partition(start)
    _, _, tail = rest.partition(END)
    return f"{head}{start}\n\n{table}\n\n{END}{tail}"
