"""Which nodes run on crossbars, which stay digital, and why: one entry, with a reason in words, per node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from onnx import FunctionProto, NodeProto

from cnpass import work
from cnpass.collector import paused_collection
from cnpass.constants import element_type
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.nodes import all_nodes, bodies, key, label, node_metadata, scope, subgraphs
from cnpass.runtime import ops
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.shapes import Shapes, infer
from cnpass.weights import Weight, constant_makers, is_float, resolve

Domain = Literal["analog", "digital"]
STANDARD = ("", "ai.onnx", None)

_RECURRENT = "a recurrent operator keeps its matrix products inside, where no crossbar can be named"
_QUANTISED = "computes on integers; only floating-point products are mapped"
_EMPTY = "its weight, of shape {}, is empty"
_DIGITAL = {
    "ConvTranspose": "transposed convolutions are not mapped",
    "DeformConv": "deformable convolutions are not mapped",
    "Einsum": "Einsum is not mapped",
    "Attention": "Attention multiplies activations",
    "RNN": _RECURRENT,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "QLinearConv": _QUANTISED,
    "QLinearMatMul": _QUANTISED,
    "ConvInteger": _QUANTISED,
    "MatMulInteger": _QUANTISED,
}
_FIRST_GEMM = 7
"""Before this opset Gemm's C broadcasts by an attribute, unlike the Add that would take its place."""


@dataclass(frozen=True, eq=False)
class Product:
    """How an analog node multiplies: `groups` matrices of `rows` inputs times `cols` outputs.

    Attributes:
        weight: the constant operand.
        operand: its index among the node's inputs; 0 means that the weight stands on the left of a product.
        perm: the op's own weight is `weight.stored` transposed by it; the identity is None.
        rows: crossbar rows of one group: inputs that add up to one output.
        cols: crossbar columns of one group.
        groups: independent matrices of that size.
        copies: devices per weight, each with a row of its own.
    """

    weight: Weight
    operand: int
    perm: tuple[int, ...] | None
    rows: int
    cols: int
    groups: int = 1
    copies: Copies = SINGLE


@dataclass(frozen=True, eq=False)
class NodePlan:
    """Where one node runs.

    Attributes:
        label: name to show; of nodes in bodies and functions with the names around it.
        op_type: of the source node, also where it has been rewritten.
        domain: "analog" or "digital".
        reason: why, in words.
        node: the node; None in functions, which cannot be edited.
        product: of analog nodes; None if the weight is programmed by another node.
        stream: random stream of the weight's devices.
        constants: elements of the constants that the node itself reads, by the name of the stored weight.
        macs: multiply-accumulates per sample of products, convolutions and recurrent operators; None if a
            shape is not known.
        positions: vectors that the crossbar multiplies per sample; None if a shape is not known.
        compensates: of compensation, the label of the node whose output it corrects.
    """

    label: str
    op_type: str
    domain: Domain
    reason: str
    node: gs.Node | None = None
    product: Product | None = None
    stream: int | None = None
    constants: dict[str, int] = field(default_factory=dict)
    macs: int | None = 0
    positions: int | None = None
    compensates: str | None = None

    @property
    def params(self) -> int:
        """Elements of all constants that the node itself reads."""
        return sum(self.constants.values())

    @property
    def key(self) -> str | None:
        """Name of the stored weight."""
        return self.product.weight.key if self.product else None


@dataclass(frozen=True)
class MappingPlan:
    """The plan of a whole model.

    Attributes:
        nodes: all nodes, in the order of the file, those of bodies and functions after the main graph's.
        streams: random stream by stored weight, numbered by first use; analog nodes keep what they have.
        shapes: of all tensors, in one inference.
    """

    nodes: tuple[NodePlan, ...]
    streams: dict[str, int]
    shapes: Shapes

    @property
    def analog(self) -> tuple[NodePlan, ...]:
        """The analog nodes."""
        return tuple(node for node in self.nodes if node.domain == "analog")

    @cached_property
    def constants(self) -> dict[str, int]:
        """Elements of every constant that any node reads, each stored weight once."""
        return {key: size for node in self.nodes for key, size in node.constants.items()}

    def check(self) -> None:
        """Make sure that there is something analog.

        Raises:
            ModelError: no node can run on a crossbar; says why.
        """
        if not self.analog:
            raise ModelError(f"no node can run on a crossbar: {self.why_none()}")

    def why_none(self) -> str:
        """The most frequent reasons for which nodes with weights stay digital, for a message."""
        reasons = [n.reason for n in self.nodes if n.op_type in work.PRODUCTS]
        unique = sorted(set(reasons), key=lambda reason: (-reasons.count(reason), reason))
        return "; ".join(unique[:3]) or "the model has no Conv, Gemm or MatMul"


