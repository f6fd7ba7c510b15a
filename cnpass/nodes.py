"""Nodes of a document: gs.Nodes tied to the NodeProtos they came from, metadata and labels included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, NodeProto, StringStringEntryProto, TensorProto, helper

from cnpass.constants import StoredConstant, constant_proto
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
    captured: frozenset[str]
    unique: bool = True


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
        return str(node.name)
    return next((str(t.name) for t in node.outputs if t.name), str(node.name or node.op))


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
    if attribute.ref_attr_name or _kind(attribute) not in _FIELDS:
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
        ModelError: it is no valid node; see `operators.check`.
    """
    check(proto, {a.name: _kind(a) for a in proto.attribute if not a.ref_attr_name})
    attributes = {a.name: _value(a, folder) for a in proto.attribute if _editable(a)}
    node = gs.Node(proto.op_type, proto.name, attributes, list(inputs), list(outputs), proto.domain)
    node.metadata = mapping(proto.metadata_props)
    node.source = _Source(
        proto,
        {name: list(value) if isinstance(value, list) else value for name, value in attributes.items()},
        frozenset[str]().union(*(_captured(graph) for graph in subgraphs(proto))),
        unique,
    )
    return node


def captured(node: gs.Node) -> frozenset[str]:
    """Names of outer tensors that the subgraphs of a node read."""
    source = _source(node)
    return source.captured if source else frozenset()


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


def _captured(graph: GraphProto) -> set[str]:
    """Names that a subgraph reads from the graphs around it."""
    local = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    local |= {sparse.values.name for sparse in graph.sparse_initializer}
    local |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        for inner in subgraphs(node):
            read |= _captured(inner)
    return read - local - {""}


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
    attributes = list(_attribute_protos(node.attrs, before, old))
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
    wanted: Mapping[str, Any], before: Mapping[str, Any], old: NodeProto
) -> Iterator[AttributeProto]:
    """The attributes of a node; the source's own protos for those that did not change."""
    for attribute in old.attribute:
        if attribute.name not in before:
            yield attribute
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


def _unchanged(value: Any, before: Any) -> bool:
    if isinstance(before, StoredConstant):
        return value is before and before.export() is before.stored.tensor
    return bool(value is before or (type(value) is type(before) and value == before))


def _attribute_proto(name: str, value: Any) -> AttributeProto:
    if isinstance(value, gs.Constant):
        value = constant_proto(value)
    kind = AttributeProto.INTS if isinstance(value, Sequence) and len(value) == 0 else None
    return helper.make_attribute(name, value, attr_type=kind)
