"""Residual compensation: ``y + U relu(G [pool(x); y])``, U zero at the start."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder


def joined_input(builder: Builder) -> tuple[gs.Tensor, int]:
    """Return ``[pool(x); y]``, or y alone where x cannot be pooled, and how many channels that has."""
    site = builder.site
    pooled = builder.input()
    joined = builder.concat([*([] if pooled is None else [pooled]), builder.analog], "joined")
    return joined, site.outputs + (0 if pooled is None else site.inputs)


def generator(builder: Builder, width: int) -> gs.Variable:
    """Add ``relu(G [pool(x); y])`` with ``width`` filters, the generator of CorrectNet (reconstructed)."""
    joined, inputs = joined_input(builder)
    features = builder.linear(joined, builder.random(width, inputs), "generator")
    return builder.node("Relu", [features], "generated")


def residual(builder: Builder, width: int) -> gs.Variable:
    """Add a residual compensation with ``width`` filters; it costs ``width (C_in + 2 C_out)`` weights."""
    site = builder.site
    generated = generator(builder, width)
    correction = builder.linear(generated, np.zeros((site.outputs, width)), "compensator")
    return builder.node("Add", [builder.analog, correction], "compensated")
