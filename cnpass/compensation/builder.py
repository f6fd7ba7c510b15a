"""Writing compensation nodes into a document: standard operators, marked as what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.regression import Float64
from cnpass.compensation.site import Site
from cnpass.document import Document
from cnpass.nodes import Node, node_metadata
from cnpass.runtime import ops

_AXES_AS_INPUT = 18
"""From this opset on ReduceMean takes its axes as an input."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map over channels or features.

    Attributes:
        weight: [out, in, 1, ...] of a convolution, [in, out] of a product.
        bias: [out].
        outputs_axis: Axis of the outputs in the weight.
    """

    weight: gs.Constant
    bias: gs.Constant
    outputs_axis: int

    @property
    def inputs_axis(self) -> int:
        """Axis of the inputs in the weight."""
        return 1 - self.outputs_axis


@dataclass(frozen=True, eq=False)
class Part:
    """One stored tensor of a compensation.

    Attributes:
        constant: The tensor.
        axis: Axis along which it grows with the width of the generator; None if it does not.
    """

    constant: gs.Constant
    axis: int | None = None


@dataclass(frozen=True)
class Known:
    """What is known where compensation is inserted.

    Attributes:
        directions: Orthonormal columns [inputs, inputs] by label of the node: the directions along which
            most of what enters it lies, the first most.
        factor: Mean factor by which chips multiply stored weights.
    """

    directions: Mapping[str, Float64] = field(default_factory=dict)
    factor: float = 1.0


NOTHING = Known()


class Builder:
    """Makes the nodes of one compensation: first of all its generator, then what reads that.

    Args:
        document: Where names and operators have to fit.
        site: The compensated node.
        creator: Name of the pass that writes the nodes.
        seed: Seed of random initial weights.
        analog: Tensor that the compensated node writes from now on.
        known: What is known of what enters the node, and of the chips.

    Attributes:
        ahead: Nodes that come before the compensated one.
        nodes: Nodes that come behind it.
        entered: Tensor that the compensated node reads instead of its input; None for that.
    """

    def __init__(
        self,
        document: Document,
        site: Site,
        creator: str,
        *,
        seed: int,
        analog: gs.Variable,
        known: Known = NOTHING,
    ) -> None:
        self.site = site
        self.analog = analog
        self.known = known
        self.ahead: list[gs.Node] = []
        self.nodes: list[gs.Node] = []
        self.maps: list[Linear] = []
        self.parts: list[Part] = []
        self.entered: gs.Variable | None = None
        self._document = document
        self._random = np.random.default_rng(seed)
        self._metadata = {
            ops.META_PASS: creator,
            ops.META_NAME: site.label,
            ops.META_OP_TYPE: site.node.op,
            ops.META_ROLE: ops.ROLE_COMPENSATION,
        }

    def node(self, op: str, inputs: list[gs.Tensor], name: str, **attributes: Any) -> gs.Variable:
        """Add a node; return its output."""
        return self._node(op, inputs, name, self.site.dtype, attributes)

    def shape(self, tensor: gs.Tensor, name: str) -> gs.Variable:
        """Add a node that gives a tensor's shape."""
        return self._node("Shape", [tensor], name, np.int64, {})

    def _node(
        self, op: str, inputs: list[gs.Tensor], name: str, dtype: Any, attributes: dict[str, Any]
    ) -> gs.Variable:
        output = gs.Variable(self._name(name), dtype=dtype)
        node = Node(op, output.name, attributes, inputs, [output])
        node_metadata(node).update(self._metadata)
        self.nodes.append(node)
        return output

    def constant(self, name: str, values: np.ndarray) -> gs.Constant:
        """Add a constant in the type of the compensated tensors; integers stay integers."""
        typed = values if values.dtype.kind in "iu" else values.astype(self.site.dtype)
        return self._document.initializer(f"{self.site.y.name}.{name}", typed)

    def weight(self, name: str, values: np.ndarray, *, axis: int | None = None) -> gs.Constant:
        """Add a constant that training changes; see `Part`."""
        constant = self.constant(name, values)
        self.parts.append(Part(constant, axis))
        return constant

    def first(self, op: str, inputs: list[gs.Tensor], name: str, **attributes: Any) -> gs.Variable:
        """Add a node before the compensated one; return its output."""
        output = self.node(op, inputs, name, **attributes)
        self.ahead.append(self.nodes.pop())
        return output

    def directions(self, width: int) -> np.ndarray:
        """Return orthonormal directions [inputs, width] along which most of the input lies, the first most.

        Where nothing is known of it, they are those of its first channels or features.
        """
        found = self.known.directions.get(self.site.label)
        return np.eye(self.site.inputs, width) if found is None else found[:, :width]

    def average_weight(self) -> np.ndarray:
        """Return what the compensated node multiplies by on the average chip; see `Site.matrix`."""
        return self.site.matrix(self._document.opset) * self.known.factor

    def analog_weight(self) -> np.ndarray:
        """Return the values of the compensated node's weight, as the node reads them."""
        return self.site.weight.values(self._document.opset)

    def _name(self, name: str) -> str:
        return str(self._document.fresh(f"{self.site.y.name}.{name}"))

    def input(self) -> gs.Tensor | None:
        """Return the compensated node's input at the size of its output; None if that cannot be made."""
        site = self.site
        if not site.sees_input:
            return None
        return site.x if site.pool is None else self.node("AveragePool", [site.x], "pooled", **site.pool)

    def concat(self, tensors: list[gs.Tensor], name: str) -> gs.Tensor:
        """Join tensors along channels or features."""
        return self.node("Concat", tensors, name, axis=self.site.axis) if len(tensors) > 1 else tensors[0]

    def linear(self, x: gs.Tensor, weight: np.ndarray, name: str) -> gs.Variable:
        """Add a linear map over channels or features with a bias of zero.

        Args:
            x: Input.
            weight: [out, in].
            name: What the map is called.
        """
        conv, generates = self.site.is_conv, not self.maps
        values = self.kernel(weight) if conv else weight.T
        outputs_axis = 0 if conv else 1
        stored = self.weight(f"{name}.weight", values, axis=outputs_axis if generates else 1 - outputs_axis)
        bias = self.weight(f"{name}.bias", np.zeros(len(weight)), axis=0 if generates else None)
        self.maps.append(Linear(stored, bias, outputs_axis))
        if conv:
            return self.node("Conv", [x, stored, bias], name)
        return self.node("Add", [self.node("MatMul", [x, stored], f"{name}.product"), bias], name)

    def kernel(self, weight: np.ndarray) -> np.ndarray:
        """Return a map [out, in] as the weight of a convolution with a kernel of 1."""
        return weight.reshape(*weight.shape, *[1] * (self.site.rank - 2))

    def random(self, outputs: int, inputs: int) -> np.ndarray:
        """Return initial weights [out, in] for a map before a Relu (K. He et al., 2015)."""
        return self._random.normal(0.0, math.sqrt(2 / inputs), (outputs, inputs))

    def mean(self, x: gs.Tensor, name: str, axes: tuple[int, ...] | None = None) -> gs.Tensor:
        """Average over the positions of a sample, or given axes; the axes stay, with one element each."""
        axes = self.site.space if axes is None else axes
        if self._document.opset < _AXES_AS_INPUT:
            return self.node("ReduceMean", [x], name, axes=list(axes), keepdims=1)
        given = self.constant(f"{name}.axes", np.array(axes, np.int64))
        return self.node("ReduceMean", [x, given], name, keepdims=1)
