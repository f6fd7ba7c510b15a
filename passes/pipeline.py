"""Pipelines of passes: their text form, and running them.

    fold-batch-norm,map-crossbar{device=lognormal,sigma=0.3},strip-portable

A value is a bare word, a string in double quotes (as in JSON), or a list of values in brackets; the option's
type says whether it is read as a number, as `true` or `false`, or as text.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from cnpass.document import Document
from cnpass.errors import UsageError
from cnpass.passes.base import WORD, Pass, PassError, PassPostconditionError, PassResult
from cnpass.passes.registry import get_pass
from cnpass.printer import to_text

_TOKEN = re.compile(rf'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>{WORD.pattern})|(?P<sign>[{{}}\[\],=]))')


class Callback:
    """Something to do around every pass of a pipeline."""

    def before(self, step: Pass, document: Document) -> None:
        """Called when a pass is about to run."""

    def after(self, step: Pass, document: Document, result: PassResult) -> None:
        """Called when a pass has run."""


class Timing(Callback):
    """Measures how long each pass takes.

    Attributes:
        seconds: one entry per pass that ran.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def before(self, step: Pass, document: Document) -> None:  # noqa: ARG002 (the interface)
        """See `Callback`."""
        self._start = time.perf_counter()

    def after(self, step: Pass, document: Document, result: PassResult) -> None:  # noqa: ARG002 (the interface)
        """See `Callback`."""
        self.seconds.append(time.perf_counter() - self._start)


class Printing(Callback):
    """Prints the graph after each pass that changed it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def after(self, step: Pass, document: Document, result: PassResult) -> None:
        """See `Callback`."""
        if result.modified:
            self._stream.write(f"// after {step}\n{to_text(document)}")


class Verifying(Callback):
    """Checks that each pass changed the document if and only if it says so."""

    def __init__(self) -> None:
        self._print = ""

    def before(self, step: Pass, document: Document) -> None:  # noqa: ARG002 (the interface)
        """See `Callback`."""
        self._print = document.fingerprint()

    def after(self, step: Pass, document: Document, result: PassResult) -> None:
        """See `Callback`.

        Raises:
            PassPostconditionError: the pass's claim is wrong.
        """
        changed = document.fingerprint() != self._print
        if changed != result.modified:
            did = (
                "changed the model and says it did not"
                if changed
                else "says it changed the model, and did not"
            )
            raise PassPostconditionError(step.name, did)


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline from its text.

        Raises:
            UsageError: the text is no pipeline, or a pass or an option is unknown or out of range.
        """
        return cls(tuple(_Reader(text).passes()))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join(str(step) for step in self.passes)

    def run(self, document: Document, callbacks: Sequence[Callback] = ()) -> PassResult:
        """Run all passes in place.

        Args:
            document: what to transform.
            callbacks: called around every pass.

        Returns:
            Whether any pass changed the document, and the notes of all, each with the name of its pass.

        Raises:
            PassError: a pass failed; the text names it and those that ran before.
        """
        modified, notes = False, []
        for i, step in enumerate(self.passes):
            for callback in callbacks:
                callback.before(step, document)
            try:
                result = step(document)
            except PassError as error:
                before = tuple(earlier.name for earlier in self.passes[:i])
                raise type(error)(error.name, error.message, before) from error
            for callback in callbacks:
                callback.after(step, document, result)
            modified |= result.modified
            notes += [f"{step.name}: {note}" for note in result.notes]
        return PassResult(modified, tuple(notes))


class _Reader:
    """A reader of pipeline text by recursive descent."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, place = text, [], 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                raise UsageError(f"pipeline {text!r}: cannot read {text[place:]!r}")
            self.tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            place = match.end()
        self.next = 0

    def peek(self) -> str:
        return self.tokens[self.next][1] if self.next < len(self.tokens) else ""

    def take(self, kind: str, what: str) -> str:
        if self.next == len(self.tokens):
            raise UsageError(f"pipeline {self.text!r} ends where {what} is expected")
        found, text = self.tokens[self.next]
        if found != kind or (kind == "sign" and text not in what):
            raise UsageError(f"pipeline {self.text!r}: {text!r} stands where {what} is expected")
        self.next += 1
        return text

    def passes(self) -> list[Pass]:
        found = [self.step()]
        while self.next < len(self.tokens):
            self.take("sign", ",")
            found.append(self.step())
        return found

    def step(self) -> Pass:
        kind = get_pass(self.take("word", "the name of a pass"))
        options: dict[str, Any] = {}
        if self.peek() == "{":
            self.take("sign", "{")
            while True:
                option = self.take("word", "the name of an option")
                self.take("sign", "=")
                if option in options:
                    raise UsageError(f"pipeline {self.text!r}: option {option!r} is given twice")
                options[option] = self.value()
                if self.take("sign", ",}") == "}":
                    break
        return kind.from_options(options)

    def value(self) -> Any:
        if self.peek() == "[":
            self.take("sign", "[")
            items = []
            while self.peek() != "]":
                items.append(self.value())
                if self.peek() != "]":
                    self.take("sign", ",")
            self.take("sign", "]")
            return items
        if self.next < len(self.tokens) and self.tokens[self.next][0] == "string":
            try:
                return json.loads(self.take("string", "a value"))
            except json.JSONDecodeError as error:
                raise UsageError(f"pipeline {self.text!r}: {error}") from None
        return self.take("word", "a value")
