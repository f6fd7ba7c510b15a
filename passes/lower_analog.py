"""`lower-analog`: back to plain ONNX."""

from __future__ import annotations

import base64
from collections import ChainMap, Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import NodeProto
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.collector import paused_collection
from cnpass.document import Document
from cnpass.errors import ModelError
from cnpass.mapping import STANDARD, weight_perm
from cnpass.nodes import Node, bodies, check_node, label, node_metadata, scope, tied_node
from cnpass.passes import analog, scan
from cnpass.passes.base import (
    PASS_CONFIG,
    Pass,
    PassPostconditionError,
    PassPreconditionError,
    PassResult,
)
from cnpass.runtime import ops
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.texts import check_texts
from cnpass.weights import resolve


@dataclass(frozen=True, config=PASS_CONFIG)
class LowerAnalog(Pass):
    """Turn analog nodes back into plain ONNX operators; compensation, which is plain already, stays.

    Where the digital nodes around an analog node are as map-crossbar wrote them, the source node comes back
    exactly, with the weights that the model has now. Where another pass put something between them, only the
    analog node itself is replaced, by Conv or MatMul. What marks the model as mapped goes: the chip input,
    function bodies, metadata, the operator set. How many copies a weight had stays in the metadata of its
    node, so that it has them again where it is mapped again.
    """

    name: ClassVar[str] = "lower-analog"

    mark: bool = Field(
        default=True,
        description="note in the metadata of each node that was analog that it is to run so, and its copies",
    )

    def requires(self, document: Document) -> None:
        """There is an analog node."""
        if not any(analog.analog_nodes(document)):
            raise PassPreconditionError(self.name, "the model has no analog nodes; map-crossbar makes them")

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        nodes = list(analog.analog_nodes(document))
        exact = 0
        with paused_collection():
            lowering = _Lowering(document)
            for node in nodes:
                lowered, is_source = lowering.lower(node)
                exact += is_source
                if self.mark:
                    _mark(lowered, Copies.from_attributes(node.attrs))
            lowering.finish()
        scan.withdraw(document)
        _unmark(document)
        note = f"{exact} of {len(nodes)} analog nodes came back as their source nodes"
        return PassResult(modified=True, notes=(note,))

    def ensures(self, document: Document) -> None:
        """No analog node is left."""
        left = [label(node) for node in analog.analog_nodes(document)]
        if left:
            raise PassPostconditionError(self.name, f"node {left[0]!r} is analog still")


@plain_dataclass(frozen=True, eq=False)
class _Group:
    """An analog node with the digital nodes that map-crossbar wrote around it.

    Attributes:
        source: the node that they all stand for.
        parts: all of them, without the analog node.
        x: what the source node read beside weight and bias.
        bias: what it read as Conv's B or Gemm's C; empty if nothing.
        y: what it wrote.
    """

    source: NodeProto
    parts: list[gs.Node]
    x: gs.Tensor
    bias: gs.Tensor
    y: gs.Tensor


