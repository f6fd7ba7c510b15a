"""Bypass compensation: what most inputs of a layer have in common goes around the crossbar.

With U [C_in, m] the directions along which most of the input lies (its principal components), the crossbar
gets what is left of x, and the digital side multiplies the rest:

    y = W (x - U U' x) + V (U' x),    V = g W U

with g the mean factor by which chips multiply weights that are stored as they are (`Known.factor`); where it
is 1, the ideal chip gives W x. A device that varies multiplies its error by its input, so that the error of
a layer falls with the energy of what enters the crossbar; and no other m directions take more of that away.
The inputs of a layer behind a Relu lie mostly along a few. U and V can be trained.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.site import Site

MOST_INPUTS = 4096
"""Inputs of a node up to which their principal components are looked for: these take 0.1 GB then."""


def without_bypass(site: Site) -> str | None:
    """Say why nothing can go around a site; None if something can."""
    if not site.ungrouped:
        return "a bypass needs a convolution without groups"
    if site.inputs > MOST_INPUTS:
        return f"a bypass needs principal components, which are looked for among {MOST_INPUTS} inputs at most"
    return None


def most_directions(site: Site) -> int:
    """Return how many directions there are at a site."""
    return site.inputs


def bypass(builder: Builder, width: int) -> gs.Variable:
    """Add a bypass of ``width`` directions, for ``width (C_in + k C_out)`` weights; k: taps of the kernel.

    Of multiply-accumulates, those of the layer with ``width`` inputs, and ``2 width C_in`` per position of x.
    """
    site, directions = builder.site, builder.directions(width)
    weight = builder.average_weight()
    if site.is_conv:
        encoder = builder.weight("directions", builder.kernel(directions.T), axis=0)
        decoder = _swapped(builder, encoder)
        along = builder.first("Conv", [site.x, encoder], "along")
        common = builder.first("Conv", [along, decoder], "common")
        reduced = builder.weight("bypass.weight", np.einsum("oi...,im->om...", weight, directions), axis=1)
        bypassed = builder.node("Conv", [along, reduced], "bypass", **site.node.attrs)
    else:
        encoder = builder.weight("directions", directions, axis=1)
        decoder = _swapped(builder, encoder)
        along = builder.first("MatMul", [site.x, encoder], "along")
        common = builder.first("MatMul", [along, decoder], "common")
        reduced = builder.weight("bypass.weight", directions.T @ weight, axis=0)
        bypassed = builder.node("MatMul", [along, reduced], "bypass")
    builder.entered = builder.first("Sub", [site.x, common], "left")
    return builder.node("Add", [builder.analog, bypassed], "compensated")


def _swapped(builder: Builder, encoder: gs.Constant) -> gs.Variable:
    """Return the encoder with inputs and outputs swapped; it is stored, and trained, once."""
    others = range(2, len(encoder.shape))
    return builder.first("Transpose", [encoder], "directions.back", perm=[1, 0, *others])
