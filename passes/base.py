"""The contract of graph passes: options, pre- and postconditions, a result that says what happened."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from cnpass.document import Document
from cnpass.errors import ModelError, UsageError

WORD = re.compile(r"[^\s{}\[\],=\"]+")
"""What needs no quotes in pipeline text."""

PASS_CONFIG = ConfigDict(extra="forbid")


class PassError(ModelError):
    """A pass cannot do its work on this model."""

    def __init__(self, name: str, message: str, before: tuple[str, ...] = ()) -> None:
        """An error of the pass `name`, which ran after the passes `before`."""
        after = f" (after {', '.join(before)})" if before else ""
        super().__init__(f"{name}: {message}{after}")
        self.name, self.message = name, message


class PassPreconditionError(PassError):
    """The model is not what the pass needs."""


class PassPostconditionError(PassError):
    """The pass did not do what it says; this is a bug."""

    exit_code = 70


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        modified: whether the document changed.
        notes: one line for each thing that a user may want to know: what was done, what was left and why.
    """

    modified: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionDescription:
    """One option of a pass; a bound is None where there is none."""

    name: str
    type: str
    default: Any
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class PassDescription:
    """What `cnpass passes show` prints."""

    name: str
    summary: str
    options: tuple[OptionDescription, ...]


class Pass(ABC):
    """One transformation of a document.

    Subclasses are frozen pydantic dataclasses; their fields are their options, each declared with
    `Field(default=..., description=...)` and its range.
    """

    name: ClassVar[str]

    @abstractmethod
    def apply(self, document: Document) -> PassResult:
        """Do the work in place.

        Raises:
            PassError: it cannot be done; the document may then be in any state.
        """

    def requires(self, document: Document) -> None:  # noqa: B027 (most passes require nothing)
        """Check what must hold before.

        Raises:
            PassPreconditionError: it does not.
        """

    def ensures(self, document: Document) -> None:  # noqa: B027 (most passes promise nothing beyond their work)
        """Check what must hold after.

        Raises:
            PassPostconditionError: it does not.
        """

    def __call__(self, document: Document) -> PassResult:
        """Run the pass with its checks.

        Raises:
            PassError: see `requires`, `apply`, `ensures`.
        """
        self.requires(document)
        result = self.apply(document)
        self.ensures(document)
        return result

    # options as text

    @classmethod
    def _fields(cls) -> dict[str, FieldInfo]:
        return getattr(cls, "__pydantic_fields__", {})

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The pass with the given options, named as in the pipeline text (`tile-rows`).

        Raises:
            UsageError: there is no such option, or the value is out of range.
        """
        try:
            return cls(**{option.replace("-", "_"): value for option, value in options.items()})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            option = str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
            if first["type"] == "unexpected_keyword_argument":
                known = ", ".join(o.name for o in cls.describe().options) or "none"
                raise UsageError(f"pass {cls.name!r} has no option {option!r}; it has: {known}") from None
            reason = first["msg"].removeprefix("Value error, ")
            raise UsageError(
                f"pass {cls.name!r}, option {option!r}: {reason[:1].lower()}{reason[1:]}"
            ) from None

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, named as in the pipeline text."""
        values = {name: (getattr(self, name), info) for name, info in self._fields().items()}
        return {
            name.replace("_", "-"): value
            for name, (value, info) in values.items()
            if value != info.get_default(call_default_factory=True, validated_data={})
        }

    def __str__(self) -> str:
        """The pass as text that `Pipeline.parse` reads: `name{option=value,...}`."""
        options = ",".join(f"{name}={_text(value)}" for name, value in self.options().items())
        return f"{self.name}{{{options}}}" if options else self.name

    @classmethod
    def describe(cls) -> PassDescription:
        """Name, one-line summary and options."""
        summary = (cls.__doc__ or "").partition("\n")[0]
        options = tuple(_describe(name, info) for name, info in cls._fields().items())
        return PassDescription(cls.name, summary, options)


def without_defaults(before: Collection[str], document: Document) -> tuple[str, ...]:
    """Say which initializers callers could override before a pass, and cannot now."""
    now = set(document.defaults)
    return tuple(f"callers cannot override {name!r} any more" for name in before if name not in now)


def _describe(name: str, info: FieldInfo) -> OptionDescription:
    bounds: dict[str, float] = {}
    for item in info.metadata:
        for side, key in (("ge", "minimum"), ("gt", "minimum"), ("le", "maximum"), ("lt", "maximum")):
            if hasattr(item, side):
                bounds[key] = getattr(item, side)
    annotation = info.annotation
    choices = tuple(str(c) for c in get_args(annotation)) if get_origin(annotation) is Literal else ()
    return OptionDescription(
        name=name.replace("_", "-"),
        type="choice" if choices else str(getattr(annotation, "__name__", annotation)),
        default=info.get_default(call_default_factory=True, validated_data={}),
        minimum=bounds.get("minimum"),
        maximum=bounds.get("maximum"),
        choices=choices,
        help=info.description or "",
    )


def _text(value: Any) -> str:
    """A value in pipeline text; the option's type says how it reads back."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(item) for item in value)}]"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if WORD.fullmatch(text) else json.dumps(text, ensure_ascii=False)
