"""Nodes of a document: gs.Nodes tied to the NodeProtos they came from, metadata and labels included.

The bodies of If, Loop and Scan hang on their node as `Body`, with nodes of their own to edit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    StringStringEntryProto,
    TensorProto,
    TensorShapeProto,
    helper,
)

from cnpass.constants import StoredConstant, constant_proto
from cnpass.errors import ModelError
from cnpass.operators import check
from cnpass.runtime.ops import META_NAME

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}
"""Attribute types that can be edited, and their field; all others stay in the envelope."""


@dataclass(frozen=True)
class _Source:
    """What a gs.Node was when it was read."""

    proto: NodeProto
    attributes: Mapping[str, Any]
    unique: bool = True


class Node(gs.Node):  # type: ignore[misc] # graphsurgeon has no types
    """A node that equals itself alone.

    graphsurgeon compares nodes by content, so that taking a node off a tensor takes off the first reader that
    looks like it: another one where a body repeats the names of the graph around it.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def node_metadata(node: gs.Node) -> dict[str, str]:
    """The metadata_props of a node, to read and to edit; saved with the node."""
    return node.__dict__.setdefault("metadata", {})  # type: ignore[no-any-return] # graphsurgeon has no types


def label(node: gs.Node) -> str:
    """A name to show: that of the node it came from, else its own, else its first output's."""
    given = node_metadata(node).get(META_NAME)
    if given:
        return given
    source = _source(node)
    if node.name and (source is None or source.unique):
        name = str(node.name)
    else:
        name = next((str(t.name) for t in node.outputs if t.name), str(node.name or node.op))
    return f"{scope(node)}/{name}" if scope(node) else name


def scope(node: gs.Node) -> str:
    """Label of the body that a node is in; empty in the main graph."""
    return node.__dict__.get("scope", "")  # type: ignore[no-any-return] # graphsurgeon has no types


def _source(node: gs.Node) -> _Source | None:
    """What a node was when it was read; None for new nodes."""
    return node.__dict__.get("source")  # type: ignore[no-any-return] # graphsurgeon has no types


def _kind(attribute: AttributeProto) -> Any:
    """Type of an attribute; models from before the field existed do not state it."""
    if attribute.type:
        return attribute.type
    present = {field.name for field, _ in attribute.ListFields()}
    return next((kind for kind, name in _FIELDS.items() if name in present), AttributeProto.UNDEFINED)


def _editable(attribute: AttributeProto) -> bool:
    """Whether an attribute can be shown as a Python value and written back without loss."""
    if _kind(attribute) not in _FIELDS:
        return False
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _value(attribute: AttributeProto, folder: Path) -> Any:
    """An editable attribute as graphsurgeon shows it."""
    value = getattr(attribute, _FIELDS[_kind(attribute)])
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return StoredConstant(value.name, value, folder)
    if isinstance(value, float | int):
        return value
    return [item.decode() if isinstance(item, bytes) else item for item in value]


def check_node(proto: NodeProto) -> None:
    """Check a node of a graph by itself.

    Raises:
        ModelError: an attribute refers to one of a function, which only nodes in functions may; else see
            `operators.check`.
    """
    for attribute in proto.attribute:
        if attribute.ref_attr_name:
            name = proto.name or next(iter(proto.output), "")
            raise ModelError(
                f"node {name!r}: attribute {attribute.name!r} refers to attribute {attribute.ref_attr_name!r}"
                " of a function, but the node is in none"
            )
    check(proto, {attribute.name: _kind(attribute) for attribute in proto.attribute})


