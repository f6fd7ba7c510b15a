"""Nodes in an order in which they can be computed; ONNX asks for one, ONNX Runtime does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import NodeProto

from cnpass.nodes import subgraphs


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes of one graph, each after those that it reads from; what is in order already stays so.

    Args:
        nodes: in any order. Of nodes that read from each other in a circle one comes first all the same.
    """
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    before = [sorted({makers[name] for name in _reads(node) if name in makers}) for node in nodes]
    if all(max(places, default=-1) < place for place, places in enumerate(before)):
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


def _reads(node: NodeProto) -> Iterator[str]:
    """Names that a node or its bodies read; some are the bodies' own."""
    yield from node.input
    for body in subgraphs(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from _reads(inner)
