"""Multiply-accumulates of digital operators."""

from __future__ import annotations

from math import prod

import onnx_graphsurgeon as gs

from cnpass.nodes import key
from cnpass.shapes import Shape, Shapes

_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1, "DeformConv": 1}
_MATRICES = {"MatMul": 0, "MatMulInteger": 0, "QLinearMatMul": 0, "Gemm": 0}
_RECURRENT = ("RNN", "GRU", "LSTM")

PRODUCTS = frozenset({*_CONVOLUTIONS, *_MATRICES, *_RECURRENT, "Einsum", "Attention"})
"""Operators that multiply and accumulate; all others count as none."""


def macs(node: gs.Node, shapes: Shapes) -> int | None:
    """Multiply-accumulates of one node per sample; None if a shape is not known or the domain is foreign."""
    if node.domain not in ("", "ai.onnx", None):
        return None
    if node.op not in PRODUCTS:
        return 0
    inputs = [shapes.known.get(key(tensor)) for tensor in node.inputs]
    if len(inputs) < (1 if node.op == "Einsum" else 2) or not node.outputs:
        return None
    if node.op in _CONVOLUTIONS:
        return _convolution(node, inputs, shapes)
    if node.op in _MATRICES:
        size = shapes.size(key(node.outputs[0]))
        shape = inputs[0]
        if size is None or not shape:
            return None
        inner = shape[0] if node.op == "Gemm" and node.attrs.get("transA", 0) else shape[-1]
        return None if inner is None else size * inner
    if node.op in _RECURRENT:
        return _recurrent(inputs, shapes.batch)
    if node.op == "Attention":
        return _attention(node, inputs, shapes.batch)
    if node.op == "Einsum":
        return _einsum(node.attrs.get("equation", ""), inputs, shapes.batch)
    return None


def _convolution(node: gs.Node, inputs: list[Shape | None], shapes: Shapes) -> int | None:
    place = _CONVOLUTIONS[node.op]
    kernel = inputs[place] if place < len(inputs) else None
    # A transposed convolution spreads every input, the others gather for every output.
    gathered = node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0]
    size = shapes.size(key(gathered))
    if kernel is None or size is None:
        return None
    per_element = [dim for dim in kernel[1:] if dim is not None]
    return size * prod(per_element) if len(per_element) == len(kernel) - 1 else None


def _recurrent(inputs: list[Shape | None], batch: int) -> int | None:
    """Every weight of W and R works once per step and sample."""
    known = [[dim for dim in shape if dim is not None] if shape else [] for shape in inputs[:3]]
    if any(len(shape) != 3 for shape in known) or len(known) < 3:
        return None
    steps = prod(known[0][:2])
    return steps // batch * (prod(known[1]) + prod(known[2]))


def _attention(node: gs.Node, inputs: list[Shape | None], batch: int) -> int | None:
    """Every query meets every key, those of a cache included, once in each of the two products."""
    query, key, value = (*inputs, None)[:3]
    past = inputs[4] if len(inputs) > 4 and node.inputs[4].name else (0,) * 4
    known = [
        [dim for dim in shape if dim is not None] if shape else [] for shape in (query, key, value, past)
    ]
    q, k, v, p = known
    if not len(q) == len(k) == len(v) or len(q) not in (3, 4) or len(p) != 4:
        return None
    if len(q) == 4:
        heads, size, value_size = q[1], q[3], v[3]
    else:
        heads, key_heads = (node.attrs.get(name, 0) for name in ("q_num_heads", "kv_num_heads"))
        if heads < 1 or key_heads < 1:
            return None
        size, value_size = q[2] // heads, v[2] // key_heads
    return q[0] * heads * q[-2] * (k[-2] + p[2]) * (size + value_size) // batch


def _einsum(equation: str, inputs: list[Shape | None], batch: int) -> int | None:
    """One multiply-accumulate for every combination of all indices, those behind an ellipsis included."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    if len(terms) != len(inputs):
        return None
    for term, shape in zip(terms, inputs, strict=True):
        if shape is None:
            return None
        first, dots, last = term.partition("...")
        more = len(shape) - len(first) - len(last) if dots else 0
        indices = [*first, *(f".{place}" for place in range(more, 0, -1)), *last]
        if len(indices) != len(shape):
            return None
        for index, dim in zip(indices, shape, strict=True):
            if dim is None:
                return None
            sizes[index] = max(sizes.get(index, dim), dim)  # what the ellipsis stands for may be broadcast
    return prod(sizes.values()) // batch
