"""What the passes on analog nodes share: finding them, marking nodes, and keeping function bodies current."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.document import OVERRIDABLE_IR, Document
from cnpass.errors import ModelError
from cnpass.nodes import node_metadata, node_proto
from cnpass.runtime import ops
from cnpass.runtime.bodies import BITWISE_OPSET, function_bodies

FUNCTIONS_IR = 8
"""The oldest IR version whose models can carry functions."""


def analog_nodes(document: Document) -> Iterator[gs.Node]:
    """The analog nodes of the main graph and of bodies."""
    return (
        node
        for node in document.all_nodes()
        if node.domain == ops.DOMAIN and node.op in (ops.ANALOG_CONV, ops.ANALOG_MATMUL)
    )


def chip(node: gs.Node) -> gs.Tensor:
    """The tensor that selects the chip of an analog node."""
    return node.inputs[3 if node.op == ops.ANALOG_CONV else 2]


def first_sample_slot(node: gs.Node) -> int:
    """The index of the input `first_sample` among those of an analog node; it is the last one, if any."""
    return 4 if node.op == ops.ANALOG_CONV else 3


def selector(document: Document, key: str, name: str) -> gs.Tensor:
    """A new scalar by which callers select something, such as the chip; the metadata `key` names it.

    An initializer of value 0 that callers may override; in IR versions that know no such thing, an input.
    """
    name = document.metadata[key] = document.fresh(name)
    if document.proto.ir_version >= OVERRIDABLE_IR:
        document.overridable.append(name)
        return gs.Constant(name, np.array(0, np.int64))
    tensor = gs.Variable(name, np.dtype(np.int64), [])
    document.graph.inputs.append(tensor)
    return tensor


def drop_selector(document: Document, name: str) -> None:
    """Take such a scalar out of the graph's inputs."""
    document.overridable[:] = [other for other in document.overridable if other != name]
    document.graph.inputs[:] = [tensor for tensor in document.graph.inputs if tensor.name != name]


def mark(node: gs.Node, step: str, name: str, op_type: str, role: str) -> gs.Node:
    """Write into a node's metadata which pass made it, of what, and what it is; returns the node."""
    node_metadata(node).update(
        {ops.META_PASS: step, ops.META_NAME: name, ops.META_OP_TYPE: op_type, ops.META_ROLE: role}
    )
    return node


def is_digital_part(node: gs.Node) -> bool:
    """Whether a pass wrote the node as the digital side of an analog one."""
    metadata = node_metadata(node)
    return ops.META_PASS in metadata and metadata.get(ops.META_ROLE) == ops.ROLE_DIGITAL


def detach(node: gs.Node) -> None:
    """Take a node off its tensors, so that they no longer count it as producer or consumer."""
    node.inputs.clear()
    node.outputs.clear()


def why_no_bodies(document: Document) -> str | None:
    """Why the model cannot carry function bodies; None if it can."""
    if document.opset < BITWISE_OPSET:
        return f"opset {document.opset} is older than {BITWISE_OPSET}"
    if document.proto.ir_version < FUNCTIONS_IR:
        return f"IR version {document.proto.ir_version} is older than {FUNCTIONS_IR}"
    return None


def drop_bodies(document: Document) -> bool:
    """Remove the function bodies of analog nodes; returns whether there were any."""
    kept = [f for f in document.functions if (f.domain, f.name) not in _BODIES]
    dropped = len(kept) < len(document.functions)
    document.functions[:] = kept
    return dropped


def write_bodies(document: Document) -> None:
    """Write function bodies for the analog nodes as they are now, in place of any there were.

    Raises:
        ModelError: the nodes cannot share bodies; see `cnpass.runtime.bodies`.
    """
    drop_bodies(document)
    nodes = [node_proto(node) for node in analog_nodes(document)]
    document.functions.extend(function_bodies(nodes, document.opset))


def try_bodies(document: Document) -> str | None:
    """Write function bodies where the model can carry them; returns the reason where it cannot."""
    reason = why_no_bodies(document)
    if reason is None:
        try:
            write_bodies(document)
        except ModelError as error:
            reason = str(error)
    return reason


_BODIES = {(ops.DOMAIN, ops.ANALOG_CONV), (ops.DOMAIN, ops.ANALOG_MATMUL)}
