"""Linear compensation: ``y + U (G [pool(x); y])``, no activation, U zero at the start.

A map of limited rank, which least squares can fit exactly (`cnpass.compensation.closed_form`).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.kinds.residual import joined_input


def linear(builder: Builder, width: int) -> gs.Variable:
    """Add a linear compensation of rank ``width``; it costs ``width (C_in + 2 C_out)`` weights."""
    joined, inputs = joined_input(builder)
    reduced = builder.linear(joined, builder.random(width, inputs), "generator")
    correction = builder.linear(reduced, np.zeros((builder.site.outputs, width)), "compensator")
    return builder.node("Add", [builder.analog, correction], "compensated")
