"""`strip-portable`: take the function bodies out again."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from cnpass.document import Document
from cnpass.passes import analog
from cnpass.passes.base import PASS_CONFIG, Pass, PassResult


@dataclass(frozen=True, config=PASS_CONFIG)
class StripPortable(Pass):
    """Remove the function bodies of analog nodes; the file is smaller and needs the native library."""

    name: ClassVar[str] = "strip-portable"

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        if analog.drop_bodies(document):
            return PassResult(modified=True, notes=("function bodies removed",))
        return PassResult(modified=False, notes=("the model has no function bodies of analog nodes",))
