"""What of a model would run on crossbars, and what hardware that takes.

Assumptions behind the figures:

- one cell holds one weight (a differential pair counts as one cell); biases stay digital;
- a matrix of K rows and N columns is cut into ceil(K / tile_rows) x ceil(N / tile_cols) tiles;
- R copies of a weight take R cells of one column of one tile, whose rows all get its input: a tile then holds
  tile_rows / R rows of the matrix, rounded down;
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

from cnpass.collector import paused_collection
from cnpass.document import Document
from cnpass.functions import inline_products
from cnpass.mapping import NodePlan, Product, plan
from cnpass.records import InspectRecord, InspectTotals, ModelInfo, NodeRecord
from cnpass.runtime import ops


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
    held = max(1, tile_rows // product.copies)
    down = ceil(product.rows / held) * ceil(product.copies / tile_rows)
    across = ceil(product.cols / tile_cols)
    per_tile = min(tile_rows // max(1, product.rows * product.copies), tile_cols // max(1, product.cols))
    if per_tile > 1:
        return Layout(ceil(product.groups / per_tile), product.cols * product.groups)
    return Layout(product.groups * down * across, product.cols * product.groups * down)


@paused_collection()
def inspect(
    model: str | os.PathLike[str] | Document, *, tile_rows: int = 256, tile_cols: int = 256
) -> InspectRecord:
    """List the nodes of a model as analog or digital, with reasons and hardware figures.

    Args:
        model: path of a model, or a document.
        tile_rows: rows of a crossbar tile.
        tile_cols: columns of a crossbar tile.

    Returns:
        The record; a figure that needs a shape which is not known is None.

    Raises:
        ModelError: the file is no ONNX model, or external data are missing.
        ValueError: a tile has no cells.
    """
    if tile_rows < 1 or tile_cols < 1:
        raise ValueError(f"a tile of {tile_rows} x {tile_cols} has no cells")
    document = model if isinstance(model, Document) else Document.load(model)
    if any(function.domain != ops.DOMAIN for function in document.functions):
        document = document.copy()
        inline_products(document)
    found = plan(document)
    tile = (tile_rows, tile_cols)
    nodes = [_record(node, tile) for node in found.nodes]
    return InspectRecord(
        model=ModelInfo(path=_path(document.path), sha256=document.sha256, opset=document.opset),
        nodes=nodes,
        totals=_totals(found.nodes, nodes, found.constants, tile),
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _record(node: NodePlan, tile: tuple[int, int]) -> NodeRecord:
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
        copies=product.copies if product else None,
        tiles=placed.tiles if placed else None,
        params=node.params,
        macs=node.macs,
        adc_conversions=placed.conversions * node.positions
        if placed and node.positions is not None
        else None,
    )


def _totals(
    nodes: tuple[NodePlan, ...], records: list[NodeRecord], constants: dict[str, int], tile: tuple[int, int]
) -> InspectTotals:
    weights = {node.key: node.product for node in nodes if node.product is not None}
    tiles = sum(layout(product, *tile).tiles for product in weights.values())
    sizes = {key: product.rows * product.cols * product.groups for key, product in weights.items()}
    used = sum(sizes[key] * product.copies for key, product in weights.items())
    cells = tiles * tile[0] * tile[1]
    analog = [record for record in records if record.domain == "analog"]
    return InspectTotals(
        analog=len(analog),
        digital=len(records) - len(analog),
        params=sum(constants.values()),
        macs=_sum(record.macs for record in records),
        analog_params=sum(sizes.values()),
        analog_macs=_sum(record.macs for record in analog),
        tile_rows=tile[0],
        tile_cols=tile[1],
        tiles=tiles,
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
