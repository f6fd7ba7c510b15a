"""Copies of weights in the tiles that a model has anyway, and what they take there."""

from __future__ import annotations

from cnpass.document import Document
from cnpass.inspection import inspect
from cnpass.nodes import node_metadata
from cnpass.passes.lower_analog import LowerAnalog
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.passes.replicate_weights import ReplicateWeights
from cnpass.records import Cells, Replication
from cnpass.runtime import ops


def replicate(document: Document, tile_rows: int, tile_cols: int) -> Document:
    """Return a copy of a document whose nodes say how many devices of a tile their weights fill.

    The numbers are those of the pass ``replicate-weights``. Whatever maps the document, or trains it under
    variation, heeds them.

    Args:
        document: A document in standard operators, with a node that can run on a crossbar.
        tile_rows: Rows of a tile.
        tile_cols: Columns of a tile.
    """
    copied = document.copy()
    MapCrossbar(portable="never")(copied)
    ReplicateWeights(tile_rows=tile_rows, tile_cols=tile_cols)(copied)
    LowerAnalog()(copied)
    return copied


def without_copies(document: Document) -> Document:
    """Return a copy of a document in standard operators whose weights have one device each."""
    single = document.copy()
    for node in single.all_nodes():
        node_metadata(node).pop(ops.META_COPIES, None)
    return single


def replication(document: Document, tile_rows: int, tile_cols: int) -> Replication | None:
    """Say how many copies the weights of a document have; None if all have one device.

    Args:
        document: A document in standard operators.
        tile_rows: Rows of the tiles to count in.
        tile_cols: Columns of them.
    """
    single = without_copies(document)
    before, after = (inspect(each, tile_rows=tile_rows, tile_cols=tile_cols) for each in (single, document))
    copies = {node.name: node.copies for node in after.nodes if node.copies}
    if set(copies.values()) <= {1}:
        return None
    cells = (Cells(**each.totals.model_dump(include=set(Cells.model_fields))) for each in (before, after))
    return Replication(
        copies=copies, tile_rows=tile_rows, tile_cols=tile_cols, before=next(cells), after=next(cells)
    )
