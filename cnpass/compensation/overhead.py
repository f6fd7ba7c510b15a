"""What compensation costs, counted on the graph."""

from __future__ import annotations

from cnpass.document import Document
from cnpass.mapping import NodePlan, plan
from cnpass.nodes import node_metadata
from cnpass.records import Overhead
from cnpass.runtime import ops


def is_compensation(entry: NodePlan) -> bool:
    """Tell whether a node belongs to a compensation."""
    return entry.node is not None and node_metadata(entry.node).get(ops.META_ROLE) == ops.ROLE_COMPENSATION


def overhead(document: Document) -> Overhead:
    """Count parameters and multiply-accumulates of compensation nodes over those of all others.

    Every stored weight counts once. Multiply-accumulates are those of products and convolutions per sample,
    None where a shape is not known.
    """
    nodes = plan(document).nodes
    inserted = [n for n in nodes if is_compensation(n)]
    original = [n for n in nodes if not is_compensation(n)]
    macs = None
    if all(n.macs is not None for n in nodes):
        macs = sum(n.macs or 0 for n in inserted) / max(1, sum(n.macs or 0 for n in original))
    return Overhead(params=_params(inserted) / max(1, _params(original)), macs=macs)


def _params(nodes: list[NodePlan]) -> int:
    return sum({key: size for node in nodes for key, size in node.constants.items()}.values())


def weight_keys(document: Document) -> set[str]:
    """Return the keys of all weights of compensation nodes."""
    return {key for node in plan(document).nodes if is_compensation(node) for key in node.constants}
