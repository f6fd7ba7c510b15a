"""Folding the small integer computations by which exported models make shapes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from cnpass.external import is_external

_LARGEST = 1024
"""Elements of the largest array that is computed."""

_OPS = frozenset(
    {
        *("Add", "Div", "Mod", "Mul", "Neg", "Sub", "Ceil", "Floor", "Max", "Min", "ReduceProd"),
        *("Equal", "Greater", "Less", "Where"),
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Gather", "Identity", "Reshape", "Shape", "Size"),
        *("Slice", "Squeeze", "Transpose", "Unsqueeze"),
    }
)

FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What ONNX's reference raises where a node breaks the rules of its operator."""


def fold(model: ModelProto, known: Mapping[str, tuple[int | None, ...]], opset: int) -> bool:
    """Replace nodes whose result is known by initializers.

    Args:
        model: edited in place, nodes in order of computation.
        known: shapes by tensor name.
        opset: version of the default operator set.

    Returns:
        Whether any node was replaced.
    """
    graph = model.graph
    values = stored_values(graph)
    kept, folded = [], []
    for node in graph.node:
        value = result(node, values, known, opset)
        if value is None:
            kept.append(node)
        else:
            values[node.output[0]] = value
            folded.append(numpy_helper.from_array(value, node.output[0]))
    if folded:
        graph.initializer.extend(folded)
        graph.ClearField("node")
        graph.node.extend(kept)
    return bool(folded)


def stored_values(graph: GraphProto) -> dict[str, np.ndarray]:
    """The values of a graph's small initializers, by name; not of those whose bytes are elsewhere."""
    stored = ((tensor.name, _stored(tensor)) for tensor in graph.initializer)
    return {name: value for name, value in stored if value is not None}


def _stored(tensor: TensorProto) -> np.ndarray | None:
    if is_external(tensor) or prod(tensor.dims) > _LARGEST:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except FAILURES:  # it holds no values, or fewer than its shape says
        return None


def result(
    node: NodeProto, values: Mapping[str, np.ndarray], known: Mapping[str, tuple[int | None, ...]], opset: int
) -> np.ndarray | None:
    """The result of a node, if it is a small one and follows from what is known; else None.

    Args:
        node: a node of any operator.
        values: constants by tensor name.
        known: shapes by tensor name.
        opset: version of the default operator set.
    """
    if node.domain or node.op_type not in _OPS or len(node.output) != 1:
        return None
    if any(is_external(attribute.t) for attribute in node.attribute):
        return None  # ONNX's reference would look for it in the working folder
    names = [name for name in node.input if name]
    if node.op_type in ("Shape", "Size"):
        shape = known.get(names[0]) if names else None
        return None if shape is None or None in shape else _of_shape(node, [dim or 0 for dim in shape])
    if any(name not in values for name in names):
        return None
    if node.op_type == "ConstantOfShape":
        sizes = values[names[0]].reshape(-1).tolist() if names else []
        if abs(prod(sizes)) > _LARGEST:
            return None
    inputs = {name: values[name] for name in names}
    try:
        if node.op_type in ("Squeeze", "Unsqueeze"):
            computed = _with_axes(node, *inputs.values())
        else:
            outputs: Any = ReferenceEvaluator(node, opsets={"": opset}).run(None, inputs)
            computed = np.asarray(outputs[0])
    except FAILURES:  # a model that breaks the rules of its operators: its shape stays unknown
        return None
    return computed if computed.size <= _LARGEST else None


def _with_axes(node: NodeProto, data: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    """The result of Squeeze or Unsqueeze; ONNX's reference fails on their older versions."""
    listed = [list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]
    chosen = tuple(listed[0]) if listed else None if axes is None else tuple(axes.reshape(-1).tolist())
    if node.op_type == "Squeeze":
        return np.squeeze(data, chosen)
    return np.expand_dims(data, chosen or ())


def _of_shape(node: NodeProto, shape: list[int]) -> np.ndarray:
    """The result of Shape or Size."""
    if node.op_type == "Size":
        return np.array(prod(shape), np.int64)
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)