def tied_node(
    proto: NodeProto,
    inputs: Iterable[gs.Tensor],
    outputs: Iterable[gs.Tensor],
    folder: Path,
    *,
    unique: bool = True,
) -> gs.Node:
    """A node as a proto describes it, but between the given tensors; not in any graph yet.

    Args:
        proto: operator, name, attributes, metadata and all else.
        inputs: tensors in place of those that the proto names.
        outputs: likewise.
        folder: where external data of its attributes are looked for.
        unique: whether no other node has that name.

    Raises:
        ModelError: it is no valid node; see `check_node`.
    """
    check_node(proto)
    attributes = {a.name: _value(a, folder) for a in proto.attribute if _editable(a)}
    node = Node(proto.op_type, proto.name, attributes, list(inputs), list(outputs), proto.domain)
    node.metadata = mapping(proto.metadata_props)
    node.source = _Source(
        proto,
        {name: list(value) if isinstance(value, list) else value for name, value in attributes.items()},
        unique,
    )
    return node


def bodies(node: gs.Node) -> tuple[Body, ...]:
    """The bodies of a node, in the order of its attributes."""
    return node.__dict__.get("bodies", ())  # type: ignore[no-any-return] # graphsurgeon has no types


def all_nodes(nodes: Iterable[gs.Node]) -> Iterator[gs.Node]:
    """Nodes, each followed by those in its bodies."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from all_nodes(body.nodes)


def captured_tensors(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors from around a node that its bodies read; a tensor may come more than once."""
    for body in bodies(node):
        local = set(map(id, body.local()))
        inner = (t for each in body.nodes for t in (*each.inputs, *captured_tensors(each)))
        yield from (t for t in (*inner, *body.outputs) if t.name and id(t) not in local)


def captured(node: gs.Node) -> frozenset[str]:
    """Names of tensors from around a node that its bodies read."""
    return frozenset(tensor.name for tensor in captured_tensors(node))


def leading_to(tensor: gs.Tensor, tensors: Mapping[str, gs.Tensor]) -> set[int]:
    """The ids of the nodes that a tensor depends on.

    Args:
        tensor: a tensor of a graph.
        tensors: all of the graph's tensors by name, for what bodies capture.
    """
    needed, waiting = set[int](), [tensor]
    while waiting:
        for node in waiting.pop().inputs:
            if id(node) not in needed:
                needed.add(id(node))
                waiting.extend(node.inputs)
                waiting.extend(tensors[name] for name in captured(node) if name in tensors)
    return needed


def key(tensor: gs.Tensor) -> str:
    """A name of a tensor that no other has: bodies side by side may use one name for different tensors."""
    return str(tensor.__dict__.get("key", tensor.name))


def local_keys(body: GraphProto, taken: set[str]) -> dict[str, str]:
    """The keys of what a body defines, by name: the name, or `name@1`, `name@2`, ... if it is taken.

    Args:
        body: one body; bodies are asked for from the start of the model to its end, outer before inner ones.
        taken: keys so far, at first the names in the main graph; added to.
    """
    keys = {}
    for name in dict.fromkeys(defined(body)):
        free, count = name, 0
        while free in taken:
            count += 1
            free = f"{name}@{count}"
        taken.add(free)
        keys[name] = free
    return keys


