"""Freeing a batch size that is fixed in a model.

Many exports fix the batch at 1. Running such a model image by image is slow, so where it is provably safe the
first dimension is freed: a walk over the graph knows for each tensor whether it carries the samples along its
first dimension and nowhere else, and accepts only operators for which that follows. Such a tensor always has
the same shape in the model as it is, so what is computed from its shape becomes a constant. Reshapes to
constant shapes get -1 in front. The caller still compares results on real samples
(``cnpass.evaluation.feeding``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from cnpass import shape_arithmetic
from cnpass.data.inputs import data_inputs, selectors
from cnpass.runtime.ops import ANALOG_CONV, ANALOG_MATMUL, DOMAIN

Shapes = Mapping[str, tuple[int, ...]]

BATCH_NAME = "batch"


class NotFreeableError(Exception):
    """The batch dimension cannot be freed; says at which node and why."""


def fixed_batch(proto: ModelProto) -> int | None:
    """The batch size that the inputs fix, or None if they leave it free.

    Raises:
        NotFreeableError: inputs fix different sizes, or one is a scalar.
    """
    for value in data_inputs(proto):
        if value.type.tensor_type.HasField("shape") and not value.type.tensor_type.shape.dim:
            raise NotFreeableError(f"input '{value.name}' is a scalar, which holds for a whole run")
    sizes = {size for value in data_inputs(proto) if (size := _first_size(value))}
    if len(sizes) > 1:
        raise NotFreeableError(
            f"inputs have different first dimensions ({', '.join(map(str, sorted(sizes)))})"
        )
    return sizes.pop() if sizes else None


def free(proto: ModelProto, shapes: Shapes) -> ModelProto:
    """A copy of a model that takes any batch size.

    Args:
        proto: a model whose inputs fix the batch size; weights may be external.
        shapes: the shape of every tensor of the main graph as it is, from a run. The freed model is for
            samples of the shape in that run.

    Raises:
        NotFreeableError: it cannot be proved that samples stay apart.
    """
    batch = fixed_batch(proto)
    if batch is None:
        raise NotFreeableError("no input fixes the batch size")
    freed = ModelProto()
    freed.CopyFrom(proto)
    opset = next((entry.version for entry in freed.opset_import if not entry.domain), 1)
    walk = _Walk(freed.graph, shapes, batch, {value.name for value in data_inputs(freed)}, opset)
    walk.run(selectors(freed))
    name = BATCH_NAME
    while name in _dim_names(freed.graph):
        name += "_"
    for value in (*data_inputs(freed), *freed.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = name
    del freed.graph.value_info[:]
    return freed


def _first_size(value: onnx.ValueInfoProto) -> int | None:
    dims = value.type.tensor_type.shape.dim
    return dims[0].dim_value if dims and dims[0].dim_value > 0 else None


def _dim_names(graph: GraphProto) -> set[str]:
    values = (*graph.input, *graph.output)
    return {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim}


@dataclass
class _Walk:
    """Carries along which tensors hold the samples in their first dimension, and small constants."""

    graph: GraphProto
    shapes: Shapes
    batch: int
    batched: set[str]
    opset: int
    values: dict[str, np.ndarray] = field(default_factory=dict)
    sized: set[str] = field(default_factory=set)
    """Constants that are computed from the shape of a tensor with samples."""

    def run(self, varying: Collection[str]) -> None:
        """Look at every node in order, and make the shapes constant that depend on the batch size.

        Args:
            varying: initializers that are no constants.
        """
        stored = shape_arithmetic.stored_values(self.graph)
        self.values = {name: value for name, value in stored.items() if name not in varying}
        weights = {tensor.name: tuple(tensor.dims) for tensor in self.graph.initializer}
        self.shapes = {**weights, **self.shapes}
        before = {name for node in self.graph.node for name in node.input}
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            if self._fold(node):
                continue
            if self.batched.intersection(node.input):
                nodes.extend(self._visit(node))
            elif any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise NotFreeableError(f"{_name(node)} has subgraphs")
            nodes.append(node)
        for value in self.graph.output:
            if value.name not in self.batched:
                raise NotFreeableError(f"output '{value.name}' does not depend on the input")
        read = {name for node in nodes for name in node.input}
        constants = [_constant(name, self.values[name]) for name in sorted(self.sized & read)]
        kept = [_copy(node) for node in (*constants, *nodes)]
        self._drop(before - read)
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _drop(self, names: set[str]) -> None:
        """Drop initializers that nothing reads any longer; below IR version 4 ONNX Runtime refuses them."""
        unread = names - {value.name for value in (*self.graph.input, *self.graph.output)}
        for index in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[index].name in unread:
                del self.graph.initializer[index]

    def _fold(self, node: NodeProto) -> bool:
        """Note a node's result if it is a small constant; returns whether it stands for the node."""
        value = shape_arithmetic.result(node, self.values, self.shapes, self.opset)
        if value is None:
            return False
        self.values[node.output[0]] = value
        if self.sized.isdisjoint(node.input) and self.batched.isdisjoint(node.input):
            return False
        self.sized.add(node.output[0])
        return True

    def _visit(self, node: NodeProto) -> list[NodeProto]:
        """Check one node; returns constant nodes to put before it."""
        rule = _RULES.get((node.domain, node.op_type))
        if rule is None:
            raise NotFreeableError(f"{_name(node)}: nothing is known about samples staying apart in it")
        if not rule(self, node):
            raise NotFreeableError(f"{_name(node)} may mix samples")
        for output in filter(None, node.output):
            if self.shape(output)[:1] != (self.batch,):
                raise NotFreeableError(f"{_name(node)}: '{output}' does not start with the batch dimension")
            self.batched.add(output)
        return self._free_reshape(node) if node.op_type == "Reshape" else []

    def _free_reshape(self, node: NodeProto) -> list[NodeProto]:
        target = np.array([-1, *self.shape(node.output[0])[1:]], np.int64)
        if (target[1:] == 0).any():
            raise NotFreeableError(f"{_name(node)}: makes an empty tensor")
        for attribute in node.attribute:
            if attribute.name == "shape":
                attribute.ints[:] = target.tolist()
                return []
        node.input[1] = f"{node.output[0]}.{BATCH_NAME}_shape"
        return [_constant(node.input[1], target)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor at the fixed batch size."""
        if name not in self.shapes:
            raise NotFreeableError(f"the shape of '{name}' is not known")
        return self.shapes[name]

    def rank(self, name: str) -> int:
        """Number of dimensions of a tensor."""
        return len(self.shape(name))

    def value(self, node: NodeProto, index: int) -> npt.NDArray[np.int64] | None:
        """A constant integer input; None if it is absent.

        Raises:
            NotFreeableError: the input is computed.
        """
        name = node.input[index] if len(node.input) > index else ""
        if not name:
            return None
        if name not in self.values:
            raise NotFreeableError(f"{_name(node)}: '{name}' is not constant")
        return self.values[name].reshape(-1).astype(np.int64)


Rule = Callable[[_Walk, NodeProto], bool]


def _constant(name: str, value: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


def _copy(node: NodeProto) -> NodeProto:
    twin = NodeProto()
    twin.CopyFrom(node)
    return twin


def _name(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name or (node.output[0] if node.output else '')}'"


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _elementwise(walk: _Walk, node: NodeProto) -> bool:
    """NumPy broadcasting: what is not batched must not reach the first dimension."""
    rank = walk.rank(node.output[0])
    return all(
        walk.rank(name) == rank
        if name in walk.batched
        else walk.rank(name) < rank or walk.shape(name)[0] == 1
        for name in filter(None, node.input)
    )


def _data_first(walk: _Walk, node: NodeProto) -> bool:
    """Operators that take samples one by one from their first input; the others are weights."""
    mixes = node.op_type in {"MaxPool", "BatchNormalization"} and (
        any(node.output[1:]) or _integer(node, "training_mode", 0) == 1
    )
    return node.input[0] in walk.batched and not walk.batched.intersection(node.input[1:]) and not mixes


def _matmul(walk: _Walk, node: NodeProto) -> bool:
    left, right = node.input[:2]
    if {left, right} <= walk.batched:
        return walk.rank(left) == walk.rank(right) >= 3
    return left in walk.batched and walk.rank(left) >= 2 and walk.rank(left) >= walk.rank(right) == 2


def _gemm(walk: _Walk, node: NodeProto) -> bool:
    if not _data_first(walk, node) or _integer(node, "transA", 0):
        return False
    bias = node.input[2] if len(node.input) > 2 else ""
    return not bias or walk.rank(bias) < 2 or walk.shape(bias)[0] == 1


def _flatten(walk: _Walk, node: NodeProto) -> bool:
    axis = _integer(node, "axis", 1)
    return axis in {1, 1 - walk.rank(node.input[0])}


def _reshape(walk: _Walk, node: NodeProto) -> bool:
    return _data_first(walk, node) and (len(node.input) == 1 or walk.value(node, 1) is not None)


def _transpose(walk: _Walk, node: NodeProto) -> bool:
    del walk
    return any(attribute.name == "perm" and attribute.ints[0] == 0 for attribute in node.attribute)


def _along_axis(default: int) -> Rule:
    """Operators that work along one axis, which must not be the first."""

    def rule(walk: _Walk, node: NodeProto) -> bool:
        axis = _integer(node, "axis", default)
        weights = [] if node.op_type == "Concat" else list(node.input[1:])
        data = [name for name in node.input if name not in weights]
        apart = walk.batched.issuperset(data) and not walk.batched.intersection(weights)
        return apart and axis % walk.rank(node.input[0]) != 0

    return rule


def _gather(walk: _Walk, node: NodeProto) -> bool:
    data, indices = node.input
    if data not in walk.batched:
        return _integer(node, "axis", 0) == 0
    return indices not in walk.batched and _integer(node, "axis", 0) % walk.rank(data) != 0


def _over_axes(position: int) -> Rule:
    """Operators over several axes, given as attribute or as input number ``position``; never the first."""

    def rule(walk: _Walk, node: NodeProto) -> bool:
        axes = [int(i) for a in node.attribute if a.name == "axes" for i in a.ints]
        if not axes and (given := walk.value(node, position)) is not None:
            axes = given.tolist()
        rank = walk.rank(node.output[0] if node.op_type == "Unsqueeze" else node.input[0])
        return _data_first(walk, node) and bool(axes) and all(axis % rank for axis in axes)

    return rule


def _pad(walk: _Walk, node: NodeProto) -> bool:
    given = next((np.array(a.ints) for a in node.attribute if a.name in {"pads", "paddings"}), None)
    pads = walk.value(node, 1) if given is None else given
    whole = len(node.input) < 4 or not node.input[3]
    return _data_first(walk, node) and whole and pads is not None and not pads.reshape(2, -1)[:, 0].any()


_ELEMENTWISE = """
    Abs Acos Add And Asin Atan Cast Ceil Celu Clip Cos Div Dropout Elu Equal Erf Exp Floor Gelu Greater
    GreaterOrEqual HardSigmoid HardSwish Identity IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish
    Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum
    Tan Tanh ThresholdedRelu Where
"""
_DATA_FIRST = """
    AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool
    GlobalMaxPool GroupNormalization InstanceNormalization LRN LpPool MaxPool SpaceToDepth
"""
_REDUCE = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Squeeze Unsqueeze
"""

_RULES: dict[tuple[str, str], Rule] = {
    **{("", op): _elementwise for op in _ELEMENTWISE.split()},
    **{("", op): _data_first for op in _DATA_FIRST.split()},
    **{("", op): _over_axes(1) for op in _REDUCE.split()},
    **{("", op): _along_axis(-1) for op in ("LayerNormalization", "TopK")},
    **{("", op): _along_axis(1) for op in ("Concat", "Hardmax", "LogSoftmax", "Softmax")},
    **{("", op): _along_axis(0) for op in ("ArgMax", "ArgMin", "Split")},
    ("", "Flatten"): _flatten,
    ("", "Gather"): _gather,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "Pad"): _pad,
    ("", "Reshape"): _reshape,
    ("", "Slice"): _over_axes(3),
    ("", "Transpose"): _transpose,
    (DOMAIN, ANALOG_CONV): _data_first,
    (DOMAIN, ANALOG_MATMUL): _matmul,
}
"""Operators for which it is known when their samples stay apart."""
