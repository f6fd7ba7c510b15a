"""What compensation costs, counted on the graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cnpass.document import Document
from cnpass.mapping import NodePlan, plan
from cnpass.nodes import node_metadata
from cnpass.records import Overhead
from cnpass.runtime import ops


def is_compensation(entry: NodePlan) -> bool:
    """Tell whether a node belongs to a compensation."""
    return entry.node is not None and node_metadata(entry.node).get(ops.META_ROLE) == ops.ROLE_COMPENSATION


class Cost(NamedTuple):
    """Parameters, and multiply-accumulates per sample (None where a shape is not known)."""

    params: int
    macs: int | None

    def over(self, base: Cost) -> Overhead:
        """This cost as a fraction of another one."""
        macs = None if self.macs is None or base.macs is None else self.macs / max(1, base.macs)
        return Overhead(params=self.params / max(1, base.params), macs=macs)


def cost(nodes: Iterable[NodePlan]) -> Cost:
    """Count parameters and multiply-accumulates of nodes; every stored weight counts once.

    Multiply-accumulates are those of products and convolutions.
    """
    nodes = list(nodes)
    params = sum({key: size for node in nodes for key, size in node.constants.items()}.values())
    known = [node.macs for node in nodes if node.macs is not None]
    return Cost(params, sum(known) if len(known) == len(nodes) else None)


def base_cost(nodes: Iterable[NodePlan]) -> Cost:
    """Count what the nodes cost that are no compensation, for an overhead over it.

    Where multiply-accumulates are not known they count as none, so that the overhead is rather too large.
    """
    own = [node for node in nodes if not is_compensation(node)]
    return Cost(cost(own).params, sum(node.macs or 0 for node in own))


def overhead(document: Document) -> Overhead:
    """Count what compensation nodes cost, over what all others do."""
    nodes = plan(document).nodes
    return cost(n for n in nodes if is_compensation(n)).over(base_cost(nodes))


def uncounted(document: Document) -> str | None:
    """Return the name of a compensation node whose multiply-accumulates are not known; None if all are."""
    inserted = (node for node in plan(document).nodes if is_compensation(node))
    return next((node.label for node in inserted if node.macs is None), None)


def left(document: Document, limit: float) -> float:
    """Return what a limit on both fractions leaves beside the compensation that a document has."""
    spent = overhead(document)
    return limit - max(spent.params, spent.macs or 0.0)


def weight_keys(document: Document) -> set[str]:
    """Return the keys of all weights of compensation nodes."""
    return {key for node in plan(document).nodes if is_compensation(node) for key in node.constants}
