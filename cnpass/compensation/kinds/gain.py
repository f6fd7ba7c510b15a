"""Gain compensation: per sample and channel ``y (1 + a) + b`` from statistics of input and output.

Mean and deviation over space of x and y feed two small dense layers; a and b are zero at the start. A product
of plain vectors has no space, so there x and y themselves are looked at.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder

_EPSILON = 1e-5


def gain(builder: Builder, width: int) -> gs.Variable:
    """Add a gain compensation with a hidden layer of ``width``; next to no multiplications for images."""
    site, y = builder.site, builder.analog
    if site.space:
        looked = [*_statistics(builder, site.x, "x"), *_statistics(builder, y, "y")]
        inputs = 2 * (site.inputs + site.outputs)
    else:
        looked, inputs = [site.x, y], site.inputs + site.outputs
    joined = builder.concat(looked, "statistics")
    hidden = builder.linear(joined, builder.random(width, inputs), "generator")
    generated = builder.node("Relu", [hidden], "generated")
    zero = np.zeros((site.outputs, width))
    factor = builder.linear(generated, zero, "gain")
    offset = builder.linear(generated, zero, "offset")
    scaled = builder.node("Add", [y, builder.node("Mul", [y, factor], "scaling")], "scaled")
    return builder.node("Add", [scaled, offset], "compensated")


def _statistics(builder: Builder, tensor: gs.Tensor, name: str) -> list[gs.Tensor]:
    """Return mean and standard deviation over space."""
    mean = builder.mean(tensor, f"{name}.mean")
    centred = builder.node("Sub", [tensor, mean], f"{name}.centred")
    variance = builder.mean(builder.node("Mul", [centred, centred], f"{name}.square"), f"{name}.variance")
    epsilon = builder.constant(f"{name}.epsilon", np.array(_EPSILON))
    raised = builder.node("Add", [variance, epsilon], f"{name}.raised")
    return [mean, builder.node("Sqrt", [raised], f"{name}.deviation")]
