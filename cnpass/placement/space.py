"""What a placement search chooses from: kinds and ratios of compensation per node, and what each costs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cnpass.compensation.kinds import Kind
from cnpass.compensation.overhead import Cost
from cnpass.records import Overhead

RATIOS = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Choice:
    """Compensation of one node.

    Attributes:
        node: Label of the node.
        kind: Kind of compensation.
        ratio: Filters of the generator over output channels.
    """

    node: str
    kind: Kind
    ratio: float


Placement = tuple[Choice, ...]
"""At most one choice per node, in the order of the nodes; a node without one is not compensated."""


@dataclass(frozen=True)
class Space:
    """Kinds and ratios for every candidate node, within a limit on what they cost together.

    Attributes:
        nodes: Labels of the candidates, in the order of the file.
        kinds: Kinds of compensation.
        ratios: Widths as fractions of the output channels, rising; beside none.
        costs: What each choice costs; a choice that is not there is not possible at that node.
        base: What the model costs without compensation.
        limit: Parameters and multiply-accumulates allowed on top, each as a fraction of the model's.
    """

    nodes: Sequence[str]
    kinds: Sequence[Kind]
    ratios: Sequence[float]
    costs: Mapping[Choice, Cost]
    base: Cost
    limit: float

    def overhead(self, placement: Iterable[Choice]) -> Overhead:
        """Return what a placement costs, as `cnpass.compensation.overhead` would count it on the graph."""
        chosen = [self.costs[choice] for choice in placement]
        macs = [c.macs for c in chosen if c.macs is not None]
        known = len(macs) == len(chosen) and self.base.macs is not None
        return Cost(sum(c.params for c in chosen), sum(macs) if known else None).over(self.base)

    def share(self, placement: Iterable[Choice]) -> float:
        """Return what the limit is on: the larger of both overheads, as a fraction."""
        cost = self.overhead(placement)
        return max(cost.params, cost.macs or 0.0)

    def excess(self, placement: Iterable[Choice]) -> float:
        """Return by how much a placement is above the limit; 0 or less is allowed, infinity not possible."""
        placement = list(placement)
        if any(choice not in self.costs for choice in placement):
            return math.inf
        return self.share(placement) - self.limit

    def fitted(self, choices: Iterable[Choice], first: str) -> Placement:
        """Bring a proposal within the limit: each node in turn is as wide as proposed or as the limit allows.

        Args:
            choices: At most one per node; if they are within the limit, they stay as they are.
            first: Label of the node whose turn comes first; the others follow in their order, in a circle.
        """
        start, wanted = self.nodes.index(first), {choice.node: choice for choice in choices}
        taken: list[Choice] = []
        for node in (*self.nodes[start:], *self.nodes[:start]):
            if node in wanted:
                choice = wanted[node]
                narrower = [Choice(node, choice.kind, r) for r in self.ratios if r <= choice.ratio]
                taken += [way for way in narrower if self.excess([*taken, way]) <= 0][-1:]
        return self.ordered(taken)

    def cheapest(self) -> Placement:
        """Compensate as many nodes as the limit allows, each in its cheapest way, the cheapest first."""
        ways = (min(self._ways(node), key=self._cost, default=None) for node in self.nodes)
        return self._fill(sorted((way for way in ways if way), key=self._cost))

    def widest(self) -> Placement:
        """Widen the cheapest placement step by step, node after node in turn, as far as the limit allows."""
        widths = {choice.node: choice for choice in self.cheapest()}
        growing = list(widths)
        while growing:
            for node in tuple(growing):
                choice = widths[node]
                wider = next((r for r in self.ratios if r > choice.ratio), None)
                tried = None if wider is None else Choice(node, choice.kind, wider)
                if tried is None or self.excess([*(widths | {node: tried}).values()]) > 0:
                    growing.remove(node)
                else:
                    widths[node] = tried
        return self.ordered(widths.values())

    def sample(self, seed: int) -> Placement:
        """Draw a placement within the limit: random nodes in turn, each with a random kind and ratio."""
        draw = random.Random(seed)
        drawn = [
            (node, draw.choice(self.kinds), draw.choice((0.0, *self.ratios)))
            for node in draw.sample(self.nodes, len(self.nodes))
        ]
        return self._fill(Choice(node, kind, ratio) for node, kind, ratio in drawn if ratio)

    def ordered(self, choices: Iterable[Choice]) -> Placement:
        """Make a placement of choices."""
        return tuple(sorted(choices, key=lambda choice: self.nodes.index(choice.node)))

    def _ways(self, node: str) -> Iterator[Choice]:
        ways = (Choice(node, kind, ratio) for kind, ratio in product(self.kinds, self.ratios))
        return (way for way in ways if way in self.costs)

    def _cost(self, choice: Choice) -> float:
        return self.share([choice])

    def _fill(self, choices: Iterable[Choice]) -> Placement:
        """Take choices in turn, but for those that would go above the limit."""
        taken: list[Choice] = []
        for choice in choices:
            if self.excess([*taken, choice]) <= 0:
                taken.append(choice)
        return self.ordered(taken)
