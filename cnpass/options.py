"""Value types that options accept as text and as TOML values alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, FiniteFloat, PlainSerializer

LARGEST_TILE = 2**31 - 1
"""Most rows and columns of a tile that an option may ask for; an attribute of a node has room for more."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _number(text: object) -> object:
    """One number; text may be a fraction such as ``1/255``."""
    if isinstance(text, bool):
        raise ValueError("give a number, not true or false")  # noqa: TRY004 (pydantic takes no TypeError)
    if not isinstance(text, str) or "/" not in text:
        return text
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom)
    except (ValueError, ZeroDivisionError):
        return text


def _numbers(value: object) -> object:
    """``"0.1, 1/255"``, a single number or a sequence of them, as a tuple."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    elif not isinstance(value, Sequence):
        value = [value]
    return tuple(_number(part) for part in value)


def _shorten(values: Sequence[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


def _names(value: object) -> object:
    """``"flip, shift"`` or a sequence of names, as a tuple."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _assignments(value: object) -> object:
    """``["name=value", ...]`` as a mapping; other values pass."""
    if isinstance(value, Mapping):
        return {name: _number(number) for name, number in value.items()}
    if not isinstance(value, Sequence):
        return value
    pairs: dict[str, Any] = {}
    for item in value:
        name, _, number = (part.strip() for part in str(item).partition("="))
        if not name or not number:
            raise ValueError(f"'{item}' is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"'{name}' is given twice")
        pairs[name] = _number(number)
    return pairs


def _duration(value: object) -> object:
    """``"90s"``, ``"5m"`` or ``"1h"`` in seconds; numbers pass."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", value)
    if match is None:
        raise ValueError(f"give a time with its unit, such as 90s, 5m or 1h, not {value!r}")
    return float(match[1]) * _UNITS[match[2]]


Numbers = Annotated[tuple[FiniteFloat, ...], BeforeValidator(_numbers), PlainSerializer(_shorten)]
"""One number or several: 0.5, "0.1,0.3", "1/255", [0.1, 0.3]."""

Names = Annotated[tuple[str, ...], BeforeValidator(_names), PlainSerializer(",".join)]
"""One name or several: "flip", "flip,shift", ["flip", "shift"]."""

Assignments = Annotated[dict[str, FiniteFloat], BeforeValidator(_assignments)]
"""Named numbers: ["sigma=0.5"] or {"sigma": 0.5}."""

Duration = Annotated[
    FiniteFloat, BeforeValidator(_duration), PlainSerializer(lambda seconds: f"{seconds:g}s")
]
"""A time in seconds, written 90s, 5m or 1h."""
