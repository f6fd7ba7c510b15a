"""Putting compensation into a graph, and how a narrow one sits inside a wide one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder, Linear
from cnpass.compensation.kinds import KINDS, Kind
from cnpass.compensation.site import Site
from cnpass.document import Document
from cnpass.nodes import label, node_metadata
from cnpass.runtime import ops


@dataclass(frozen=True, eq=False)
class Insertion:
    """One compensation in a document.

    Attributes:
        site: The compensated node.
        kind: Kind of compensation.
        width: Filters of the generator.
        nodes: The nodes that were added.
        generator: The map that makes the filters.
        closing: The maps behind it; with the values that they were inserted with, nothing is changed.
    """

    site: Site
    kind: Kind
    width: int
    nodes: tuple[gs.Node, ...]
    generator: Linear
    closing: tuple[Linear, ...]

    @property
    def constants(self) -> tuple[gs.Constant, ...]:
        """Weights and biases, in an order that is the same for every width."""
        maps = (self.generator, *self.closing)
        return tuple(constant for linear in maps for constant in (linear.weight, linear.bias))

    def blocks(self, width: int) -> dict[str, tuple[slice, ...]]:
        """Where a compensation of the same kind and a smaller width lies in this one's constants, by name.

        Filters come first in the generator and last in what reads them, so that it is always the leading
        block: with the rest zero, or cut away, the outputs are the same.
        """
        cut = self.width - width
        shapes = {c.name: list(c.shape) for c in self.constants}
        shapes[self.generator.bias.name][0] -= cut
        shapes[self.generator.weight.name][self.generator.outputs_axis] -= cut
        for linear in self.closing:
            shapes[linear.weight.name][linear.inputs_axis] -= cut
        return {name: tuple(slice(n) for n in shape) for name, shape in shapes.items()}

    def narrowed(self, wide: Insertion, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take this compensation's constants out of a wider one's values.

        Args:
            wide: The wider compensation of the same site and kind, in another document.
            values: Its constants by name.
        """
        blocks = wide.blocks(self.width)
        pairs = zip(self.constants, wide.constants, strict=True)
        return {own.name: values[other.name][blocks[other.name]] for own, other in pairs}


def width_of(ratio: float, site: Site) -> int:
    """Filters of the generator for a ratio to the output channels; at least one."""
    return max(1, round(ratio * site.outputs))


def insert(document: Document, site: Site, kind: Kind, width: int, *, creator: str, seed: int) -> Insertion:
    """Insert a compensation that changes no output yet, behind others of the same site if there are any.

    What wrote the site's output writes `<name>.analog` instead; the compensation writes the old name, so that
    nothing else changes.

    Args:
        document: The site's document; it is changed.
        site: The node to compensate.
        kind: Kind of compensation.
        width: Filters of its generator.
        creator: Name of the pass that asks, for the nodes' metadata.
        seed: Seed of the generator's initial weights.
    """
    y, maker = site.y, site.y.inputs[0]
    analog = gs.Variable(document.fresh(f"{y.name}.analog"), dtype=y.dtype, shape=y.shape)
    maker.outputs[0] = analog
    if label(site.node) != site.label:  # it was called by its output
        node_metadata(site.node)[ops.META_NAME] = site.label
    builder = Builder(document, site, creator, seed=seed, analog=analog)
    last = KINDS[kind](builder, width)
    last.inputs[0].outputs[0] = y  # the node that made it writes the old name instead
    place = next(i for i, node in enumerate(document.graph.nodes) if node is maker)
    document.graph.nodes[place + 1 : place + 1] = builder.nodes
    generator, *closing = builder.maps
    return Insertion(site, kind, width, tuple(builder.nodes), generator, tuple(closing))
