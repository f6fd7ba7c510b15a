"""A document: one ONNX model, edited as a graphsurgeon graph and saved without touching anything else.

graphsurgeon alone loses metadata, doc strings and quantization annotations, merges tensors of one name and
re-sorts the graph. So the source ModelProto stays as the envelope: every gs.Node is tied to the NodeProto it
came from, every constant to its TensorProto. What no pass changed is written back from the source, field for
field and in its place. Subgraphs of If, Loop and Scan and local functions stay in the envelope.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from cnpass import external, saving
from cnpass.calls import check_calls
from cnpass.collector import paused_collection
from cnpass.constants import Stored, StoredConstant, constant_proto
from cnpass.errors import ModelError
from cnpass.nodes import (
    all_nodes,
    bodies,
    captured_tensors,
    defined,
    extend_entries,
    key,
    label,
    mapping,
    node_metadata,
    node_proto,
    read_nodes,
    subgraphs,
)
from cnpass.order import check_order
from cnpass.texts import check_texts

OVERRIDABLE_IR = 4
"""The oldest IR version in which initializers need not be graph inputs; those that are can be overridden."""

__all__ = ["Document", "label", "node_metadata"]


@dataclass
class _Value:
    """A ValueInfoProto of the source, and what was read from it."""

    proto: ValueInfoProto
    dtype: Any = None
    shape: tuple[Any, ...] | None = None


class Document:
    """An ONNX model, open for editing.

    Attributes:
        graph: the main graph as graphsurgeon sees it. `graph.inputs` leaves out initializers that are graph
            inputs too, as graphsurgeon does; those are named in `overridable`. Nodes in bodies are not among
            its nodes, but they read and count as readers of its tensors.
        proto: the source, never changed.
        path: the file it came from, or None.
        base_dir: folder in which external data are looked for.
        metadata: metadata_props of the model, to edit.
        opsets: operator set version by domain, to edit.
        functions: local functions; the list may be edited, the source's functions in it may not.
        overridable: names of initializers that are graph inputs too, to edit.
        samples: shape of one sample by input name, where data are known; what is counted is counted for them.
    """

    def __init__(self, proto: ModelProto, base_dir: str | os.PathLike[str] = "", path: Path | None = None):
        self.path = path
        self.base_dir = Path(base_dir)
        self.samples: dict[str, tuple[int, ...]] = {}
        self._hash = cache(partial(_hash, proto, self.base_dir, path))
        self._adopt(proto)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Document:
        """Read a model file, without its external data.

        Raises:
            ModelError: there is no such file, or it is no ONNX model.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ModelError(f"{path}: there is no such file") from None
        except IsADirectoryError:
            raise ModelError(f"{path}: is a folder, not an ONNX file") from None
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
        if not data:
            raise ModelError(f"{path}: the file is empty")
        proto = ModelProto()
        try:
            proto.ParseFromString(data)
        except DecodeError:
            raise ModelError(f"{path}: is no ONNX model, or is cut short") from None
        try:
            return cls(proto, path.parent, path)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    @classmethod
    def from_proto(cls, proto: ModelProto, base_dir: str | os.PathLike[str] = "") -> Document:
        """Open a model in memory; the proto is kept and must not change afterwards.

        Raises:
            ModelError: it is no valid ONNX model.
        """
        return cls(proto, base_dir)

    def copy(self) -> Document:
        """An independent document in the present state."""
        twin = Document(self.to_proto(), self.base_dir, self.path)
        twin.samples = dict(self.samples)
        twin._hash = self._hash
        return twin

    def _adopt(self, proto: ModelProto) -> None:
        """Make a proto the source of this document."""
        graph = proto.graph
        if not proto.HasField("graph") or not (graph.node or graph.output):
            raise ModelError("is no ONNX model: it holds no graph")
        check_texts(proto)
        check_calls(proto)
        check_order(proto)
        self.proto = proto
        self.metadata = mapping(proto.metadata_props)
        self.opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self.functions = list(proto.functions)
        self._envelope = _envelope(proto)
        self._names = set(_names(graph))
        self._tensors: dict[str, gs.Tensor] = {}
        self._values: dict[int, _Value] = {}
        self._attached: set[int] = set()
        with paused_collection():
            self._import(graph)

    def replace(self, proto: ModelProto) -> None:
        """Go on with another model in place of this one; path and hash stay those of the source."""
        self._adopt(proto)

    # reading

    def _import(self, graph: GraphProto) -> None:
        constants = []
        for stored in [*graph.initializer, *graph.sparse_initializer]:
            name = stored.name if isinstance(stored, TensorProto) else stored.values.name
            constant = StoredConstant(name, stored, self.base_dir)
            if not name or self._tensors.setdefault(name, constant) is not constant:
                raise ModelError(
                    f"two initializers are named {name!r}" if name else "an initializer has no name"
                )
            constants.append(constant)
        self._constants = constants
        self._infos = [(value, self._variable(value)) for value in graph.value_info]
        self._inputs = [(value, self._variable(value)) for value in graph.input]
        self._outputs = [(value, self._variable(value)) for value in graph.output]
        self.overridable = [t.name for _, t in self._inputs if isinstance(t, gs.Constant)]
        nodes = read_nodes(graph.node, self._tensor, self.base_dir, set(defined(graph)))
        self.graph = gs.Graph(
            nodes,
            inputs=[t for _, t in self._inputs if not isinstance(t, gs.Constant)],
            outputs=[t for _, t in self._outputs],
            name=graph.name,
            doc_string=graph.doc_string,
            opset=self.opset,
            import_domains=list(self.proto.opset_import),
            ir_version=self.proto.ir_version,
        )
        for tensor in self._tensors.values():
            if isinstance(tensor, gs.Variable) and id(tensor) in self._values:
                value = self._values[id(tensor)]
                value.dtype, value.shape = tensor.dtype, _shape(tensor)
        used = self._used()
        written = self._written(self._constants_among(used))
        self._attached = set(used)
        self._unwritten = self._attached - {id(tensor) for tensor in written.values()}

    def _tensor(self, name: str) -> gs.Tensor:
        """The tensor that is read under a name; a variable if the name is new."""
        if not name:
            return gs.Variable.empty()
        return self._tensors.setdefault(name, gs.Variable(name))

    def _variable(self, value: ValueInfoProto) -> gs.Tensor:
        """The tensor that a value info describes, with what is known about it filled in."""
        tensor = self._tensor(value.name)
        if isinstance(tensor, gs.Constant) or not value.type.HasField("tensor_type"):
            return tensor
        described = value.type.tensor_type
        self._values.setdefault(id(tensor), _Value(value))
        if tensor.dtype is None and described.elem_type:
            with contextlib.suppress(KeyError):
                tensor.dtype = helper.tensor_dtype_to_np_dtype(described.elem_type)
        if tensor.shape is None and described.HasField("shape"):
            tensor.shape = [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in described.shape.dim
            ]
        return tensor

    # facts

    @property
    def opset(self) -> int:
        """Version of the default operator set; 1 for models from before there were any."""
        return int(self.opsets.get("", self.opsets.get("ai.onnx", 1)))

    @property
    def captured(self) -> frozenset[str]:
        """Names of tensors of the main graph that bodies of If, Loop and Scan read."""
        return frozenset(tensor.name for tensor in self._captured())

    def _captured(self) -> Iterator[gs.Tensor]:
        return (tensor for node in self.graph.nodes for tensor in captured_tensors(node))

    def all_nodes(self) -> Iterator[gs.Node]:
        """All nodes of the main graph, each followed by those in its bodies."""
        return all_nodes(self.graph.nodes)

    def node_lists(self) -> Iterator[list[gs.Node]]:
        """The lists of nodes to edit: that of the main graph, then that of every body."""
        yield self.graph.nodes
        for node in self.all_nodes():
            yield from (body.nodes for body in bodies(node))

    def tensors(self) -> dict[str, gs.Tensor]:
        """All tensors of the main graph as it is now, by name."""
        attached = (t for node in self.graph.nodes for t in (*node.inputs, *node.outputs) if t.name)
        return {t.name: t for t in (*self.constants(), *self.graph.inputs, *self.graph.outputs, *attached)}

    def local_tensors(self) -> dict[str, gs.Tensor]:
        """The tensors that bodies define, by `cnpass.nodes.key`."""
        found = (body.local() for node in self.all_nodes() for body in bodies(node))
        return {key(tensor): tensor for tensors in found for tensor in tensors}

    def fresh(self, name: str) -> str:
        """A tensor name that is not taken, in the main graph or in any subgraph: `name` or `name_1`, ..."""
        free, count = name, 0
        while free in self._names:
            count += 1
            free = f"{name}_{count}"
        self._names.add(free)
        return free

    def initializer(self, name: str, values: np.ndarray) -> gs.Constant:
        """A new initializer under a free name."""
        constant = gs.Constant(self.fresh(name), values)
        self.declare(constant)
        return constant

    def declare(self, constant: gs.Constant) -> None:
        """Make a new initializer a graph input, too, where it has to be one: below IR version 4."""
        if self.proto.ir_version < OVERRIDABLE_IR:
            self.overridable.append(constant.name)

    @property
    def defaults(self) -> tuple[str, ...]:
        """Names of initializers that callers may override; below IR version 4 they cannot."""
        present = {constant.name for constant in self.constants()}
        names = self.overridable if self.proto.ir_version >= OVERRIDABLE_IR else ()
        return tuple(name for name in names if name in present)

    def pin(self, constant: gs.Tensor) -> None:
        """Let callers no longer override an initializer, since something was made of its present values."""
        if self.proto.ir_version >= OVERRIDABLE_IR:
            self.overridable[:] = [name for name in self.overridable if name != constant.name]

    @property
    def sha256(self) -> str:
        """Hash of the source file with its external data after it; without a file, of the proto.

        Raises:
            ModelError: external data are missing.
        """
        return self._hash()

    @property
    def sources(self) -> list[Path]:
        """The files that the document came from."""
        return [*([self.path] if self.path else []), *external.files(self.proto, self.base_dir)]

    def fingerprint(self) -> str:
        """A hash that changes when the document does; weights count that are not the source's any more."""
        model = self.to_proto(export=_fingerprint)
        return hashlib.sha256(saving.serialize(model)).hexdigest()

    def constants(self) -> list[gs.Constant]:
        """Initializers: those of the source that did not lose their last reader, then new ones."""
        return self._constants_among(self._used())

    def _constants_among(self, used: Mapping[int, gs.Tensor]) -> list[gs.Constant]:
        stored = {id(constant) for constant in self._constants}
        kept = [c for c in self._constants if id(c) in used or id(c) not in self._attached]
        kept = [c for c in kept if isinstance(c, gs.Constant)]
        return kept + [t for i, t in used.items() if isinstance(t, gs.Constant) and i not in stored]

    # writing

    def _used(self) -> dict[int, gs.Tensor]:
        """All tensors that nodes, the graph's outputs or subgraphs refer to, by id."""
        used = {id(t): t for node in self.graph.nodes for t in [*node.inputs, *node.outputs] if t.name}
        used |= {id(tensor): tensor for tensor in self.graph.outputs}
        return used | {id(tensor): tensor for tensor in self._captured()}

    def _written(self, constants: list[gs.Constant]) -> dict[str, gs.Tensor]:
        """The tensor behind each name that the main graph defines.

        Raises:
            ModelError: a name is defined twice.
        """
        written: dict[str, gs.Tensor] = {}
        nodes = ((t, f"node {label(node)!r}") for node in self.graph.nodes for t in node.outputs)
        inputs = ((t, "the graph's inputs") for t in self.graph.inputs)
        stored = ((t, "the initializers") for t in constants)
        writers: dict[str, str] = {}
        for tensor, writer in (*inputs, *stored, *nodes):
            if not tensor.name:
                continue
            if tensor.name in written:
                raise ModelError(
                    f"tensor {tensor.name!r} is defined twice: by {writers[tensor.name]} and by {writer}"
                )
            written[tensor.name], writers[tensor.name] = tensor, writer
        return written

    def _check_names(self, constants: list[gs.Constant]) -> None:
        """Refuse a graph in which two tensors share a name, or one is read that nothing writes."""
        written = self._written(constants)
        for node in self.graph.nodes:
            for tensor in node.inputs:
                if tensor.name and written.get(tensor.name, tensor) is not tensor:
                    raise ModelError(f"two tensors are named {tensor.name!r}; node {label(node)!r} reads one")
                if tensor.name and tensor.name not in written and id(tensor) not in self._unwritten:
                    raise ModelError(f"node {label(node)!r} reads {tensor.name!r}, which nothing writes")
        for tensor in self.graph.outputs:
            if written.get(tensor.name, None) is not tensor and id(tensor) not in self._unwritten:
                raise ModelError(f"the graph's output {tensor.name!r} is written by no node")
        for tensor in self._captured():
            if id(tensor) not in self._unwritten and written.get(tensor.name) is not tensor:
                raise ModelError(f"a subgraph reads {tensor.name!r}, which nothing writes any more")

    def to_proto(self, *, export: Callable[[gs.Constant], Stored] = constant_proto) -> ModelProto:
        """The model as it is now; external data stay references to the source's files.

        Args:
            export: makes the proto of an initializer of the main graph; for models that need no values.

        Raises:
            ModelError: two tensors share a name, or a node reads what nothing writes.
        """
        with paused_collection():
            return self._to_proto(export)

    def _to_proto(self, export: Callable[[gs.Constant], Stored]) -> ModelProto:
        used = self._used()
        constants = self._constants_among(used)
        self._check_names(constants)
        model = ModelProto()
        model.CopyFrom(self._envelope)
        source = self.proto
        extend_entries(model.metadata_props, source.metadata_props, self.metadata)
        present = {entry.domain: entry.version for entry in source.opset_import}
        kept = (e for e in source.opset_import if self.opsets.get(e.domain) == e.version)
        model.opset_import.extend(kept)
        model.opset_import.extend(
            helper.make_opsetid(domain, version)
            for domain, version in self.opsets.items()
            if present.get(domain) != version
        )
        model.functions.extend(self.functions)
        graph = model.graph
        graph.node.extend(node_proto(node) for node in self.graph.nodes)
        for constant in constants:
            stored = export(constant)
            (graph.initializer if isinstance(stored, TensorProto) else graph.sparse_initializer).append(
                stored
            )
        graph.input.extend(self._input_protos({constant.name: constant for constant in constants}))
        for i, tensor in enumerate(self.graph.outputs):
            same = i < len(self._outputs) and self._outputs[i][1] is tensor
            graph.output.append(self._describe(tensor, self._outputs[i][0] if same else None))
        graph.value_info.extend(self._info_protos(used))
        return model

    def _input_protos(self, constants: Mapping[str, gs.Constant]) -> Iterator[ValueInfoProto]:
        """Graph inputs; initializers among them keep their places."""
        described = {id(tensor): value for value, tensor in self._inputs}
        waiting = list(self.graph.inputs)
        overridable = [constants[name] for name in self.overridable if name in constants]
        kept = {id(tensor) for tensor in overridable}
        for _, tensor in self._inputs:
            if isinstance(tensor, gs.Constant):
                if id(tensor) in kept:
                    yield self._describe(tensor, described[id(tensor)])
            elif waiting:
                following = waiting.pop(0)
                yield self._describe(following, described.get(id(following)))
        for tensor in [*waiting, *(t for t in overridable if id(t) not in described)]:
            yield self._describe(tensor, described.get(id(tensor)))

    def _info_protos(self, used: Mapping[int, gs.Tensor]) -> Iterator[ValueInfoProto]:
        """Value infos of the source whose tensor is still there, then those of new tensors of known type."""
        ends = {id(tensor) for tensor in [*self.graph.inputs, *self.graph.outputs]}
        described = set()
        for value, tensor in self._infos:
            described.add(id(tensor))
            if id(tensor) in used or id(tensor) not in self._attached:
                yield self._describe(tensor, value)
        for i, tensor in used.items():
            new = i not in described and i not in ends and i not in self._attached
            if new and isinstance(tensor, gs.Variable) and tensor.dtype is not None:
                yield self._describe(tensor, None)

    def _describe(self, tensor: gs.Tensor, proto: ValueInfoProto | None) -> ValueInfoProto:
        """The value info of a tensor: that of the source, with new name, type or shape where they changed."""
        read = self._values.get(id(tensor))
        proto = proto or (read.proto if read else None)
        same = isinstance(tensor, gs.Constant) or read is None or _facts(tensor) == (read.dtype, read.shape)
        if proto is not None and same and proto.name == tensor.name:
            return proto
        new = ValueInfoProto()
        if proto is not None:
            new.CopyFrom(proto)
        new.name = tensor.name
        if (proto is None or not same) and tensor.dtype is not None:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            shape = None if tensor.shape is None else list(tensor.shape)
            new.type.CopyFrom(helper.make_tensor_type_proto(kind, shape))
        return new

    def embedded(self) -> ModelProto:
        """The model as it is now with all external data in it, for a runtime that takes it from memory.

        Raises:
            ModelError: external data are missing.
        """
        model = self.to_proto()
        for tensor in external.tensors(model):
            if external.is_external(tensor):
                tensor.CopyFrom(external.read(tensor, self.base_dir))
        return model

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        announce: Callable[[Mapping[str, str]], object] | None = None,
    ) -> None:
        """Write the model, whole or not at all.

        Weights that are external data in the source go, chunk by chunk, into one file `<path>.data`; those
        whose values changed become part of the model file.

        Args:
            path: the file to write; never the source.
            force: whether existing files may be replaced.
            announce: told the SHA-256 of the model file (`output`) and of its external data, if it has any
                (`output_data`), when all is written and about to take its place; None for nobody.

        Raises:
            UsageError: the file exists, is the source, or cannot be written.
            ModelError: external data are missing, or the model is larger than protobuf allows.
        """
        saving.write(
            self.to_proto(), Path(path), self.base_dir, force=force, sources=self.sources, announce=announce
        )


