"""Trained weights back into the document that they were lifted from, by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
import torch

from cnpass.constants import constant_values
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.nodes import bodies, key
from cnpass.weights import resolve

_DEQUANTIZE = "DequantizeLinear"


def write_back(document: Document, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Put trained weights into a document in their own element type; all else stays as it is.

    A weight that a node makes of integers or of a shape (a dequantised one, for example) becomes an
    initializer of the same name, since steps of training are smaller than those of the integers; the node
    loses its readers and is removed, with what led only to it.

    Args:
        document: the document that was lifted; it is changed.
        weights: tensors by key, as ``Lifted.weights`` names them.

    Returns:
        Names of the weights whose stored values changed.

    Raises:
        ModelError: A name is no weight of the document, or the shape differs.
    """
    tensors = document.local_tensors() | document.tensors()
    changed = []
    for name, value in weights.items():
        if name not in tensors:
            raise ModelError(f"'{name}' is no weight of the model, so it cannot be written back")
        if _write(document, tensors[name], value.detach().cpu().numpy()):
            changed.append(name)
    return changed


def unquantized(source: Document, written: Document) -> list[str]:
    """Names of weights that ``source`` makes of integers and ``written`` stores as floats."""
    tensors = written.local_tensors() | written.tensors()
    made = (tensor for node in source.all_nodes() if node.op == _DEQUANTIZE for tensor in node.outputs)
    return [key(tensor) for tensor in made if isinstance(tensors.get(key(tensor)), gs.Constant)]


def _write(document: Document, tensor: gs.Tensor, value: np.ndarray) -> bool:
    """Store one weight; return whether that changed anything."""
    if isinstance(tensor, gs.Constant):
        return _replace(tensor, value)
    if not tensor.inputs:
        raise ModelError(f"'{key(tensor)}' is made by nothing in the model, so it cannot be written back")
    node = tensor.inputs[0]
    held = node.attrs.get("value")
    if node.op == "Constant" and isinstance(held, gs.Constant):
        return _replace(held, value)
    made = resolve(tensor)
    new = value if made is None else value.astype(made.dtype)
    if made is not None and np.array_equal(made.values(document.opset), new):
        return False
    _detach(document, tensor, new)
    return True


def _replace(constant: gs.Constant, value: np.ndarray) -> bool:
    present = constant_values(constant)
    if present.shape != value.shape:
        raise ModelError(f"weight '{constant.name}' has shape {present.shape}, its new values {value.shape}")
    new = value.astype(present.dtype)
    if new.tobytes() == present.tobytes():
        return False
    constant.values = new
    return True


def _detach(document: Document, tensor: gs.Variable, value: np.ndarray) -> None:
    """Let an initializer take the place of a tensor that a node makes; it goes if no output needs it."""
    given = {id(t) for t in document.graph.outputs}
    given |= {id(t) for n in document.all_nodes() for b in bodies(n) for t in b.outputs}
    kept = id(tensor) in given
    constant = gs.Constant(document.fresh(tensor.name) if kept else key(tensor), value)
    document.declare(constant)
    for reader in list(tensor.outputs):
        for slot, read in enumerate(reader.inputs):
            if read is tensor:
                reader.inputs[slot] = constant
    if kept:
        return
    dead: set[int] = set()
    waiting = [tensor.inputs[0]]
    while waiting:
        node = waiting.pop()
        if any(t.outputs or id(t) in given for t in node.outputs):
            continue
        dead.add(id(node))
        waiting.extend(producer for read in node.inputs for producer in read.inputs)
        node.inputs.clear()
        node.outputs.clear()
    for nodes in document.node_lists():
        nodes[:] = [each for each in nodes if id(each) not in dead]
