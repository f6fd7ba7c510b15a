"""Model-local functions: passes edit nodes, not definitions that several of them share: those are inlined."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import FunctionProto, NodeProto, inliner

from cnpass.document import Document
from cnpass.mapping import STANDARD, plan
from cnpass.nodes import subgraphs
from cnpass.runtime import ops

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})

_Name = tuple[str, str]


def inline_products(document: Document) -> int:
    """Inline the local functions that hold products with weights of the model, however deep, in place.

    Functions without such products stay; so do all functions if inlining makes no node analog.

    Returns:
        How many functions were inlined.
    """
    names = _with_products(document.functions)
    if not names:
        return 0
    try:
        proto = inliner.inline_selected_functions(document.to_proto(), sorted(names))
    except (
        RuntimeError,
        ValueError,
    ):  # what the inliner throws: a function that it cannot convert, for example
        return 0
    inlined = Document(proto, document.base_dir)
    if len(plan(inlined).analog) <= len(plan(document).analog):
        return 0
    document.replace(proto)
    return len(names)


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
