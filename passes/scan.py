"""Shapes of what the body of Scan gives back: ONNX Runtime needs them, and finds none behind an analog node.

So a mapped model declares how many dimensions these outputs have. What was declared is noted in the node's
metadata, for `lower-analog` to take it back.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from cnpass.document import Document
from cnpass.mapping import STANDARD
from cnpass.nodes import Body, bodies, key, node_metadata
from cnpass.runtime import ops
from cnpass.shapes import Shapes

_WITHOUT_BATCH = 9
"""From this opset on Scan has no batch axis of its own."""


def declare(document: Document, shapes: Shapes) -> None:
    """Declare the number of dimensions of outputs that have no shape, where it is known.

    Args:
        document: edited in place.
        shapes: of the tensors of the main graph, before nodes became analog.
    """
    if document.opset < _WITHOUT_BATCH:
        return
    for node, body in _scans(document):
        states = len(node.inputs) - int(node.attrs.get("num_scan_inputs", 0))
        for index, (value, outer) in enumerate(zip(body.proto.output, node.outputs, strict=False)):
            rank = shapes.rank(key(outer))
            tensor = value.type.tensor_type
            if rank is not None and tensor.elem_type and not tensor.HasField("shape"):
                body.ranks[index] = rank if index < states else rank - 1
        if body.ranks:
            node_metadata(node)[ops.META_DECLARED] = ",".join(map(str, body.ranks))


def withdraw(document: Document) -> None:
    """Take back what `declare` declared."""
    for node, body in _scans(document):
        noted = node_metadata(node).pop(ops.META_DECLARED, "")
        places = [int(place) for place in noted.split(",") if place.isdecimal()]
        body.ranks.update({place: None for place in places if place < len(body.proto.output)})


def _scans(document: Document) -> Iterator[tuple[gs.Node, Body]]:
    for node in document.all_nodes():
        if node.op == "Scan" and node.domain in STANDARD:
            yield from ((node, body) for body in bodies(node))
