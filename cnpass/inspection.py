"""What of a model would run on crossbars, and what hardware that takes.

Assumptions behind the figures:

- one cell holds one weight (a differential pair counts as one cell); biases stay digital;
- a matrix of K rows and N columns is cut into ceil(K / tile_rows) x ceil(N / tile_cols) tiles; their size is
  the one asked for, else that of the mapped node, else 256 x 256;
- R copies of a weight take R cells of one column of one tile, whose rows all get its input: a tile then holds
  tile_rows / R rows of the matrix, rounded down, or as many as `cnpass.runtime.copies` says where some rows
  have one copy more;
- a grouped convolution is one matrix per group; as many groups share a tile as fit into it along its
  diagonal, since each has rows and columns of its own; a group larger than a tile has tiles of its own;
- every column of every row of tiles is converted once for every vector that is multiplied: the partial sums
  are added behind the converters;
- a weight that several nodes use is one set of devices: every node shows its tiles, the totals count it once;
- local functions that hold products with weights of the model are listed inlined, as map-crossbar takes them;
- all "per inference" figures are for one sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import onnx_graphsurgeon as gs

from cnpass.collector import paused_collection
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.functions import inline_products
from cnpass.mapping import MappingPlan, NodePlan, Product, plan
from cnpass.nodes import label
from cnpass.records import InspectRecord, InspectTotals, ModelInfo, NodeRecord
from cnpass.runtime import ops
from cnpass.runtime.periphery import NO_PERIPHERY, Periphery

DEFAULT_TILE = 256
"""Rows and columns of a tile where neither the user nor the node says."""


class Tile(NamedTuple):
    """The size of a crossbar tile."""

    rows: int
    cols: int


@dataclass(frozen=True)
class Layout:
    """How a weight lies on tiles of one size.

    Attributes:
        tiles: number of tiles.
        conversions: ADC conversions for one vector that is multiplied.
    """

    tiles: int
    conversions: int


def layout(product: Product, tile_rows: int, tile_cols: int) -> Layout:
    """Cut a weight into tiles; see the assumptions at the top of the module.

    Args:
        product: rows and columns of one group, the number of groups, and the copies of each weight.
        tile_rows: rows of a tile.
        tile_cols: columns of a tile.
    """
    copies = product.copies
    down = ceil(product.rows / copies.held(tile_rows)) * ceil(copies.most / tile_rows)
    across = ceil(product.cols / tile_cols)
    per_tile = min(tile_rows // max(1, copies.cells(product.rows)), tile_cols // max(1, product.cols))
    if per_tile > 1:
        return Layout(ceil(product.groups / per_tile), product.cols * product.groups)
    return Layout(product.groups * down * across, product.cols * product.groups * down)


def tile_of(node: gs.Node | None, rows: int | None, cols: int | None) -> Tile:
    """The tiles that a node's weight lies in.

    Args:
        node: an analog node, or one that could be; its own tiles are its attributes `tile_rows`, `tile_cols`.
        rows: asked for; None leaves it to the node.
        cols: likewise.

    Raises:
        ModelError: the node's periphery is out of range; names the node.
    """
    own = NO_PERIPHERY
    if node is not None and node.domain == ops.DOMAIN:
        try:
            own = Periphery.from_attributes(node.attrs)
        except ModelError as error:
            raise ModelError(f"node {label(node)!r}: {error}") from None
    return Tile(rows or own.tile_rows or DEFAULT_TILE, cols or own.tile_cols or DEFAULT_TILE)


@paused_collection()
def inspect(
    model: str | os.PathLike[str] | Document, *, tile_rows: int | None = None, tile_cols: int | None = None
) -> InspectRecord:
    """List the nodes of a model as analog or digital, with reasons and hardware figures.

    Args:
        model: path of a model, or a document.
        tile_rows: rows of a crossbar tile; None: as mapped nodes have it, else 256.
        tile_cols: columns of a crossbar tile; None: likewise.

    Returns:
        The record; a figure that needs a shape which is not known is None.

    Raises:
        ModelError: the file is no ONNX model, or external data are missing.
        ValueError: a tile has no cells.
    """
    for name, size in (("rows", tile_rows), ("columns", tile_cols)):
        if size is not None and size < 1:
            raise ValueError(f"a tile of {size} {name} has no cells")
    document = model if isinstance(model, Document) else Document.load(model)
    if any(function.domain != ops.DOMAIN for function in document.functions):
        document = document.copy()
        inline_products(document)
    found = plan(document)
    tiles = [tile_of(node.node, tile_rows, tile_cols) for node in found.nodes]
    nodes = [_record(node, tile) for node, tile in zip(found.nodes, tiles, strict=True)]
    return InspectRecord(
        model=ModelInfo(path=_path(document.path), sha256=document.sha256, opset=document.opset),
        nodes=nodes,
        totals=_totals(found, nodes, tiles, tile_of(None, tile_rows, tile_cols)),
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _record(node: NodePlan, tile: Tile) -> NodeRecord:
    product = node.product
    placed = layout(product, *tile) if product else None
    return NodeRecord(
        name=node.label,
        op_type=node.op_type,
        domain=node.domain,
        reason=node.reason,
        weight=node.key,
        stream=node.stream,
        rows=product.rows if product else None,
        cols=product.cols if product else None,
        groups=product.groups if product else None,
        copies=_mean_copies(product) if product else None,
        tiles=placed.tiles if placed else None,
        params=node.params,
        macs=node.macs,
        adc_conversions=placed.conversions * node.positions
        if placed and node.positions is not None
        else None,
        compensates=node.compensates,
    )


def _mean_copies(product: Product) -> float:
    """Devices per weight, over all of them; a matrix without rows counts as one row."""
    rows = max(1, product.rows)
    return product.copies.cells(rows) / rows


def _totals(found: MappingPlan, records: list[NodeRecord], tiles: list[Tile], default: Tile) -> InspectTotals:
    """The sums.

    Args:
        found: the plan.
        records: of its nodes.
        tiles: of its nodes.
        default: what tiles of further nodes would be.
    """
    uses = zip(found.nodes, tiles, strict=True)
    weights = {node.key: (node.product, tile) for node, tile in uses if node.product is not None}
    placed = [(layout(product, *tile).tiles, tile) for product, tile in weights.values()]
    sizes = {key: product.rows * product.cols * product.groups for key, (product, _) in weights.items()}
    used = sum(
        product.copies.cells(product.rows) * product.cols * product.groups for product, _ in weights.values()
    )
    cells = sum(count * tile.rows * tile.cols for count, tile in placed)
    rows, cols = ({tile[axis] for _, tile in placed} or {default[axis]} for axis in (0, 1))
    analog = [record for record in records if record.domain == "analog"]
    return InspectTotals(
        analog=len(analog),
        digital=len(records) - len(analog),
        params=sum(found.constants.values()),
        macs=_sum(record.macs for record in records),
        analog_params=sum(sizes.values()),
        analog_macs=_sum(record.macs for record in analog),
        tile_rows=rows.pop() if len(rows) == 1 else None,
        tile_cols=cols.pop() if len(cols) == 1 else None,
        tiles=sum(count for count, _ in placed),
        cells_used=used,
        cells_free=cells - used,
        cells=cells,
        utilisation=used / cells if cells else 0.0,
        adc_conversions=_sum(record.adc_conversions for record in analog),
    )


def _sum(figures: Iterable[int | None]) -> int | None:
    """The sum, or None if a figure is not known."""
    listed = list(figures)
    known = [figure for figure in listed if figure is not None]
    return sum(known) if len(known) == len(listed) else None
