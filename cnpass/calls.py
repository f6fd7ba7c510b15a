"""Calls of model-local functions, checked before a library follows them all the way down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from onnx import FunctionProto, ModelProto, NodeProto

from cnpass.errors import ModelError
from cnpass.runtime import ops

_DEEPEST = 64
_LARGEST = 10_000_000
"""Nodes of a model with all functions inlined; shape inference visits each of them."""

_Name = tuple[str, str, str]
"""Domain, name and overload of a function or an operator."""


def check_calls(model: ModelProto) -> None:
    """Refuse functions that would take a library for ever, or all of its stack.

    Raises:
        ModelError: two functions are the same by name, or functions call each other in a circle, too deep, or
            exponentially often.
    """
    functions: dict[_Name, Counter[_Name]] = {}
    for function in model.functions:
        name = function.domain, function.name, function.overload
        if name in functions:
            raise ModelError(f"two local functions of domain {name[0]!r} are named {name[1]!r}")
        functions[name] = Counter(_called(function.node) if is_followed(function) else ())
    if not functions:
        return
    try:
        order = list(TopologicalSorter({f: calls.keys() for f, calls in functions.items()}).static_order())
    except CycleError as error:
        name = error.args[1][0][1]
        raise ModelError(f"the local function {name!r} calls itself, directly or through others") from None
    sizes: dict[_Name, int] = {}
    depths: dict[_Name, int] = {}
    for each in order:
        calls = functions.get(each, Counter())
        sizes[each] = max(1, sum(count * sizes[callee] for callee, count in calls.items()))
        depths[each] = 1 + max((depths[callee] for callee in calls), default=0)
    total = sum(sizes.get(call, 1) for call in _called(model.graph.node))
    if max(depths.values()) > _DEEPEST or max(total, *sizes.values()) > _LARGEST:
        raise ModelError(
            f"local functions call each other more than {_DEEPEST} deep,"
            f" or are more than {_LARGEST} nodes inlined"
        )


def is_followed(function: FunctionProto) -> bool:
    """Whether a library looks into a function: not into bodies of analog nodes, whose plain forms it gets."""
    return function.domain != ops.DOMAIN or function.name not in (ops.ANALOG_CONV, ops.ANALOG_MATMUL)


def _called(nodes: Iterable[NodeProto]) -> Iterator[_Name]:
    """What all nodes call, those in subgraphs included."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _called(graph.node)
