"""Probe compensation: at a few positions the digital side computes what the crossbar should have given.

There the error of this chip on this sample is known, ``e = r - y``, r being the layer's own convolution at
every g-th position. Per channel it is regressed on m features of the input and on y, and what explains it
at the probes corrects all positions:

    y + t (mean e + sum_j (b_j - a s_j) (f_j - mean f_j) + a (y - mean y)),    f = G pool(x)

with means over the probes. The b_j regress e, and the s_j y, on the features in turn, each on what those
before it left; a regresses what is left of e on what is left of y (R. Frisch and F. V. Waugh, "Partial time
regressions as compared with individual trends", Econometrica 1, 1933). A slope of e on f, say, is ``<e, f>
/ ((1 + lambda) <f, f> + epsilon)``.

A filter whose weights should add up to nearly zero, an edge detector, say, lets the brightness of the image
through as soon as they vary: that is what the features take away, and a takes the wrong gain. Nothing is
remembered from sample to sample and nothing is known of the chip beforehand. G, the digital copy of the
layer's weights and the trust t (one at first; zero: no compensation) can be trained.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.site import Site
from cnpass.weights import constant_array

PROBES = 6
"""Probes along each axis of space, at most."""
MOST_FEATURES = 4
"""More could not be told apart with so few probes."""
_RIDGE = 0.01
_EPSILON = 1e-5
_POSITIONS = 2
"""Axis of the positions in [samples, channels, positions]."""


def without_probes(site: Site) -> str | None:
    """Say why a site cannot have probes; None if it can."""
    if not site.is_conv:
        return "probes need a convolution, whose outputs have positions"
    if None in site.extent:
        return "probes need to know the size of the convolution's output"
    if site.auto_padded and any(stride > 1 for stride in site.node.attrs.get("strides") or ()):
        return "probes need explicit pads where a convolution has strides"
    return None


def most_features(site: Site) -> int:
    """Return how many features are worth having at a site."""
    return min(MOST_FEATURES, site.inputs)


def probe(builder: Builder, width: int) -> gs.Variable:
    """Add a probe compensation with ``width`` features.

    It costs a copy of the layer's weights, ``width C_in`` for the features, and ``C_out``; of
    multiply-accumulates the layer's own at the probes, and ``width (C_in + C_out)`` at every position.
    """
    site, y = builder.site, builder.analog
    sizes = [size for size in site.extent if size is not None]
    strides = [math.ceil(size / PROBES) for size in sizes]
    probes = _Probes(builder, strides, sizes)
    reference = probes.flat(_reference(builder, strides), "reference")
    at_probes, everywhere = probes.picked(y, "analog"), probes.everywhere(y, "analog.all")
    difference = builder.node("Sub", [reference, at_probes], "difference")
    error, correction = probes.centred(difference, "error")
    level, level_mean = probes.centred(at_probes, "level")
    moved = builder.node("Sub", [everywhere, level_mean], "level.moved")
    pooled = builder.input()
    if pooled is None:
        slope = probes.slope(error, level, "level")
    else:
        weight = builder.kernel(builder.random(width, site.inputs))
        generator = builder.weight("generator.weight", weight, axis=0)
        features = builder.node("Conv", [pooled, generator], "features")
        seen, mean = probes.centred(probes.picked(features, "features"), "features")
        error_slopes, error = probes.regress(error, seen, width, "error")
        level_slopes, level = probes.regress(level, seen, width, "level")
        slope = probes.slope(error, level, "level")
        through_level = builder.node("Mul", [slope, level_slopes], "level.slopes.scaled")
        slopes = builder.node("Sub", [error_slopes, through_level], "features.slopes")
        features_moved = builder.node(
            "Sub", [probes.everywhere(features, "features.all"), mean], "features.moved"
        )
        explained = builder.node("MatMul", [slopes, features_moved], "features.explained")
        correction = builder.node("Add", [correction, explained], "features.correction")
    explained = builder.node("Mul", [moved, slope], "level.explained")
    correction = builder.node("Add", [correction, explained], "correction")
    trust = builder.weight("trust", np.ones((1, site.outputs, 1)))
    trusted = builder.node("Mul", [correction, trust], "trusted")
    corrected = builder.node("Add", [everywhere, trusted], "corrected")
    return builder.node("Reshape", [corrected, builder.shape(y, "shape")], "compensated")


def _reference(builder: Builder, strides: list[int]) -> gs.Variable:
    """Add the layer's own convolution at the probes alone, with weights of its own."""
    node, kernel = builder.site.node, builder.site.weight.shape[2:]
    attributes = {name: value for name, value in node.attrs.items() if name != "strides"}
    if builder.site.auto_padded:  # which would change with the strides
        attributes |= {"auto_pad": "NOTSET", "pads": _same_pads(node, kernel)}
    own = node.attrs.get("strides") or [1] * len(strides)
    attributes["strides"] = [stride * step for stride, step in zip(own, strides, strict=True)]
    inputs: list[gs.Tensor] = [builder.site.x, builder.weight("reference.weight", builder.analog_weight())]
    if len(node.inputs) > 2:  # data, weight, bias
        bias = constant_array(node.inputs[2])
        inputs.append(node.inputs[2] if bias is None else builder.weight("reference.bias", bias))
    return builder.node("Conv", inputs, "reference", **attributes)


