"""Finding the stored weight behind an operand, wherever a model hides it.

From the operand, `resolve` walks back through Identity, Reshape, Flatten, Squeeze, Unsqueeze, Transpose,
Cast, QuantizeLinear and DequantizeLinear to an initializer, a Constant node or a ConstantOfShape node.
Shapes and types are followed without reading values, so that weights may be external data of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from cnpass.constants import StoredConstant, constant_values
from cnpass.errors import ModelError
from cnpass.external import is_external
from cnpass.nodes import bodies, key, label, node_proto
from cnpass.shape_arithmetic import FAILURES

Kind = Literal["initializer", "constant", "converted"]

_STANDARD = ("", "ai.onnx", None)
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
"""Standard operators whose results are drawn."""
_DEEPEST = 64
"""Identity nodes followed one after the other, or constants inside each other; more are no weight."""
_MOVED_INTO_PERM = frozenset({"Identity", "Transpose"})
"""Nodes that an analog op does without: it reads the weight as it is stored, with a permutation."""
_COPIES = frozenset({"Identity", "Cast"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_CONSTANT_FIELDS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant operand and where it comes from.

    Attributes:
        key: `cnpass.nodes.key` of what can be trained: the initializer, the output of the Constant node, or,
            for integers that a model converts, the first floating-point tensor made of them.
        kind: "initializer", "constant" (a node writes it) or "converted" (from stored integers).
        root: tensor of that name.
        root_shape: its shape.
        tensor: the tensor that feeds the operator.
        path: nodes between `root` and `tensor`, in the order of computation.
        stored: `tensor` before the Transposes at the end of `path`; the tensor to feed to an analog op.
        perm: `tensor` is `stored` transposed by it; None if it is `stored`.
        shape: of `tensor`.
        dtype: of `tensor`.
    """

    key: str
    kind: Kind
    root: gs.Tensor
    root_shape: tuple[int, ...]
    tensor: gs.Tensor
    path: tuple[gs.Node, ...]
    stored: gs.Tensor
    perm: tuple[int, ...] | None
    shape: tuple[int, ...]
    dtype: Any

    @property
    def is_float(self) -> bool:
        """Whether the operand holds floating-point numbers, of whatever width."""
        return is_float(self.dtype)

    @property
    def stored_as_root(self) -> bool:
        """Whether `stored` has the axes of `root`: there are only copies and casts between."""
        before = list(self.path)
        while before and before[-1].op in _MOVED_INTO_PERM:
            before.pop()
        return all(node.op in _COPIES for node in before)

    def values(self, opset: int) -> np.ndarray:
        """The operand's values, computed as the model computes them.

        Args:
            opset: version of the default operator set of the model.

        Raises:
            ModelError: external data are missing.
        """
        return _evaluate(self.tensor, opset)


def is_float(dtype: Any) -> bool:
    """Whether a NumPy type, or one of ml_dtypes, is a floating-point type."""
    return bool(np.dtype(dtype).kind == "f" or np.dtype(dtype).name.startswith(("bfloat", "float")))


def constant_array(tensor: gs.Tensor) -> np.ndarray | None:
    """The values of a tensor that is an initializer or written by a Constant node, else None.

    Raises:
        ModelError: external data are missing.
    """
    node = _producer(tensor)
    for _ in range(_DEEPEST):
        if node is None or node.op != "Identity":
            break
        tensor = node.inputs[0]
        node = _producer(tensor)
    if isinstance(tensor, gs.Constant):
        return constant_values(tensor)
    if node is None or node.op != "Constant":
        return None
    for name, dtype in _CONSTANT_FIELDS.items():
        if name in node.attrs:
            return np.array(node.attrs[name], dtype)
    value = node.attrs.get("value")
    return constant_values(value) if isinstance(value, gs.Constant) else None


@dataclass(frozen=True, eq=False)
class _Trace:
    """What is known about a tensor that depends on constants only."""

    root: gs.Tensor
    kind: Kind
    root_shape: tuple[int, ...]
    path: tuple[gs.Node, ...]
    shape: tuple[int, ...]
    dtype: Any


def resolve(tensor: gs.Tensor) -> Weight | None:
    """The weight behind an operand; None if it is no constant, or is made in a way not listed above."""
    trace = _trace(tensor)
    if trace is None:
        return None
    stored, perm, path = tensor, None, list(trace.path)
    while path and path[-1].op in _MOVED_INTO_PERM:
        node = path.pop()
        if node.op == "Transpose":
            inner = _perm(node, len(trace.shape))
            perm = inner if perm is None else tuple(inner[axis] for axis in perm)
        stored = node.inputs[0]
    if perm == tuple(range(len(trace.shape))):
        perm = None
    return Weight(
        key(trace.root),
        trace.kind,
        trace.root,
        trace.root_shape,
        tensor,
        trace.path,
        stored,
        perm,
        trace.shape,
        trace.dtype,
    )


