"""`replicate-weights`: several devices per weight, on rows that the tiles leave free."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import ClassVar, NamedTuple

import onnx_graphsurgeon as gs
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.document import Document
from cnpass.inspection import DEFAULT_TILE, layout, tile_of
from cnpass.mapping import Product, plan
from cnpass.nodes import label
from cnpass.options import LARGEST_TILE
from cnpass.passes import analog, periphery
from cnpass.passes.base import (
    PASS_CONFIG,
    Pass,
    PassPreconditionError,
    PassResult,
)
from cnpass.runtime import ops
from cnpass.runtime.copies import SINGLE, Copies

_AS_THEY_ARE = f"default: as the nodes have it, else {DEFAULT_TILE}"


@dataclass(frozen=True, config=PASS_CONFIG)
class ReplicateWeights(Pass):
    """Spread every weight over the devices that fit into the rows its tiles leave free.

    R devices on one column, their rows driven by the same input, hold R copies of a weight; their mean
    varies by 1 / sqrt(R) of what one device does. In the tiles that a weight has anyway they cost neither
    tiles nor ADC conversions. `cnpass inspect` counts both by the same rules (`cnpass.inspection.layout`).
    Rows that are left then hold one more copy of the weights of as many rows, the first ones of each tile.

    `extra-tiles` are spent one purchase at a time: of the tiles that would give one weight at least one more
    copy, those with the largest fall of its variance, 1 / R, per tile; among equals, the weight that is used
    first. The new tiles are filled up. Every row of tiles that is added costs ADC conversions too.

    A weight that several nodes read gets one number of copies. If they read it in different ways (along and
    across, in different groups or tiles), it keeps one: its copies would lie on one column for one node only.
    Its rows have as many copies each if groups share tiles, or if the model makes the weight of one that is
    stored in another layout, since training could not tell its rows.

    Where nodes have tiles (`map-crossbar{tile-rows=...}`), these are what copies fill: the runtime simulates
    copies in them, so the options may not say otherwise. Where copies leave a tile fewer rows of the weight,
    or more, its partial sums are others and `output_range` is unset: `calibrate-ranges` comes afterwards.
    """

    name: ClassVar[str] = "replicate-weights"

    tile_rows: int | None = Field(
        default=None, ge=1, le=LARGEST_TILE, description=f"rows of a crossbar tile, {_AS_THEY_ARE}"
    )
    tile_cols: int | None = Field(
        default=None, ge=1, le=LARGEST_TILE, description=f"columns of a crossbar tile, {_AS_THEY_ARE}"
    )
    max_copies: int = Field(
        default=ops.MAX_COPY + 1, ge=1, le=ops.MAX_COPY + 1, description="most devices per weight"
    )
    extra_tiles: int = Field(
        default=0, ge=0, le=10**6, description="tiles that may be added, where they lower variance most"
    )

    def requires(self, document: Document) -> None:
        """There are analog nodes, and their tiles are those of the options."""
        if not any(True for _ in analog.analog_nodes(document)):
            raise PassPreconditionError(self.name, "the model has no analog node; put map-crossbar before it")
        for node in analog.analog_nodes(document):
            for name, asked in ((ops.TILE_ROWS, self.tile_rows), (ops.TILE_COLS, self.tile_cols)):
                present = node.attrs.get(name, 0)
                if present and asked not in (None, present):
                    option = name.replace("_", "-")
                    raise PassPreconditionError(
                        self.name,
                        f"node {label(node)!r} has {option} {present}, the option says {asked}; leave it out",
                    )

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        nodes: list[gs.Node] = []
        uses: dict[str, list[_Use]] = defaultdict(list)
        notes = []
        for entry in plan(document).analog:
            if entry.node is None or entry.node.domain != ops.DOMAIN:
                continue
            nodes.append(entry.node)
            if entry.product is None or entry.node.attrs.get("device") == ops.PROGRAMMED:
                notes.append(f"node {entry.label!r} stays: its weight is programmed already")
            else:
                uses[entry.product.weight.key].append(
                    _Use(entry.node, self._matrix(entry.node, entry.product))
                )
        matrices = {}
        for key, found in uses.items():
            if len({use.way for use in found}) == 1:
                matrices[key] = found[0].matrix
            else:
                notes.append(f"weight {key!r} keeps one copy: nodes read it in different ways")
        counts, added = self._counts(matrices)
        copies = {key: self._filled(matrix, counts[key]) for key, matrix in matrices.items()}
        wanted = {id(use.node): copies.get(key, SINGLE) for key, found in uses.items() for use in found}
        for use in (use for found in uses.values() for use in found):
            use.unset_stale_range(wanted[id(use.node)])
        modified = _write(nodes, wanted)
        if modified and analog.drop_bodies(document):
            analog.write_bodies(document)
        several = [each for each in copies.values() if each != SINGLE]
        done = f"{len(several)} of {len(uses)} weights have several copies"
        if several:
            done += f", {min(each.count for each in several)} to {max(each.most for each in several)}"
        if self.extra_tiles:
            done += f"; {added} tiles added"
        return PassResult(modified, (done, *notes, *periphery.missing_ranges(nodes)))

    def _matrix(self, node: gs.Node, product: Product) -> _Matrix:
        return _Matrix(product, *tile_of(node, self.tile_rows, self.tile_cols))

    def _counts(self, matrices: dict[str, _Matrix]) -> tuple[dict[str, int], int]:
        """Copies that all rows of each weight have, and how many tiles they add."""
        copies = {key: self._most(matrix, matrix.tiles(1)) for key, matrix in matrices.items()}
        heap = [
            offer
            for order, (key, matrix) in enumerate(matrices.items())
            if (offer := self._offer(order, key, matrix, copies[key]))
        ]
        heapq.heapify(heap)
        left = self.extra_tiles
        while heap:
            offer = heapq.heappop(heap)
            # One that is too dear now stays so, and so is all that this weight could ask for after it.
            if offer.tiles <= left:
                left -= offer.tiles
                copies[offer.key] = offer.copies
                following = self._offer(offer.order, offer.key, matrices[offer.key], offer.copies)
                if following:
                    heapq.heappush(heap, following)
        return copies, self.extra_tiles - left

    def _offer(self, order: int, key: str, matrix: _Matrix, copies: int) -> _Offer | None:
        """The fewest tiles that give a weight more copies than it has; None if it may have no more."""
        if not self.extra_tiles or copies >= self.max_copies:
            return None
        tiles = matrix.tiles(copies + 1)
        more = self._most(matrix, tiles)
        added = tiles - matrix.tiles(copies)
        return _Offer((Fraction(1, more) - Fraction(1, copies)) / added, order, key, more, added)

    def _most(self, matrix: _Matrix, tiles: int) -> int:
        """The most copies of a weight that fit into so many tiles; at least 1."""
        return max(1, bisect_right(range(1, self.max_copies + 1), tiles, key=matrix.tiles))

    def _filled(self, matrix: _Matrix, count: int) -> Copies:
        """So many copies, and one more where rows are left for them."""
        product, tile_rows, _ = matrix
        whole = Copies(count)
        shared = matrix.tiles(count) < product.groups
        if shared or not product.weight.stored_as_root or count >= min(self.max_copies, tile_rows):
            return whole
        # The rows are spread evenly over the tiles that they take, so that these have as many to spare each.
        down = max(1, ceil(product.rows / whole.held(tile_rows)))
        depth = ceil(product.rows / down)
        extra = tile_rows - depth * count
        return Copies(count, extra, depth) if 0 < extra < depth else whole


class _Matrix(NamedTuple):
    """A weight and the tiles that it lies in."""

    product: Product
    tile_rows: int
    tile_cols: int

    def tiles(self, count: int) -> int:
        """Tiles that so many copies take."""
        return layout(replace(self.product, copies=Copies(count)), self.tile_rows, self.tile_cols).tiles


class _Offer(NamedTuple):
    """Tiles that one weight could get; the best of several is the smallest."""

    change: Fraction  # of its variance per tile
    order: int  # by first use
    key: str
    copies: int
    tiles: int


class _Use(NamedTuple):
    """A node that reads a weight."""

    node: gs.Node
    matrix: _Matrix

    @property
    def way(self) -> tuple[int, ...]:
        """What all nodes must have in common for copies to lie on columns of each."""
        axis = ops.column_axis(self.node.op, self.node.attrs.get(ops.WEIGHT_PERM))
        product, *tile = self.matrix
        return axis, product.rows, product.cols, product.groups, *tile

    def unset_stale_range(self, copies: Copies) -> None:
        """Unset the ADC's range if such copies change which rows share a tile, and so what it converts."""
        around, product = periphery.of_node(self.node), self.matrix.product
        stale = around.tiles(product.rows, product.copies) != around.tiles(product.rows, copies)
        if around.output_range and stale:
            self.node.attrs[ops.OUTPUT_RANGE] = 0.0


def _write(nodes: list[gs.Node], copies: Mapping[int, Copies]) -> bool:
    """Write the attributes, each on all nodes since bodies want it so, or on none where no node needs it.

    Args:
        nodes: all analog nodes.
        copies: by the node's id; one where absent.

    Returns:
        Whether any node changed.
    """
    before = [dict(node.attrs) for node in nodes]
    wanted = [copies.get(id(node), SINGLE) for node in nodes]
    needed = {name for each in wanted for name in each.attributes()}
    for node, each in zip(nodes, wanted, strict=True):
        for name, value in ((ops.COPIES, each.count), (ops.EXTRA_COPIES, [each.extra, each.depth])):
            node.attrs.pop(name, None)
            if name in needed:
                node.attrs[name] = value
    return before != [dict(node.attrs) for node in nodes]
