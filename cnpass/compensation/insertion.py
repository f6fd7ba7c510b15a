"""Putting compensation into a graph, and how a narrow one sits inside a wide one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import NOTHING, Builder, Known, Linear, Part
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
        analog: What it compensates: the node's own output, or that of the compensation before this one.
        nodes: The nodes that were added.
        last: The one whose output is the compensated one.
        maps: Linear maps: the one that makes the filters, and those that read them.
        parts: Everything stored.
        entered: What the node reads instead of the site's x; None for x.
    """

    site: Site
    kind: Kind
    width: int
    analog: gs.Variable
    nodes: tuple[gs.Node, ...]
    last: gs.Node
    maps: tuple[Linear, ...]
    parts: tuple[Part, ...]
    entered: gs.Variable | None

    @property
    def passed_by(self) -> dict[str, str]:
        """Tensors that stand for others, by the names of these, where the compensation is passed by."""
        names = {self.last.outputs[0].name: self.analog.name}
        return names if self.entered is None else names | {self.entered.name: self.site.x.name}

    @property
    def generator(self) -> Linear:
        """The map that makes the filters."""
        return self.maps[0]

    @property
    def closing(self) -> tuple[Linear, ...]:
        """The maps behind it."""
        return self.maps[1:]

    @property
    def constants(self) -> tuple[gs.Constant, ...]:
        """Everything stored, in an order that is the same for every width."""
        return tuple(part.constant for part in self.parts)

    def blocks(self, width: int) -> dict[str, tuple[slice, ...]]:
        """Where a compensation of the same kind and a smaller width lies in this one's constants, by name.

        Filters come first in the generator and last in what reads them, so that it is always the leading
        block: with the rest zero, or cut away, the outputs are the same.
        """
        shapes = {part.constant.name: list(part.constant.shape) for part in self.parts}
        for part in self.parts:
            if part.axis is not None:
                shapes[part.constant.name][part.axis] -= self.width - width
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


def width_of(ratio: float, site: Site, kind: Kind) -> int:
    """Filters of the generator for a ratio to the output channels: at least one, no more than are of use."""
    width = max(1, round(ratio * site.outputs))
    return min(width, KINDS[kind].widest(site) or width)


def insert(
    document: Document,
    site: Site,
    kind: Kind,
    width: int,
    *,
    creator: str,
    seed: int,
    known: Known = NOTHING,
) -> Insertion:
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
        known: What is known of what enters the node, and of the chips.
    """
    y, maker = site.y, site.y.inputs[0]
    analog = gs.Variable(document.fresh(f"{y.name}.analog"), dtype=y.dtype, shape=y.shape)
    maker.outputs[0] = analog
    if label(site.node) != site.label:  # it was called by its output
        node_metadata(site.node)[ops.META_NAME] = site.label
    builder = Builder(document, site, creator, seed=seed, analog=analog, known=known)
    (last,) = KINDS[kind].build(builder, width).inputs
    last.outputs[0] = y  # it writes the old name instead
    if builder.entered is not None:
        site.node.inputs[0] = builder.entered
    _insert_at(document, site.node, 0, builder.ahead)
    _insert_at(document, maker, 1, builder.nodes)
    nodes, maps, parts = (*builder.ahead, *builder.nodes), tuple(builder.maps), tuple(builder.parts)
    return Insertion(site, kind, width, analog, nodes, last, maps, parts, builder.entered)


def _insert_at(document: Document, node: gs.Node, offset: int, more: Sequence[gs.Node]) -> None:
    """Put nodes before one of the main graph (offset 0), or behind it (1)."""
    nodes = document.graph.nodes
    place = next(i for i, each in enumerate(nodes) if each is node) + offset
    nodes[place:place] = more