class _Lowering:
    """Lowers the analog nodes of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.replaced: dict[int, list[gs.Node]] = {}
        self.parts: dict[str, list[gs.Node]] = defaultdict(list)
        self.busy = {id(tensor) for tensor in document.graph.outputs}
        self.busy |= {id(t) for node in document.all_nodes() for body in bodies(node) for t in body.outputs}
        self.tensors = document.tensors()
        self.names: dict[int, Counter[str]] = {}  # of the nodes around one, itself included
        for nodes in document.node_lists():
            names = Counter(node.name for node in nodes)
            self.names.update((id(node), names) for node in nodes)
        self.inner: dict[str, dict[str, gs.Tensor]] = {}
        for node in document.all_nodes():
            for body in bodies(node):
                self.inner[body.label] = self.inner.get(scope(node), {}) | {t.name: t for t in body.local()}
            if analog.is_digital_part(node) and not _makes_weight(node):
                self.parts[label(node)].append(node)
        self.busy |= {id(self.tensors[name]) for name in document.captured if name in self.tensors}

    def lower(self, node: gs.Node) -> tuple[gs.Node, bool]:
        """Replace one analog node; returns the new node and whether it is the source node come back."""
        group = self.group(node)
        weight = _uncast(node.inputs[1])
        perm = weight_perm(node, resolve(weight))
        if group is None:
            return self.plain(node, perm), False
        operand, turned = self.operand(group.source, node)
        original = self.visible(node).get(group.source.input[operand])
        found = resolve(original) if original is not None else None
        before: list[gs.Node] = []
        if original is None or found is None or found.stored is not weight:
            # Another weight came in: the source node takes it in the layout that the source node expects.
            wanted = tuple(perm[axis] for axis in ((1, 0) if turned else range(len(perm))))
            original = self.transposed(weight, wanted, before)
        inputs = [original, group.x] if operand == 0 else [group.x, original]
        if len(group.source.input) > 2:
            inputs.append(group.bias)
        for part in group.parts:
            analog.detach(part)
            self.replaced[id(part)] = []
        name = group.source.name
        unique = self.names[id(node)][name] == (node.name == name)
        analog.detach(node)
        restored = tied_node(group.source, inputs, [group.y], self.document.base_dir, unique=unique)
        restored.scope = scope(node)
        self.replaced[id(node)] = [*before, restored]
        return restored, True

    def visible(self, node: gs.Node) -> Mapping[str, gs.Tensor]:
        """The tensors that a node can read, by name."""
        return ChainMap(self.inner.get(scope(node), {}), self.tensors)

    def operand(self, source: NodeProto, node: gs.Node) -> tuple[int, bool]:
        """Which input of the source node is the weight, and whether the op takes it transposed."""
        if source.op_type == "Conv":
            return 1, False
        first = self.visible(node).get(source.input[0])
        operand = 0 if first is not None and resolve(first) is not None else 1
        flags = {attribute.name: attribute.i for attribute in source.attribute}
        return operand, bool(flags.get("transB" if operand else "transA", 0)) != (operand == 0)

    def group(self, node: gs.Node) -> _Group | None:
        """The parts around an analog node, if they are as they were written."""
        source = _recorded(node)
        if source is None:
            return None
        waiting = self.parts.get(label(node), [])
        parts: list[gs.Node] = []

        def is_part(candidate: gs.Node) -> bool:
            return len(candidate.outputs) == 1 and any(candidate is part for part in waiting)

        def chain(tensor: gs.Tensor, sides: list[gs.Tensor]) -> gs.Tensor:
            while len(tensor.inputs) == 1 and is_part(tensor.inputs[0]) and len(tensor.outputs) == 1:
                part = tensor.inputs[0]
                parts.append(part)
                if not part.inputs:
                    break
                sides.extend(part.inputs[1:])
                tensor = part.inputs[0]
            return tensor

        def back(tensor: gs.Tensor) -> gs.Tensor:
            sides: list[gs.Tensor] = []
            end = chain(tensor, sides)
            while sides:
                chain(sides.pop(), sides)
            return end

        bias = gs.Variable.empty()
        x = back(node.inputs[0])
        if node.op == ops.ANALOG_CONV:
            bias = back(node.inputs[2])
        y = node.outputs[0]
        while len(y.outputs) == 1 and is_part(y.outputs[0]) and id(y) not in self.busy:
            part = y.outputs[0]
            parts.append(part)
            for side in part.inputs[1:]:
                end = back(side)
                bias = end if part.op == "Add" else bias
            y = part.outputs[0]
        return _Group(source, parts, x, bias, y) if len(parts) == len(waiting) else None

    def plain(self, node: gs.Node, perm: tuple[int, ...]) -> gs.Node:
        """Replace the analog node alone, by Conv or MatMul."""
        before: list[gs.Node] = []
        weight = self.transposed(node.inputs[1], perm, before)
        convolution = node.op == ops.ANALOG_CONV
        rest = [t for t in node.inputs[2:3] if convolution and t.name]
        attributes = {k: v for k, v in node.attrs.items() if k in ops.CONV_ATTRIBUTES}
        inputs, outputs = [node.inputs[0], weight, *rest], list(node.outputs)
        kept = {k: v for k, v in node_metadata(node).items() if not k.startswith("cnpass.")}
        analog.detach(node)
        lowered = Node("Conv" if convolution else "MatMul", node.name, attributes, inputs, outputs)
        node_metadata(lowered).update(kept)
        self.replaced[id(node)] = [*before, lowered]
        return lowered

    def transposed(self, weight: gs.Tensor, perm: tuple[int, ...], nodes: list[gs.Node]) -> gs.Tensor:
        """A weight transposed, by a node that is added to `nodes`; the weight itself if nothing moves."""
        if perm == tuple(range(len(perm))):
            return weight
        output = gs.Variable(self.document.fresh(f"{weight.name}.transposed"))
        nodes.append(Node("Transpose", "", {"perm": list(perm)}, [weight], [output]))
        return output

    def finish(self) -> None:
        """Put the new nodes in the place of the old, and drop Casts of weights that nobody reads any more."""
        for nodes in list(self.document.node_lists()):
            kept = []
            for node in nodes:
                if id(node) in self.replaced:
                    kept.extend(self.replaced[id(node)])
                elif analog.is_digital_part(node) and _makes_weight(node) and not node.outputs[0].outputs:
                    analog.detach(node)
                else:
                    kept.append(node)
            nodes[:] = kept


def _mark(node: gs.Node, copies: Copies) -> None:
    """Note on a node that it was analog, and how many copies its weight had."""
    metadata = node_metadata(node)
    metadata[ops.META_ROLE] = ops.ROLE_ANALOG
    metadata.pop(ops.META_COPIES, None)
    if copies != SINGLE:
        metadata[ops.META_COPIES] = str(copies)


def _recorded(node: gs.Node) -> NodeProto | None:
    """The source node that map-crossbar noted in an analog node; None if what is there now is none."""
    try:
        record = base64.b64decode(node_metadata(node).get(ops.META_SOURCE, ""), validate=True)
        source = NodeProto.FromString(record)
        check_texts(source)
        check_node(source)
    except (ValueError, DecodeError, ModelError):
        return None
    product = source.domain in STANDARD and source.op_type in ("Conv", "Gemm", "MatMul")
    return source if product else None


def _makes_weight(node: gs.Node) -> bool:
    """Whether a node is the Cast of map-crossbar between a stored weight and the nodes that share it."""
    cast = node.op == "Cast" and node.domain in STANDARD
    return cast and node_metadata(node).get(ops.META_OP_TYPE) == "Cast"


def _uncast(tensor: gs.Tensor) -> gs.Tensor:
    """The stored weight that an analog node reads."""
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    written = producer is not None and analog.is_digital_part(producer) and _makes_weight(producer)
    return producer.inputs[0] if producer is not None and written else tensor


def _unmark(document: Document) -> None:
    """Take out what says that the model is mapped."""
    analog.drop_bodies(document)
    inputs = [document.metadata.get(key, "") for key in (ops.META_CHIP_INPUT, ops.META_FIRST_SAMPLE_INPUT)]
    read = {tensor.name for node in document.all_nodes() for tensor in node.inputs}
    for name in inputs:
        if name not in read:
            analog.drop_selector(document, name)
    for key in [key for key in document.metadata if key.startswith("cnpass.")]:
        if key not in {ops.META_ONLY_CHIP, ops.META_MEAN_GAIN}:  # corrections stay, and what they are for
            del document.metadata[key]
    domains = {node.domain for node in document.all_nodes()} | {f.domain for f in document.functions}
    if ops.DOMAIN not in domains:
        document.opsets.pop(ops.DOMAIN, None)
