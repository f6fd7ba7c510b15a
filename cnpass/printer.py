"""A document as text, one line per node, for people and for tests; stable from run to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.constants import StoredConstant
from cnpass.document import Document
from cnpass.nodes import bodies, node_metadata
from cnpass.runtime.ops import META_SOURCE

_LONGEST = 8


def to_text(document: Document) -> str:
    """Inputs, initializers, nodes with attributes and `cnpass.*` metadata, outputs; values are left out."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in document.opsets.items())
    yield f"opset {opsets}"
    for key, value in document.metadata.items():
        yield f"metadata {key} = {value}"
    for function in document.functions:
        yield f"function {function.domain}::{function.name}, {len(function.node)} nodes"
    for tensor in document.graph.inputs:
        yield f"input {_typed(tensor)}"
    for tensor in document.constants():
        open_ = ", can be overridden" if tensor.name in document.overridable else ""
        yield f"constant {_typed(tensor)}{open_}"
    for node in document.graph.nodes:
        yield from _with_bodies(node)
    for tensor in document.graph.outputs:
        yield f"output {_typed(tensor)}"


def _typed(tensor: gs.Tensor) -> str:
    shape = "?" if tensor.shape is None else ", ".join("?" if d is None else str(d) for d in tensor.shape)
    kind = "?" if tensor.dtype is None else np.dtype(tensor.dtype).name
    return f"%{tensor.name}: {kind}[{shape}]"


def _with_bodies(node: gs.Node, indent: str = "") -> Iterator[str]:
    yield f"{indent}{_node(node)}"
    for body in bodies(node):
        yield f"{indent}  body {body.label}"
        for inner in body.nodes:
            yield from _with_bodies(inner, f"{indent}    ")


def _node(node: gs.Node) -> str:
    outputs, inputs = (
        ", ".join(f"%{tensor.name}" if tensor.name else "_" for tensor in tensors)
        for tensors in (node.outputs, node.inputs)
    )
    domain = f"{node.domain}::" if node.domain else ""
    attributes = ", ".join(f"{name}={_value(value)}" for name, value in sorted(node.attrs.items()))
    metadata = {key: value for key, value in node_metadata(node).items() if key.startswith("cnpass.")}
    if META_SOURCE in metadata:
        metadata[META_SOURCE] = "..."
    marks = "".join(f" @{key.removeprefix('cnpass.')}={value}" for key, value in metadata.items())
    name = f' "{node.name}"' if node.name else ""
    return (
        f"{outputs} = {domain}{node.op}({inputs})"
        + (f" {{{attributes}}}" if attributes else "")
        + name
        + marks
    )


def _value(value: Any) -> str:
    if isinstance(value, gs.Constant):
        if isinstance(value, StoredConstant) or value.values.size > _LONGEST:
            return f"{np.dtype(value.dtype).name}{list(value.shape)}"
        return str(value.values.tolist())
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