def defined(graph: GraphProto) -> Iterator[str]:
    """Names that a graph defines, without those in its subgraphs; some come more than once."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


class Body:
    """A subgraph of If, Loop or Scan, open for editing.

    Attributes:
        proto: the source, never changed.
        label: label of its node, and its own name.
        nodes: to edit; a node may read tensors of the graphs around it.
        outputs: what it gives back.
        ranks: number of dimensions to declare of outputs, by place; None declares no shape.
        tensors: those that it defined when it was read, by name.
    """

    def __init__(
        self,
        proto: GraphProto,
        label: str,
        outer: Callable[[str], gs.Tensor],
        folder: Path,
        taken: set[str],
    ) -> None:
        """Read a subgraph.

        Args:
            proto: the subgraph.
            label: label of its node, and its own name.
            outer: gives the tensor of a name in the graphs around it.
            folder: where external data are looked for.
            taken: keys of tensors so far; added to.

        Raises:
            ModelError: a node is not valid, or two initializers have one name.
        """
        self.proto = proto
        self.label = label
        self.tensors: dict[str, gs.Tensor] = {}
        for stored in (*proto.initializer, *proto.sparse_initializer):
            name = stored.name if isinstance(stored, TensorProto) else stored.values.name
            if not name or name in self.tensors:
                raise ModelError(f"two initializers of {self.label!r} are named {name!r}, or one has no name")
            self.tensors[name] = StoredConstant(name, stored, folder)
        self._constants = tuple(self.tensors.values())
        given = {value.name for value in proto.input}
        for name in defined(proto):
            if name in given or name not in self.tensors:  # what is passed in overrides an initializer
                self.tensors[name] = gs.Variable(name)
        for name, own in local_keys(proto, taken).items():
            self.tensors[name].key = own

        def find(name: str) -> gs.Tensor:
            if not name:
                return gs.Variable.empty()
            return self.tensors[name] if name in self.tensors else outer(name)

        self.nodes = read_nodes(proto.node, find, folder, taken, self.label)
        self._sources = tuple(map(id, self.nodes))
        self.outputs = tuple(find(value.name) for value in proto.output)
        self.ranks: dict[int, int | None] = {}

    def local(self) -> Iterator[gs.Tensor]:
        """Tensors that the body defines now."""
        yield from self.tensors.values()
        yield from (tensor for node in self.nodes for tensor in node.outputs)

    def to_proto(self) -> GraphProto:
        """The subgraph as it is now: the source itself where nothing changed."""
        nodes = [node_proto(node) for node in self.nodes]
        constants = [constant_proto(constant) for constant in self._constants]
        stored = [constant.stored.tensor for constant in self._constants]
        same = tuple(map(id, self.nodes)) == self._sources and all(
            made is source_proto(node) for made, node in zip(nodes, self.nodes, strict=True)
        )
        types = {place: self.proto.output[place].type.tensor_type for place in self.ranks}
        same &= all(rank is None and not types[place].HasField("shape") for place, rank in self.ranks.items())
        if same and all(new is old for new, old in zip(constants, stored, strict=True)):
            return self.proto
        changed = GraphProto()
        changed.CopyFrom(self.proto)
        for name in ("node", "initializer", "sparse_initializer"):
            changed.ClearField(name)
        changed.node.extend(nodes)
        for constant in constants:
            dense = isinstance(constant, TensorProto)
            (changed.initializer if dense else changed.sparse_initializer).append(constant)
        for place, rank in self.ranks.items():
            tensor = changed.output[place].type.tensor_type
            tensor.ClearField("shape")
            if rank is not None:
                tensor.shape.dim.extend(TensorShapeProto.Dimension() for _ in range(rank))
                tensor.shape.SetInParent()
        return changed


def read_nodes(
    protos: Sequence[NodeProto],
    find: Callable[[str], gs.Tensor],
    folder: Path,
    taken: set[str],
    scope: str = "",
) -> list[gs.Node]:
    """The nodes of a graph with their bodies.

    Args:
        protos: the nodes.
        find: gives the tensor of a name.
        folder: where external data are looked for.
        taken: keys of tensors so far; added to.
        scope: label of the body that they are in.

    Raises:
        ModelError: a node or body is not valid.
    """
    counts = Counter(proto.name for proto in protos)
    nodes = []
    for proto in protos:
        inputs, outputs = (list(map(find, names)) for names in (proto.input, proto.output))
        node = tied_node(proto, inputs, outputs, folder, unique=counts[proto.name] == 1)
        if scope:
            node.scope = scope
        graphs = list(subgraphs(proto))
        if graphs:
            names = [graph.name for graph in graphs]
            if "" in names or len(set(names)) < len(names):
                names = [f"{name}{place}" for place, name in enumerate(names)]
            labels = [f"{label(node)}/{name}" for name in names]
            pairs = zip(graphs, labels, strict=True)
            node.bodies = tuple(Body(graph, name, find, folder, taken) for graph, name in pairs)
        nodes.append(node)
    return nodes


def source_proto(node: gs.Node) -> NodeProto | None:
    """The proto that a node came from; None for a new node."""
    source = _source(node)
    return source.proto if source else None


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes: bodies of If, Loop, Scan and the like."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def mapping(entries: Iterable[StringStringEntryProto]) -> dict[str, str]:
    """Metadata entries as a dictionary."""
    return {entry.key: entry.value for entry in entries}


def extend_entries(target: Any, source: Sequence[StringStringEntryProto], wanted: Mapping[str, str]) -> None:
    """Write a mapping as metadata_props: the source's own entries where they did not change."""
    present = mapping(source)
    if present == wanted:
        target.extend(source)
        return
    for entry in source:
        if entry.key in wanted:
            same = wanted[entry.key] == entry.value
            target.append(entry if same else StringStringEntryProto(key=entry.key, value=wanted[entry.key]))
    target.extend(StringStringEntryProto(key=k, value=v) for k, v in wanted.items() if k not in present)