def constant_makers(tensor: gs.Tensor) -> list[gs.Node] | None:
    """The nodes that compute a tensor from constants alone; None if it depends on more.

    Standard operators among them give the same values at every run; of others nobody knows.
    """
    waiting, seen, makers = [tensor], set[int](), []
    while waiting:
        tensor = waiting.pop()
        if isinstance(tensor, gs.Constant) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if node is None or node.op in RANDOM or bodies(node):
            return None
        makers.append(node)
        waiting.extend(read for read in node.inputs if read.name)
    return makers


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    """The standard operator that writes a tensor as its first output."""
    if isinstance(tensor, gs.Constant) or len(tensor.inputs) != 1:
        return None
    node = tensor.inputs[0]
    return node if node.domain in _STANDARD and node.outputs[0] is tensor else None


def _trace(tensor: gs.Tensor, depth: int = 0) -> _Trace | None:
    """Walk back to the root; then follow shape and type from there."""
    if depth > _DEEPEST:
        return None
    path: list[gs.Node] = []
    while (node := _producer(tensor)) is not None and node.op in _FOLLOW and node.inputs:
        path.insert(0, node)
        tensor = node.inputs[0]
    trace = _root(tensor)
    for node in path:
        if trace is None:
            return None
        trace = _FOLLOW[node.op](trace, node, depth + 1)
    return trace


def _root(tensor: gs.Tensor) -> _Trace | None:
    if isinstance(tensor, gs.Constant):
        if isinstance(tensor, StoredConstant) and tensor.is_sparse:
            return None
        shape = tuple(tensor.shape)
        return _Trace(tensor, "initializer", shape, (), shape, np.dtype(tensor.dtype))
    node = _producer(tensor)
    if node is None or node.op not in ("Constant", "ConstantOfShape"):
        return None
    if node.op == "ConstantOfShape" and not node.inputs:
        return None
    value = node.attrs.get("value")
    if node.op == "ConstantOfShape":
        dims = _dimensions(node.inputs[0])
        if dims is None or min(dims, default=0) < 0:
            return None
        shape = tuple(dims)
        dtype = value.dtype if isinstance(value, gs.Constant) else np.float32
    elif isinstance(value, gs.Constant):
        shape, dtype = tuple(value.shape), value.dtype
    else:
        array = constant_array(tensor)
        if array is None:
            return None
        shape, dtype = array.shape, array.dtype
    return _Trace(tensor, "constant", shape, (), shape, np.dtype(dtype))


def _step(trace: _Trace, node: gs.Node, shape: tuple[int, ...], dtype: Any) -> _Trace:
    """One node further; where integers become floats, the result is the new root."""
    if is_float(dtype) and not is_float(trace.dtype):
        return _Trace(node.outputs[0], "converted", shape, (), shape, dtype)
    return _Trace(trace.root, trace.kind, trace.root_shape, (*trace.path, node), shape, dtype)


def _identity(trace: _Trace, node: gs.Node, _depth: int) -> _Trace:
    return _step(trace, node, trace.shape, trace.dtype)


def _transpose(trace: _Trace, node: gs.Node, _depth: int) -> _Trace | None:
    perm = _perm(node, len(trace.shape))
    if sorted(perm) != list(range(len(trace.shape))):
        return None
    return _step(trace, node, tuple(trace.shape[axis] for axis in perm), trace.dtype)


def _perm(node: gs.Node, rank: int) -> tuple[int, ...]:
    return tuple(int(axis) for axis in node.attrs.get("perm", range(rank - 1, -1, -1)))


