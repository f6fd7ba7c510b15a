"""Raising the opset of a model so that it can carry function bodies, with proof that it computes the same."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, version_converter

from cnpass.document import Document
from cnpass.errors import CnpassError
from cnpass.nodes import subgraphs
from cnpass.passes.analog import FUNCTIONS_IR
from cnpass.passes.base import PassError
from cnpass.runtime.bodies import BITWISE_OPSET
from cnpass.shapes import infer

_TOLERANCE = 1e-5
_DRAWS = 3


def convert(document: Document, step: str) -> str:
    """Convert a document in place to the oldest opset and IR version that can carry bodies.

    Returns:
        A note that says so.

    Raises:
        PassError: the model cannot be converted, or computes something else afterwards.
    """
    source = document.embedded()
    converted = ModelProto()
    converted.CopyFrom(source)
    if document.opset < BITWISE_OPSET:
        try:
            converted = version_converter.convert_version(source, BITWISE_OPSET)
        except (RuntimeError, ValueError, IndexError) as error:  # what the converter throws
            reason = str(error).strip().partition("\n")[0]
            message = (
                f"the model cannot be converted from opset {document.opset} to {BITWISE_OPSET}: {reason}"
            )
            raise PassError(step, message) from None
        _keep_metadata(source, converted, step)
    converted.ir_version = max(converted.ir_version, FUNCTIONS_IR)
    _prove(document, source, converted, step)
    note = f"converted from opset {document.opset} to {max(document.opset, BITWISE_OPSET)}, outputs compared"
    document.replace(converted)
    return note


def _keep_metadata(source: ModelProto, converted: ModelProto, step: str) -> None:
    """Give a converted model the metadata of the source, which the converter drops: its own and its nodes'.

    Raises:
        PassError: a node that carries metadata is gone.
    """
    converted.ClearField("metadata_props")
    converted.metadata_props.extend(source.metadata_props)
    lost = _keep_on_nodes(source.graph, converted.graph)
    if lost:
        names = ", ".join(map(repr, lost))
        raise PassError(
            step, f"conversion to opset {BITWISE_OPSET} leaves no node {names} to carry its metadata"
        )


def _keep_on_nodes(source: GraphProto, converted: GraphProto) -> list[str]:
    """Give nodes, and those in their bodies, their metadata back; return those that are gone with theirs."""
    writers = {name: node for node in converted.node for name in node.output if name}
    lost = []
    for node in source.node:
        found = next((writers[name] for name in node.output if name in writers), None)
        if found is None:
            lost += [node.name or "".join(node.output[:1])] if node.metadata_props else []
            continue
        found.ClearField("metadata_props")
        found.metadata_props.extend(node.metadata_props)
        for body, own in zip(subgraphs(node), subgraphs(found), strict=False):
            lost += _keep_on_nodes(body, own)
    return lost


def _prove(document: Document, source: ModelProto, converted: ModelProto, step: str) -> None:
    """Compare both models on random inputs."""
    from cnpass.runtime.session import Session

    generator = np.random.default_rng(0)
    try:
        before, after = Session(source), Session(converted)
        for _ in range(_DRAWS):
            feeds = _inputs(document, generator)
            pairs = zip(before.run(feeds), after.run(feeds), strict=True)
            for name, (a, b) in zip(before.outputs, pairs, strict=True):
                if not _equal(a, b):
                    raise PassError(step, f"conversion to opset {BITWISE_OPSET} changes output {name!r}")
    except PassError:
        raise
    except CnpassError as error:
        raise PassError(step, f"conversion to opset {BITWISE_OPSET} cannot be checked: {error}") from None


def _inputs(document: Document, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal numbers for floating-point inputs, zeros and ones for others; open dimensions are 1."""
    shapes = infer(document).known
    feeds = {}
    for tensor in document.graph.inputs:
        shape = [dim or 1 for dim in shapes.get(tensor.name, ())]
        dtype = np.dtype(tensor.dtype)
        values = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        feeds[tensor.name] = values.astype(dtype)
    return feeds


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = float(np.max(np.abs(a), initial=0.0))
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True))
