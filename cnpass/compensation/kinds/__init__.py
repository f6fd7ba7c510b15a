"""Kinds of compensation: each a function that adds nodes and returns the compensated output.

Inserted and not yet trained, none changes an output of the ideal chip; only `probe` changes those of others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.kinds.gain import gain
from cnpass.compensation.kinds.linear import linear
from cnpass.compensation.kinds.paper import paper
from cnpass.compensation.kinds.probe import probe
from cnpass.compensation.kinds.probe import unsuited as unsuited_probe
from cnpass.compensation.kinds.residual import residual
from cnpass.compensation.site import Site

Kind = Literal["residual", "gain", "probe", "linear", "paper"]
KINDS: dict[Kind, Callable[[Builder, int], gs.Variable]] = {
    "residual": residual,
    "gain": gain,
    "probe": probe,
    "linear": linear,
    "paper": paper,
}


def unsuited(kind: Kind, site: Site) -> str | None:
    """Say why a kind does not suit a site; None if it does."""
    return unsuited_probe(site) if kind == "probe" else None


def kind_names() -> list[str]:
    """Return the names of all kinds."""
    return list(get_args(Kind))


__all__ = ["KINDS", "Kind", "gain", "kind_names", "linear", "paper", "probe", "residual", "unsuited"]