def node_proto(node: gs.Node) -> NodeProto:
    """The proto of a node: that of the source where nothing changed, with the changes where something did."""
    source = _source(node)
    if source is not None and (node.op, node.domain or "") == (source.proto.op_type, source.proto.domain):
        old, before = source.proto, source.attributes
    else:
        old, before = NodeProto(op_type=node.op, domain=node.domain or ""), {}
    inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
    attributes = list(_attribute_protos(node.attrs, before, old, bodies(node)))
    metadata = node_metadata(node)
    same_tensors = list(old.input) == inputs and list(old.output) == outputs
    same_attributes = attributes == list(old.attribute)
    if same_tensors and same_attributes and old.name == node.name and mapping(old.metadata_props) == metadata:
        return old
    new = NodeProto()
    new.CopyFrom(old)
    if not same_tensors:
        del new.input[:], new.output[:]
        new.input.extend(inputs)
        new.output.extend(outputs)
    if old.name != node.name:
        new.name = node.name
    if not same_attributes:
        del new.attribute[:]
        new.attribute.extend(attributes)
    del new.metadata_props[:]
    extend_entries(new.metadata_props, old.metadata_props, metadata)
    return new


def _attribute_protos(
    wanted: Mapping[str, Any], before: Mapping[str, Any], old: NodeProto, inner: Sequence[Body]
) -> Iterator[AttributeProto]:
    """The attributes of a node; the source's own protos for those that did not change."""
    graphs = iter(inner)
    for attribute in old.attribute:
        if attribute.name not in before:
            yield _with_graphs(attribute, graphs) if inner else attribute
        elif attribute.name in wanted:
            value = wanted[attribute.name]
            yield (
                attribute
                if _unchanged(value, before[attribute.name])
                else _attribute_proto(attribute.name, value)
            )
    for name, value in wanted.items():
        if name not in before:
            yield _attribute_proto(name, value)


def _with_graphs(attribute: AttributeProto, graphs: Iterator[Body]) -> AttributeProto:
    """An attribute with its subgraphs as they are now, from `graphs`; the source's own if none changed."""
    single = attribute.HasField("g")
    own = [next(graphs) for _ in range(single + len(attribute.graphs))]
    news = [body.to_proto() for body in own]
    if all(new is body.proto for new, body in zip(news, own, strict=True)):
        return attribute
    changed = AttributeProto()
    changed.CopyFrom(attribute)
    if single:
        changed.g.CopyFrom(news[0])
    del changed.graphs[:]
    changed.graphs.extend(news[single:])
    return changed


def _unchanged(value: Any, before: Any) -> bool:
    if isinstance(before, StoredConstant):
        return value is before and before.export() is before.stored.tensor
    return bool(value is before or (type(value) is type(before) and value == before))


def _attribute_proto(name: str, value: Any) -> AttributeProto:
    if isinstance(value, gs.Constant):
        value = constant_proto(value)
    kind = AttributeProto.INTS if isinstance(value, Sequence) and len(value) == 0 else None
    return helper.make_attribute(name, value, attr_type=kind)
