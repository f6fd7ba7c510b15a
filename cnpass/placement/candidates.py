"""Candidates for compensation by suffix injection: from which layer on does variation hardly matter?

CorrectNet (reconstructed): variation goes only into the layers from i to the last. Early layers hurt most,
for their errors grow through all that follows. All layers before the first i at which accuracy is above
95 % of the clean figure are candidates.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.training.forward import Forward
from cnpass.training.validation import Validator

ENOUGH = 0.95
"""Fraction of the clean figure above which variation counts as harmless."""


@dataclass(frozen=True)
class Candidates:
    """Where compensation may go.

    Attributes:
        nodes: Labels of the candidates, in the order of the file.
        excluded: The other analog nodes, with the reason.
        clean: The figure without variation.
        suffix: The figure with variation in the layers from this one to the last, for every layer looked at.
        note: Why the rule was not followed; None if it was.
    """

    nodes: tuple[str, ...]
    excluded: dict[str, str]
    clean: float
    suffix: dict[str, float] = field(default_factory=dict)
    note: str | None = None


def find_candidates(
    document: Document, forward: Forward, validator: Validator, cut: Collection[str] = ()
) -> Candidates:
    """Find the nodes that are worth compensating.

    A weight that several layers share is one set of devices: it varies in all of them as soon as one of them
    is among the layers from i on. Where the rule leaves no node, because the whole network bears the
    variation or because only nodes are left that cannot be compensated, every node that can be is a
    candidate. A signal-to-error ratio has no fraction that would mean the same, so there all of them are.

    Args:
        document: The model.
        forward: The same, lifted.
        validator: Validation samples and chips, with variation in all analog weights.
        cut: Keys of weights behind which nothing has a gradient, so that compensation cannot be trained.
    """
    mapping = plan(document)
    sites, excluded = find_sites(document, mapping, for_first_output=True)
    for label in [label for label, site in sites.items() if site.weight.key in cut]:
        del sites[label]
        excluded[label] = "what follows it has no gradient, so compensation cannot be trained"
    crossbars = validator.crossbars
    clean = replace(validator, crossbars=crossbars.only(()), chips=validator.chips[:1]).score(forward)
    layers = [(n.label, n.key) for n in mapping.analog if n.key in crossbars.streams]
    if validator.metric == "ser":
        note = "suffix injection needs class scores; every node that can be compensated is a candidate"
        return Candidates(tuple(sites), excluded, clean, note=note)
    suffix: dict[str, float] = {}
    sensitive: list[str] = []
    for first, (label, _) in enumerate(layers):
        varied = {key for _, key in layers[first:]}
        suffix[label] = replace(validator, crossbars=crossbars.only(varied)).score(forward)
        if suffix[label] > ENOUGH * clean:
            break
        sensitive.append(label)
    nodes = tuple(label for label in sensitive if label in sites)
    if sites and not nodes:
        why = "only nodes that cannot be compensated" if sensitive else "no node"
        note = f"suffix injection leaves {why}; every node that can be compensated is a candidate"
        return Candidates(tuple(sites), excluded, clean, suffix, note)
    for label in (label for label in sites if label not in nodes):
        excluded[label] = f"variation in it and all that follows leaves more than {ENOUGH:.0%} of the figure"
    return Candidates(nodes, excluded, clean, suffix)