def plan(document: Document) -> MappingPlan:
    """Decide for every node where it runs.

    Analog become Conv, and Gemm and MatMul of a constant matrix, wherever the constant hides (see
    `cnpass.weights`); nodes that are analog already stay so.

    Raises:
        ModelError: a tensor has an unknown type.
    """
    with paused_collection():
        return _Planner(document).plan()


def weight_perm(node: gs.Node, weight: Weight | None) -> tuple[int, ...]:
    """How an analog node permutes the axes of its stored weight; the identity if it does not say.

    Args:
        node: the analog node.
        weight: its weight; None if another node programs it, whose rank is then what the node states.

    Raises:
        ModelError: the weight or the permutation fits no such node; names it.
    """
    convolution = node.op == ops.ANALOG_CONV
    stated = node.attrs.get(ops.WEIGHT_PERM)
    if weight is not None:
        rank = len(weight.shape)
    elif stated is not None:
        rank = len(stated)
    else:
        rank = 2 + len(node.attrs.get("kernel_shape", (1,))) if convolution else 2
    perm = tuple(range(rank) if stated is None else stated)
    if (rank < 3 if convolution else rank != 2) or sorted(perm) != list(range(rank)):
        shape = "" if weight is None else f"weight of shape {list(weight.shape)} with "
        raise ModelError(f"node {label(node)!r}: {shape}{ops.WEIGHT_PERM} {list(perm)} fits no {node.op}")
    return perm


def _is_open(document: Document) -> bool:
    """Whether an input has open dimensions, beside that of samples, that data fill in."""
    inputs = [tensor for tensor in document.graph.inputs if tensor.name in document.samples]
    return any(not isinstance(dim, int) for tensor in inputs for dim in (tensor.shape or ())[1:])


