"""Model-local functions: passes edit nodes, not definitions that several of them share: those are inlined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import FunctionProto, GraphProto, NodeProto, inliner

from cnpass.document import Document
from cnpass.mapping import STANDARD, plan
from cnpass.nodes import subgraphs
from cnpass.runtime import ops

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})

_Name = tuple[str, str]

_CONSTANT = "cnpass.function-constant"
"""Metadata by which an inlined node is known as a certain Constant of a function; taken out again."""


def inline_products(document: Document) -> int:
    """Inline the local functions that hold products with weights of the model, however deep, in place.

    A Constant of a function stays one tensor, however often the function is called: weights in it are tied.
    Functions without such products stay; so do all functions if inlining makes no node analog.

    Returns:
        How many functions were inlined.
    """
    names = _with_products(document.functions)
    if not names:
        return 0
    source = document.to_proto()
    for function in source.functions:
        if (function.domain, function.name) in names:
            _number(function)
    try:
        proto = inliner.inline_selected_functions(source, sorted(names))
    except (
        RuntimeError,
        ValueError,
    ):  # what the inliner throws: a function that it cannot convert, for example
        return 0
    _tie(proto.graph, {})
    inlined = Document(proto, document.base_dir)
    if len(plan(inlined).analog) <= len(plan(document).analog):
        return 0
    document.replace(proto)
    return len(names)


def check_analog(document: Document) -> None:
    """Make sure that a model has something for crossbars, maybe in local functions; it is not changed.

    Raises:
        ModelError: it has not; says why.
    """
    found = plan(document)
    if not found.analog and document.functions:
        twin = document.copy()
        inline_products(twin)
        found = plan(twin)
    found.check()


def _with_products(functions: Iterable[FunctionProto]) -> set[_Name]:
    """Domain and name of the functions that hold a product, or call one that does."""
    foreign = [function for function in functions if function.domain != ops.DOMAIN]
    found: set[_Name] = set()
    while True:
        more = {(f.domain, f.name) for f in foreign if _holds(f.node, found)}
        if more == found:
            return found
        found = more


def _holds(nodes: Iterable[NodeProto], calls: set[_Name]) -> bool:
    return any(
        (node.domain in STANDARD and node.op_type in _PRODUCTS)
        or (node.domain, node.op_type) in calls
        or any(_holds(body.node, calls) for body in subgraphs(node))
        for node in nodes
    )


def _number(function: FunctionProto) -> None:
    """Give every Constant of a function, those of bodies in it included, metadata that name it."""
    for number, node in enumerate(_constants(function.node)):
        origin = f"{function.domain}:{function.name}:{function.overload}:{number}"
        node.metadata_props.add(key=_CONSTANT, value=origin)


def _constants(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        if node.op_type == "Constant" and node.domain in STANDARD:
            yield node
        for body in subgraphs(node):
            yield from _constants(body.node)


def _tie(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Keep the first of those nodes of a graph that are the same Constant, and let it serve all readers.

    Args:
        graph: edited in place; of its bodies each is taken by itself.
        names: the tensor to read instead, by name, from the graphs around.
    """
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    outputs = {value.name for value in graph.output}
    names = dict(names)
    first: dict[str, str] = {}
    dropped = []
    for place, node in enumerate(graph.node):
        origin = _pop_origin(node)
        if origin is not None and node.output[0] not in outputs:
            if origin in first:
                names[node.output[0]] = first[origin]
                dropped.append(place)
            first.setdefault(origin, node.output[0])
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in subgraphs(node):
            _tie(body, names)
    for place in reversed(dropped):
        del graph.node[place]


def _pop_origin(node: NodeProto) -> str | None:
    """The Constant that a node was, which its metadata no longer say after this."""
    for place, entry in enumerate(node.metadata_props):
        if entry.key == _CONSTANT:
            origin: str = entry.value
            del node.metadata_props[place]
            return origin
    return None
