"""How long work tells what it does; the command line shows it, the Python API is silent unless asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """A piece of work of known size."""

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""

    def describe(self, text: str) -> None:
        """Say something about the present state, such as the last figure."""


class Progress:
    """Says nothing; the base of those that do."""

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:  # noqa: ARG002 (for subclasses)
        """A piece of work of ``total`` steps, of which ``done`` were found finished."""
        yield Task()

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def warn(self, text: str) -> None:
        """Something that may make the result useless."""