def _same_pads(node: gs.Node, kernel: tuple[int, ...]) -> list[int]:
    """Return what auto_pad comes to where there are no strides."""
    dilations = node.attrs.get("dilations") or [1] * len(kernel)
    total = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    small, large = [size // 2 for size in total], [size - size // 2 for size in total]
    return [*small, *large] if node.attrs["auto_pad"] == "SAME_UPPER" else [*large, *small]


class _Probes:
    """Nodes on [samples, channels, positions], the positions being the probes."""

    def __init__(self, builder: Builder, strides: list[int], sizes: list[int]) -> None:
        self._builder, self._strides = builder, strides
        count = math.prod(-(-size // stride) for size, stride in zip(sizes, strides, strict=True))
        self._probes = builder.constant("probes.shape", np.array([0, 0, count], np.int64))
        self._all = builder.constant("all.shape", np.array([0, 0, math.prod(sizes)], np.int64))
        self._ridge = builder.constant("ridge", np.array(1 + _RIDGE))
        self._epsilon = builder.constant("epsilon", np.array(_EPSILON))

    def flat(self, tensor: gs.Tensor, name: str) -> gs.Variable:
        """Make one axis of all probes."""
        return self._builder.node("Reshape", [tensor, self._probes], f"{name}.flat")

    def everywhere(self, tensor: gs.Tensor, name: str) -> gs.Variable:
        """Make one axis of all positions."""
        return self._builder.node("Reshape", [tensor, self._all], f"{name}.flat")

    def picked(self, tensor: gs.Tensor, name: str) -> gs.Variable:
        """Take what lies at the probes; pooling with a kernel of 1 does so in every opset."""
        kernel = [1] * len(self._strides)
        picked = self._builder.node(
            "MaxPool", [tensor], f"{name}.picked", kernel_shape=kernel, strides=self._strides
        )
        return self.flat(picked, f"{name}.probes")

    def centred(self, tensor: gs.Tensor, name: str) -> tuple[gs.Variable, gs.Tensor]:
        """Take the mean away; returns what is left, and the mean."""
        mean = self._mean(tensor, f"{name}.mean")
        return self._builder.node("Sub", [tensor, mean], f"{name}.centred"), mean

    def slope(self, error: gs.Tensor, seen: gs.Tensor, name: str) -> gs.Variable:
        """Return the factor that takes what is seen nearest to the error, drawn a little towards zero."""
        node = self._builder.node
        together = self._mean(node("Mul", [error, seen], f"{name}.product"), f"{name}.covariance")
        alone = self._mean(node("Mul", [seen, seen], f"{name}.square"), f"{name}.variance")
        raised = node(
            "Add", [node("Mul", [alone, self._ridge], f"{name}.ridged"), self._epsilon], f"{name}.raised"
        )
        return node("Div", [together, raised], f"{name}.slope")

    def regress(
        self, target: gs.Tensor, seen: gs.Tensor, width: int, name: str
    ) -> tuple[gs.Tensor, gs.Tensor]:
        """Explain a target by features in turn; gives slopes [samples, channels, features] and the rest."""
        builder, slopes = self._builder, []
        for number in range(width):
            one = f"{name}.feature{number}"
            index = builder.constant(f"{one}.index", np.array([number], np.int64))
            feature = builder.node("Gather", [seen, index], one, axis=1)
            slopes.append(self.slope(target, feature, one))
            explained = builder.node("Mul", [slopes[-1], feature], f"{one}.explained")
            target = builder.node("Sub", [target, explained], f"{one}.left")
        if width == 1:
            return slopes[0], target
        return builder.node("Concat", slopes, f"{name}.slopes", axis=_POSITIONS), target

    def _mean(self, tensor: gs.Tensor, name: str) -> gs.Tensor:
        return self._builder.mean(tensor, name, (_POSITIONS,))
