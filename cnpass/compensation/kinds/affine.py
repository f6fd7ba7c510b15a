"""Affine compensation: ``a y + b``, a factor and an offset per channel, the same for all samples."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.site import Site


def no_generator(_: Site) -> int:
    """Return the only width: there is no generator that could be wider."""
    return 1


def affine(builder: Builder, _: int) -> gs.Variable:
    """Add a factor of one and an offset of zero per channel; no multiply-accumulates."""
    site = builder.site
    shape = (site.outputs, *[1] * (site.rank - 2)) if site.is_conv else (site.outputs,)
    factor = builder.weight("factor", np.ones(shape))
    offset = builder.weight("offset", np.zeros(shape))
    scaled = builder.node("Mul", [builder.analog, factor], "scaled")
    return builder.node("Add", [scaled, offset], "compensated")