def _fingerprint(constant: gs.Constant) -> Stored:
    """A constant for a fingerprint: its name alone where it is as stored."""
    proto = constant_proto(constant)
    unchanged = isinstance(constant, StoredConstant) and proto is constant.stored.tensor
    return TensorProto(name=constant.name) if unchanged else proto


def _hash(proto: ModelProto, folder: Path, path: Path | None) -> str:
    digest = hashlib.sha256()
    if path is None:
        digest.update(saving.serialize(proto))
    else:
        external.update_hash(digest, path)
    for data in external.files(proto, folder):
        external.update_hash(digest, data)
    return digest.hexdigest()


def _envelope(proto: ModelProto) -> ModelProto:
    """What of a model is not rebuilt on saving, unknown fields included."""
    rest = ModelProto()
    rest.CopyFrom(proto)
    for name in ("metadata_props", "opset_import", "functions"):
        rest.ClearField(name)
    for name in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
        rest.graph.ClearField(name)
    # Cleared fields keep their memory until their message goes, so the small rest gets a message of its own.
    compact = ModelProto()
    compact.ParseFromString(rest.SerializeToString())
    return compact


def _names(graph: GraphProto) -> Iterator[str]:
    """Every tensor name in a graph and its subgraphs."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _names(inner)


def _shape(tensor: gs.Variable) -> tuple[Any, ...] | None:
    return None if tensor.shape is None else tuple(tensor.shape)


def _facts(tensor: gs.Variable) -> tuple[Any, tuple[Any, ...] | None]:
    return tensor.dtype, _shape(tensor)


def as_document(model: str | os.PathLike[str] | ModelProto | Document) -> Document:
    """Return a model as a document, whatever it is given as.

    Raises:
        ModelError: the file cannot be read, or is no valid ONNX model.
    """
    if isinstance(model, Document):
        return model
    return Document.from_proto(model) if isinstance(model, ModelProto) else Document.load(Path(model))
