"""What a verb prints, and where."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Literal

from rich.console import Console as _Rich
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cnpass.progress import Progress, Task

WIDE = 240
"""Width of tables where stdout is no terminal, so that no cell is cut or wrapped."""


class Rich(_Rich):
    """A console that leaves it to us what happens when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Called while the exception is handled: let it pass."""
        raise  # noqa: PLE0704 (rich calls this from its handler)


class Format(StrEnum):
    """How data are printed."""

    TABLE = "table"
    JSON = "json"


class _BarTask(Task):
    def __init__(self, bar: Bar, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def advance(self, steps: int = 1) -> None:
        self._bar.advance(self._task, steps)

    def describe(self, text: str) -> None:
        self._bar.update(self._task, state=text)


class Console(Progress):
    """Data to stdout in the chosen format; progress, notes and warnings to stderr.

    Args:
        form: table or JSON.
        verbose: also tell details.
        quiet: tell warnings and errors only.
    """

    def __init__(self, form: Format = Format.TABLE, *, verbose: bool = False, quiet: bool = False) -> None:
        self.form = form
        self._verbose = verbose
        self._quiet = quiet
        terminal = sys.stdout.isatty()
        self._out = Rich(highlight=False, width=None if terminal else WIDE)
        self._err = Rich(stderr=True, highlight=False, soft_wrap=True)
        self._told: set[str] = set()

    def json(self, text: str) -> None:
        """Print a JSON document."""
        sys.stdout.write(text + "\n")

    def line(self, text: str = "") -> None:
        """Print one line of data."""
        self._out.print(escape(text), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table; a ">" before a column's name aligns it to the right; None prints as a dash.

        Only the last column wraps where the terminal is narrow.
        """
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, column in enumerate(columns):
            side: Literal["left", "right"] = "right" if column.startswith(">") else "left"
            name = escape(column.removeprefix(">"))
            table.add_column(name, justify=side, no_wrap=i + 1 < len(columns), overflow="fold")
        for row in rows:
            table.add_row(*("-" if cell is None else escape(str(cell)) for cell in row))
        self._out.print(table)

    def detail(self, text: str) -> None:
        """Something that only a curious user wants to know."""
        if self._verbose:
            self._tell("", text)

    def note(self, text: str) -> None:
        """Something worth knowing; told once."""
        if not self._quiet:
            self._tell_once("note: ", text)

    def warn(self, text: str) -> None:
        """Something that may make the result useless; told once."""
        self._tell_once("warning: ", text, "yellow")

    def _tell_once(self, kind: str, text: str, style: str = "") -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(kind, text, style)

    def _tell(self, kind: str, text: str, style: str = "") -> None:
        self._err.print(escape(f"cnpass: {kind}{text}"), style=style)

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:
        """A progress bar with the time left; nothing where stderr is no terminal."""
        if self._quiet or not self._err.is_terminal:
            yield Task()
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[state]}"),
        )
        with Bar(*columns, console=self._err, transient=True) as bar:
            yield _BarTask(bar, bar.add_task(description, total=total, completed=done, state=""))


def hundredths(value: float | None) -> str | None:
    """A number with at most two decimals."""
    return None if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def percent(value: float | None) -> str | None:
    """A fraction as per cent."""
    return None if value is None else f"{100 * value:.2f} %"