def _reshape(trace: _Trace, node: gs.Node, _depth: int) -> _Trace | None:
    # Opsets 1 to 4 have an attribute.
    dims = _dimensions(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("shape")
    if dims is None:
        return None
    shape = _reshaped(trace.shape, dims, keep_zero=bool(node.attrs.get("allowzero", 0)))
    return None if shape is None else _step(trace, node, shape, trace.dtype)


def _flatten(trace: _Trace, node: gs.Node, _depth: int) -> _Trace | None:
    axis, rank = int(node.attrs.get("axis", 1)), len(trace.shape)
    if not -rank <= axis <= rank:
        return None
    first = axis + rank if axis < 0 else axis
    return _step(trace, node, (prod(trace.shape[:first]), prod(trace.shape[first:])), trace.dtype)


def _squeeze(trace: _Trace, node: gs.Node, _depth: int) -> _Trace | None:
    ones = [axis for axis, dim in enumerate(trace.shape) if dim == 1]
    axes = _axes(node, len(trace.shape), ones)
    if axes is None or not set(axes) <= set(ones):
        return None
    kept = (dim for axis, dim in enumerate(trace.shape) if axis not in axes)
    return _step(trace, node, tuple(kept), trace.dtype)


def _unsqueeze(trace: _Trace, node: gs.Node, _depth: int) -> _Trace | None:
    given = _axes(node, 0, None)
    rank = len(trace.shape) + len(given or ())
    axes = _axes(node, rank, None)
    if axes is None or len(set(axes)) < len(axes) or not set(axes) <= set(range(rank)):
        return None
    rest = iter(trace.shape)
    return _step(trace, node, tuple(1 if axis in axes else next(rest) for axis in range(rank)), trace.dtype)


def _axes(node: gs.Node, rank: int, default: list[int] | None) -> list[int] | None:
    """The axes that a node names, by attribute up to opset 12, then by input; negative ones from `rank`."""
    if "axes" in node.attrs:
        found: Sequence[int] | None = node.attrs["axes"]
    elif len(node.inputs) > 1 and node.inputs[1].name:
        found = _dimensions(node.inputs[1])
    else:
        return default
    return None if found is None else [axis + rank if axis < 0 else axis for axis in found]


def _dimensions(tensor: gs.Tensor) -> list[int] | None:
    """A constant shape; None if it is computed, or is none."""
    array = constant_array(tensor)
    if array is None or array.ndim != 1 or array.dtype.kind != "i":
        return None
    return [int(dim) for dim in array]


def _reshaped(shape: Sequence[int], dims: Sequence[int], *, keep_zero: bool) -> tuple[int, ...] | None:
    """The shape that Reshape makes, or None where its input does not fit."""
    wanted = list(dims)
    for axis, dim in enumerate(wanted):
        if dim == 0 and not keep_zero:
            if axis >= len(shape):
                return None
            wanted[axis] = shape[axis]
    if wanted.count(-1) == 1:
        rest = -prod(wanted)
        if rest <= 0 or prod(shape) % rest:
            return None
        wanted[wanted.index(-1)] = prod(shape) // rest
    return tuple(wanted) if prod(wanted) == prod(shape) and min(wanted, default=1) >= 0 else None


def _cast(trace: _Trace, node: gs.Node, _depth: int) -> _Trace | None:
    kind = node.attrs.get("to", TensorProto.UNDEFINED)
    try:  # the attribute is a name up to opset 5
        number = TensorProto.DataType.Value(kind) if isinstance(kind, str) else kind
        dtype = helper.tensor_dtype_to_np_dtype(number)
    except (KeyError, ValueError):
        return None
    return _step(trace, node, trace.shape, dtype)


def _quantize(trace: _Trace, node: gs.Node, depth: int) -> _Trace | None:
    if not all(_trace(tensor, depth) for tensor in node.inputs[1:] if tensor.name):
        return None
    zero = _trace(node.inputs[2], depth) if len(node.inputs) > 2 and node.inputs[2].name else None
    return _step(trace, node, trace.shape, zero.dtype if zero else np.dtype(np.uint8))


def _dequantize(trace: _Trace, node: gs.Node, depth: int) -> _Trace | None:
    scale = _trace(node.inputs[1], depth) if len(node.inputs) > 1 else None
    if scale is None or not all(_trace(tensor, depth) for tensor in node.inputs[2:] if tensor.name):
        return None
    return _step(trace, node, trace.shape, scale.dtype)


_FOLLOW: dict[str, Callable[[_Trace, gs.Node, int], _Trace | None]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}


def _evaluate(tensor: gs.Tensor, opset: int) -> np.ndarray:
    """Run the nodes that make a constant, in ONNX's own reference.

    Raises:
        ModelError: a node breaks the rules of its operator.
    """
    array = constant_array(tensor)
    if array is not None:
        return array
    from onnx.reference import ReferenceEvaluator

    node, trace = tensor.inputs[0], _trace(tensor)
    if node.op in _RESHAPES and trace is not None:  # of which the reference knows the newest versions only
        return _evaluate(node.inputs[0], opset).reshape(trace.shape)
    proto = node_proto(node)
    if any(is_external(attribute.t) for attribute in proto.attribute):
        # ONNX's reference would look for it in the working folder.
        raise ModelError(
            f"node {label(node)!r} keeps an attribute in another file; only weights may be there"
        )
    feeds = {t.name: _evaluate(t, opset) for t in node.inputs if t.name}
    try:
        outputs: Any = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
    except FAILURES as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"node {label(node)!r} cannot be computed: {reason}") from error
    return np.asarray(outputs[0])