class _Planner:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.shapes: Shapes = infer(document)
        self.counted: Shapes = infer(document, document.samples) if _is_open(document) else self.shapes
        self.functions = [f for f in document.functions if f.domain != ops.DOMAIN]
        self.called = {(f.domain, f.name) for f in self.functions}
        self.resolved: dict[int, Weight | None] = {}

    def plan(self) -> MappingPlan:
        main = self.document.graph.nodes
        inner = [each for node in main for body in bodies(node) for each in all_nodes(body.nodes)]
        decided = [self.node(node) for node in (*main, *inner)]
        taken = {facts["stream"] for facts in decided if facts.get("stream") is not None}
        free = (number for number in range(ops.MAX_STREAM + 1) if number not in taken)
        streams: dict[str, int] = {}
        products = [facts for facts in decided if "product" in facts]
        for facts in products:
            if facts.get("stream") is not None:
                streams.setdefault(facts["product"].weight.key, facts["stream"])
        for facts in products:
            if facts.get("stream") is None:
                name = facts["product"].weight.key
                if name not in streams:
                    streams[name] = next(free)
                facts["stream"] = streams[name]
        nodes = [NodePlan(**facts) for facts in decided]
        for function in self.functions:
            nodes.extend(self.function(function))
        return MappingPlan(tuple(nodes), streams, self.shapes)

    def resolve(self, tensor: gs.Tensor) -> Weight | None:
        """`weights.resolve`, once per tensor."""
        if id(tensor) not in self.resolved:
            self.resolved[id(tensor)] = resolve(tensor) if tensor.name else None
        return self.resolved[id(tensor)]

    def node(self, node: gs.Node) -> dict[str, Any]:
        """The fields of the plan of a node of the main graph or of a body."""
        metadata = node_metadata(node)
        facts = {
            "label": label(node),
            "op_type": metadata.get(ops.META_OP_TYPE, node.op),
            "domain": "digital",
            "node": node,
            "constants": self.constants(node),
        }
        if node.domain == ops.DOMAIN and node.op in (ops.ANALOG_CONV, ops.ANALOG_MATMUL):
            return facts | self.mapped(node)
        facts["macs"] = None if scope(node) and node.op in work.PRODUCTS else work.macs(node, self.counted)
        role = metadata.get(ops.META_ROLE)
        if role == ops.ROLE_COMPENSATION:
            of = metadata.get(ops.META_NAME)
            reason = f"compensation of {of!r}" if of else f"added by {metadata.get(ops.META_PASS)}"
            return facts | {"op_type": node.op, "reason": reason, "compensates": of}
        if ops.META_PASS in metadata and role == ops.ROLE_DIGITAL:
            return facts | {"op_type": node.op, "reason": f"digital part of {facts['op_type']}"}
        if node.domain not in STANDARD:
            return facts | {"reason": self.foreign(node)}
        rule = _RULES.get(node.op)
        if rule is None:
            return facts | {"reason": self.other(node)}
        found = f"has a subgraph, which {node.op} cannot have" if bodies(node) else rule(self, node)
        if isinstance(found, str):
            return facts | {"reason": found}
        found = replace(found, copies=_stated(node, Copies.parse, metadata.get(ops.META_COPIES, "1")))
        reason = f"{node.op} with constant weight {found.weight.key!r}"
        if found.weight.kind == "converted":
            reason += ", made of stored integers (trained values go back as a float initializer)"
        return facts | self.analog(node, found, reason)

    def analog(self, node: gs.Node, product: Product, reason: str) -> dict[str, Any]:
        """The fields of a node that runs on a crossbar."""
        facts = {"domain": "analog", "reason": reason, "product": product}
        if scope(node):
            reason += "; how often its body runs is not known, so it is not counted"
            return facts | {"reason": reason, "macs": None}
        size = self.counted.size(node.outputs[0].name)
        if size is None:
            reason += "; its output shape is not known, so it is not counted"
            return facts | {"reason": reason, "macs": None}
        positions = size // max(1, product.cols * product.groups)
        return facts | {
            "positions": positions,
            "macs": positions * product.rows * product.cols * product.groups,
        }

    def mapped(self, node: gs.Node) -> dict[str, Any]:
        """The fields of a node that is analog already."""
        weight = self.resolve(node.inputs[1])
        if weight is None:
            reason = "analog; its weight is programmed by another node"
            return {"domain": "analog", "reason": reason, "macs": None}
        perm = weight_perm(node, weight)
        shape = [weight.shape[axis] for axis in perm]
        group = _group(node) if node.op == ops.ANALOG_CONV else None
        if group is not None and (group < 1 or shape[0] % group):
            raise ModelError(f"node {label(node)!r}: group is {group}; it must divide the {shape[0]} filters")
        product = _product(weight, 1, perm, shape, group)
        product = replace(product, copies=_stated(node, Copies.from_attributes, node.attrs))
        stream = {"stream": node.attrs.get("stream")}
        return stream | self.analog(node, product, f"analog, weight {weight.key!r}")

    def foreign(self, node: gs.Node) -> str:
        """Why a node of another domain is digital."""
        if (node.domain, node.op) in self.called:
            return f"calls the local function {node.op!r}, which is listed node by node"
        if node.domain == "com.microsoft":
            return "operators of com.microsoft are not mapped"
        if node.domain == "ai.onnx.ml":
            return "operators of ai.onnx.ml hold no crossbar product"
        return f"unknown domain {node.domain!r}"

    def other(self, node: gs.Node) -> str:
        """Why a standard operator that is no Conv, Gemm or MatMul is digital."""
        if ("", node.op) in self.called:
            return self.foreign(node)
        if bodies(node):
            return "control flow; its body is listed node by node"
        if any(self.resolve(tensor) for tensor in node.outputs):
            return "makes a constant"
        return _DIGITAL.get(node.op, f"{node.op} is no product with a constant matrix")

    def constants(self, node: gs.Node) -> dict[str, int]:
        """Elements of the constants that a node reads: floats, or 8-bit integers that stand for them."""
        found: dict[str, int] = {}
        if any(self.resolve(tensor) for tensor in node.outputs):
            return found  # what makes a constant leaves the counting to the node that uses it
        for tensor in node.inputs:
            weight = self.resolve(tensor)
            if weight is not None and _counts(weight.dtype, weight.shape):
                found[weight.key] = prod(weight.root_shape)
        return found

    # rules of the operators that can be analog: a product, or the reason against it

    def conv(self, node: gs.Node) -> Product | str:
        weight = self.resolve(node.inputs[1])
        if weight is None:
            return (
                self.not_followed(node.inputs[1])
                or f"weight {node.inputs[1].name!r} is computed, not constant"
            )
        if self.resolve(node.inputs[0]):
            return "both operands are constants"
        if not weight.is_float:
            return _QUANTISED
        if 0 in weight.shape:
            return _EMPTY.format(list(weight.shape))
        group = _group(node)
        if len(weight.shape) not in (3, 4, 5) or group < 1 or weight.shape[0] % group:
            return f"weight of shape {list(weight.shape)}, {group} group(s): no 1-D, 2-D or 3-D convolution"
        return _product(weight, 1, weight.perm, weight.shape, group)

    def matmul(self, node: gs.Node) -> Product | str:
        return self.matrices(node, (False, False))

    def gemm(self, node: gs.Node) -> Product | str:
        if self.document.opset < _FIRST_GEMM:
            return f"Gemm of opset {self.document.opset} is not mapped; it begins with opset {_FIRST_GEMM}"
        return self.matrices(node, (bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))))

    def not_followed(self, tensor: gs.Tensor) -> str | None:
        """Why a weight that depends on nothing but constants is not mapped; None if it depends on more."""
        if isinstance(tensor, gs.Constant):
            return f"weight {tensor.name!r} is sparse"
        makers = constant_makers(tensor)
        if makers is None:
            return None
        for node in makers:
            if (node.domain, node.op) in self.called:
                return f"weight {tensor.name!r} is computed by the local function {node.op!r}"
            if node.domain not in STANDARD:
                return f"weight {tensor.name!r} is computed by {node.op} of domain {node.domain!r}"
        maker = makers[0].op
        if maker == "Constant":
            return f"weight {tensor.name!r} is sparse"
        return (
            f"weight {tensor.name!r} is computed from constants by {maker}; fold constants to have it mapped"
        )

    def matrices(self, node: gs.Node, transposed: tuple[bool, bool]) -> Product | str:
        """The product of two operands of which one is a constant matrix."""
        found = [self.resolve(tensor) for tensor in node.inputs[:2]]
        if all(found):
            return "both operands are constants"
        operand = 0 if found[0] else 1
        weight = found[operand]
        if weight is None:
            reasons = (self.not_followed(tensor) for tensor in reversed(node.inputs[:2]))
            return next(filter(None, reasons), "multiplies two activations")
        if not weight.is_float:
            return _QUANTISED
        if len(weight.shape) != 2:
            kind = "a vector" if len(weight.shape) < 2 else "a batch of matrices"
            return f"the constant operand, of shape {list(weight.shape)}, is {kind}, not one matrix"
        if 0 in weight.shape:
            return _EMPTY.format(list(weight.shape))
        if operand == 0 and self.shapes.rank(key(node.inputs[1])) is None and node.op == "MatMul":
            return "the constant is the left operand, and the rank of the right one is not known"
        # The op wants [K, N]: what is on the left is turned around, Y = (B' A')'.
        turned = transposed[operand] != (operand == 0)
        perm = weight.perm or (0, 1)
        perm = (perm[1], perm[0]) if turned else perm
        shape = weight.shape[::-1] if turned else weight.shape
        return _product(weight, operand, perm, shape, None)

    def function(self, function: FunctionProto) -> Iterator[NodePlan]:
        """The nodes of a local function, which cannot be edited."""
        where = f"inside the local function {function.name!r}; map-crossbar inlines those with weights to map"
        versions = {entry.version for entry in function.opset_import if entry.domain in STANDARD}
        if versions - {self.document.opset}:
            where = (
                f"inside the local function {function.name!r}, which cannot be inlined: it is of opset "
                f"{min(versions)}, the model of {self.document.opset}"
            )
        return self.inner(function.node, {}, function.name, where)

    def inner(
        self,
        nodes: Iterable[NodeProto],
        local: dict[str, tuple[tuple[int, ...], np.dtype]],
        owner: str,
        where: str,
    ) -> Iterator[NodePlan]:
        for node in nodes:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    local[node.output[0]] = tuple(attribute.t.dims), element_type(attribute.t)
            constants = {
                f"{owner}/{name}": prod(local[name][0])
                for name in node.input
                if name in local and _counts(local[name][1], local[name][0])
            }
            name = f"{owner}/{node.name or next(iter(node.output), node.op_type)}"
            macs = None if node.op_type in work.PRODUCTS else 0
            yield NodePlan(name, node.op_type, "digital", where, constants=constants, macs=macs)
            for graph in subgraphs(node):
                stored = {t.name: (tuple(t.dims), element_type(t)) for t in graph.initializer}
                yield from self.inner(graph.node, local | stored, f"{name}/{graph.name}", where)


