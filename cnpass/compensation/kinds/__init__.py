"""Kinds of compensation: each a function that adds nodes and returns the compensated output.

Every kind starts as the identity: inserted and not yet trained, it changes no output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.kinds.gain import gain
from cnpass.compensation.kinds.linear import linear
from cnpass.compensation.kinds.paper import paper
from cnpass.compensation.kinds.residual import residual

Kind = Literal["residual", "gain", "linear", "paper"]
KINDS: dict[Kind, Callable[[Builder, int], gs.Variable]] = {
    "residual": residual,
    "gain": gain,
    "linear": linear,
    "paper": paper,
}


def kind_names() -> list[str]:
    """Return the names of all kinds."""
    return list(get_args(Kind))


__all__ = ["KINDS", "Kind", "gain", "kind_names", "linear", "paper", "residual"]
