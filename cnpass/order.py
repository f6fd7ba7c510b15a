"""Nodes in an order in which they can be computed; ONNX asks for one, ONNX Runtime does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from onnx import GraphProto, ModelProto, NodeProto

from cnpass.calls import is_followed
from cnpass.errors import ModelError
from cnpass.nodes import defined, subgraphs


def check_order(model: ModelProto) -> None:
    """Refuse nodes that wait for themselves, in any graph, body or function, so that following tensors ends.

    Raises:
        ModelError: a node reads what is computed from its own output; names it.
    """
    for nodes in (model.graph.node, *(f.node for f in model.functions if is_followed(f))):
        _check(nodes)


def _check(nodes: Sequence[NodeProto]) -> None:
    for node in nodes:
        for body in subgraphs(node):
            _check(body.node)
    before = _before(nodes)
    if _is_sorted(before):
        return
    try:
        TopologicalSorter(dict(enumerate(before))).prepare()
    except CycleError as error:
        node = nodes[error.args[1][0]]
        name = node.name or next(iter(node.output), "")
        raise ModelError(f"node {name!r} reads what is computed from its own output") from None


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes of one graph, each after those that it reads from; what is in order already stays so.

    Args:
        nodes: in any order. Of nodes that read from each other in a circle one comes first all the same.
    """
    before = _before(nodes)
    if _is_sorted(before):
        return list(nodes)
    ordered: list[NodeProto] = []
    state = [iter(places) for places in before]
    entered = [False] * len(nodes)
    for start in range(len(nodes)):
        path = [] if entered[start] else [start]
        while path:
            place = path[-1]
            entered[place] = True
            following = next((other for other in state[place] if not entered[other]), None)
            if following is None:
                ordered.append(nodes[path.pop()])
            else:
                path.append(following)
    return ordered


def _before(nodes: Sequence[NodeProto]) -> list[list[int]]:
    """The places of the nodes that each node reads from."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    return [sorted({makers[name] for name in _reads(node) if name in makers}) for node in nodes]


def _is_sorted(before: Sequence[Sequence[int]]) -> bool:
    return all(max(places, default=-1) < place for place, places in enumerate(before))


def _reads(node: NodeProto) -> Iterator[str]:
    """Names that a node and its bodies read from the graph around."""
    yield from node.input
    for body in subgraphs(node):
        yield from _captured(body)


def _captured(body: GraphProto) -> set[str]:
    """Names that a body reads and does not define."""
    read = {name for node in body.node for name in _reads(node)}
    return (read | {value.name for value in body.output}) - set(defined(body))
