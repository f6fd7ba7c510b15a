"""Places for compensation: an analog node, the tensors around it, and how its input meets its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.document import Document
from cnpass.mapping import MappingPlan, NodePlan
from cnpass.nodes import label, leading_to, node_metadata, scope
from cnpass.runtime import ops
from cnpass.shapes import Shapes, infer
from cnpass.weights import Weight

_FIRST_OPSET = 7
"""Before this opset elementwise operators do not broadcast as compensation needs it."""


@dataclass(frozen=True, eq=False)
class Site:
    """An analog node that can be compensated.

    Attributes:
        node: The node.
        label: Its name.
        x: Its input: [N, C_in, ...] of a convolution, [..., K] of a product.
        y: Its output: [N, C_out, ...] or [..., N].
        inputs: Channels or features of x.
        outputs: Channels or features of y.
        rank: Number of dimensions of y.
        is_conv: Whether the node is a convolution.
        weight: The node's weight.
        extent: Positions of a convolution's output along each axis of space; None where not known.
        pool: Attributes of the AveragePool that brings x to the size of y; None where it has that size.
        sees_input: Whether x can be brought to that size at all; else only y is looked at.
        dtype: NumPy type of x and y.
    """

    node: gs.Node
    label: str
    x: gs.Tensor
    y: gs.Tensor
    inputs: int
    outputs: int
    rank: int
    is_conv: bool
    weight: Weight
    extent: tuple[int | None, ...]
    pool: dict[str, Any] | None
    sees_input: bool
    dtype: Any

    @property
    def auto_padded(self) -> bool:
        """Whether a convolution's padding depends on the size of its input and on its strides."""
        return self.node.attrs.get("auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}

    @property
    def ungrouped(self) -> bool:
        """Whether every channel of y is made of all channels of x."""
        return not self.is_conv or self.weight.shape[1] == self.inputs

    def matrix(self, opset: int) -> np.ndarray:
        """Return what x is multiplied by: [C_out, C_in / groups, ...] of a convolution, [K, N] of a product.

        Args:
            opset: Of the model.
        """
        values, attributes = self.weight.values(opset), self.node.attrs
        if self.is_conv:
            return values
        values = values.T if attributes.get("transB", 0) else values
        alpha: float = attributes.get("alpha", 1.0) if self.node.op == "Gemm" else 1.0
        return values * alpha

    @property
    def axis(self) -> int:
        """Axis of channels or features."""
        return 1 if self.is_conv else self.rank - 1

    @property
    def space(self) -> tuple[int, ...]:
        """Axes over which one sample has many positions; empty for a product of plain vectors."""
        return tuple(range(2, self.rank)) if self.is_conv else tuple(range(1, self.rank - 1))


def find_sites(
    document: Document, plan: MappingPlan, *, behind: bool = False, for_first_output: bool = False
) -> tuple[dict[str, Site], dict[str, str]]:
    """Find every node that can be compensated.

    Args:
        document: The model.
        plan: Its mapping plan.
        behind: Whether nodes that are compensated already count, for another compensation before that one.
        for_first_output: Whether only nodes count that the model's first output depends on.

    Returns:
        Sites by label, in the order of the file; and for analog nodes that are none, the reason by label.
    """
    shapes = infer(document)
    compensated = {
        label(node)
        for node in document.graph.nodes
        if node_metadata(node).get(ops.META_ROLE) == ops.ROLE_COMPENSATION
    }
    needed = leading_to(document.graph.outputs[0], document.tensors()) if for_first_output else None
    sites: dict[str, Site] = {}
    reasons: dict[str, str] = {}
    for entry in plan.analog:
        if entry.label in compensated and not behind:
            reasons[entry.label] = "is compensated already"
            continue
        found = _site(document, entry, shapes)
        if not isinstance(found, Site):
            reasons[entry.label] = found
        elif needed is not None and id(entry.node) not in needed:
            reasons[entry.label] = "the first output does not depend on it"
        else:
            sites[entry.label] = found
    return sites, reasons


def _site(document: Document, entry: NodePlan, shapes: Shapes) -> Site | str:
    node, product = entry.node, entry.product
    if node is None or product is None:
        return "its weight is not a constant of the model"
    if scope(node):
        return "is in a body of If, Loop or Scan"
    if node.domain == ops.DOMAIN:
        return "is mapped already; compensation goes in before map-crossbar"
    if document.opset < _FIRST_OPSET:
        return f"needs opset {_FIRST_OPSET}, the model has {document.opset}"
    if product.operand != 1:
        return "its constant operand is on the left"
    if node.attrs.get("transA", 0):
        return "it transposes its input (transA)"
    is_conv = node.op == "Conv"
    x, y = node.inputs[0], node.outputs[0]
    rank = len(product.weight.shape) if is_conv else shapes.rank(y.name)
    if rank is None or rank < 2:
        return "the rank of its output is not known, or it is a vector"
    if not is_conv and shapes.rank(x.name) != rank:
        return "its input and output have different ranks"
    pool = _pool(node, product.weight.shape[2:]) if is_conv else None
    return Site(
        node=node,
        label=entry.label,
        x=x,
        y=y,
        inputs=product.rows if not is_conv else product.weight.shape[1] * product.groups,
        outputs=product.cols * product.groups,
        rank=rank,
        is_conv=is_conv,
        weight=product.weight,
        extent=_extent(shapes, y.name, rank) if is_conv else (),
        pool=pool if isinstance(pool, dict) else None,
        sees_input=not isinstance(pool, str),
        dtype=product.weight.dtype,
    )


def _extent(shapes: Shapes, name: str, rank: int) -> tuple[int | None, ...]:
    return (shapes.known.get(name) or (None,) * rank)[2:]


def _pool(node: gs.Node, kernel: tuple[int, ...]) -> dict[str, Any] | str | None:
    """Return the pooling that has the output size of a convolution, None if none is needed, or why not.

    A window of the dilated kernel's extent serves any dilation; dilated pooling would need opset 19.
    """
    n = len(kernel)
    strides = list(node.attrs.get("strides") or [1] * n)
    dilations = node.attrs.get("dilations") or [1] * n
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    pads = list(node.attrs.get("pads") or [0] * 2 * n) if auto_pad == "NOTSET" else [0] * 2 * n
    if all(e == 1 for e in extent) and all(s == 1 for s in strides) and not any(pads):
        return None
    if any(p >= e for p, e in zip(pads, extent * 2, strict=True)):
        return "its padding is wider than its kernel"
    attributes: dict[str, Any] = {"kernel_shape": extent, "strides": strides}
    if auto_pad == "NOTSET":
        return attributes | {"pads": pads}
    return attributes | {"auto_pad": auto_pad}
