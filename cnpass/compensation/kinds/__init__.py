"""Kinds of compensation: each adds nodes around an analog one and gives the compensated output.

Inserted and not yet trained, none changes an output of the ideal chip, but for a bypass that allows for the
mean factor of chips. Outputs of other chips are changed by those that are `UNTRAINED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.kinds.affine import affine, no_generator
from cnpass.compensation.kinds.bypass import bypass, most_directions, without_bypass
from cnpass.compensation.kinds.gain import gain
from cnpass.compensation.kinds.linear import linear
from cnpass.compensation.kinds.paper import paper
from cnpass.compensation.kinds.probe import most_features, probe, without_probes
from cnpass.compensation.kinds.residual import residual
from cnpass.compensation.site import Site

Kind = Literal["bypass", "residual", "gain", "probe", "affine", "linear", "paper"]


@dataclass(frozen=True)
class Definition:
    """How a kind is made.

    Attributes:
        build: Adds its nodes with a generator of some width, and returns the compensated output.
        unsuited: Says why it does not suit a site; None if it does.
        widest: Gives the width beyond which nothing is gained at a site; None for no such.
    """

    build: Callable[[Builder, int], gs.Variable]
    unsuited: Callable[[Site], str | None] = lambda _: None
    widest: Callable[[Site], int | None] = lambda _: None


KINDS: dict[Kind, Definition] = {
    "bypass": Definition(bypass, without_bypass, most_directions),
    "residual": Definition(residual),
    "gain": Definition(gain),
    "probe": Definition(probe, without_probes, most_features),
    "affine": Definition(affine, widest=no_generator),
    "linear": Definition(linear),
    "paper": Definition(paper),
}


UNTRAINED: tuple[Kind, ...] = ("probe", "bypass")
"""Kinds that help before they are trained."""


def kind_names() -> list[str]:
    """Return the names of all kinds."""
    return list(get_args(Kind))


__all__ = [
    "KINDS",
    "UNTRAINED",
    "Kind",
    "affine",
    "bypass",
    "gain",
    "kind_names",
    "linear",
    "paper",
    "probe",
    "residual",
]