_Rule = Callable[[_Planner, gs.Node], Product | str]
_RULES: dict[str, _Rule] = {"Conv": _Planner.conv, "MatMul": _Planner.matmul, "Gemm": _Planner.gemm}


def _stated(node: gs.Node, read: Callable[[Any], Copies], stated: Any) -> Copies:
    """Devices per weight, as a node's attributes or metadata state it."""
    try:
        return read(stated)
    except ModelError as error:
        raise ModelError(f"node {label(node)!r}: {error}") from None


def _group(node: gs.Node) -> int:
    return int(node.attrs.get("group", 1))


def _product(
    weight: Weight, operand: int, perm: tuple[int, ...] | None, shape: Iterable[int], group: int | None
) -> Product:
    """The product of an effective weight: [K, N] of a matrix, [M, C / group, ...] of a convolution."""
    first, *rest = shape
    identity = perm is None or perm == tuple(range(len(perm)))
    if group is None:
        rows, cols, groups = first, rest[0], 1
    else:
        rows, cols, groups = prod(rest), first // group, group
    return Product(weight, operand, None if identity else perm, rows, cols, groups)


def _counts(dtype: np.dtype, shape: Sequence[int]) -> bool:
    """Whether a constant counts as parameters: floats and 8-bit integers, but no scalars."""
    return bool(shape) and (is_float(dtype) or (dtype.kind in "iuV" and dtype.itemsize == 1))
