"""Weight sharing: one network that holds every placement, trained once, so that a trial only evaluates.

All candidate nodes carry every kind of compensation at the largest width, one behind the other. For a
placement, what it has not is passed by; where a width is smaller, the other filters and the columns that read
them are zero. What comes out is what the placement alone would compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from cnpass.compensation.builder import NOTHING, Known
from cnpass.compensation.insertion import Insertion, insert, width_of
from cnpass.compensation.kinds import KINDS, Kind
from cnpass.compensation.overhead import Cost, base_cost, cost
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.passes.insert_compensation import InsertCompensation
from cnpass.placement.space import RATIOS, Choice, Placement, Space
from cnpass.progress import Progress
from cnpass.training.forward import Forward
from cnpass.training.retrain import Problem, TrainOptions, TrainResult, train
from cnpass.training.schedule import seed_of
from cnpass.training.writeback import write_back

Weights = Mapping[str, torch.Tensor]


class Supernet:
    """A document with all kinds of compensation at every candidate node.

    Attributes:
        base: The document without compensation.
        nodes: Labels of the candidates.
        kinds: Kinds of compensation.
        ratios: Widths that a placement may have.
        document: The document; at first it computes what the base does.
        keys: Keys of the compensation's weights.
    """

    def __init__(
        self,
        base: Document,
        nodes: Sequence[str],
        kinds: Sequence[Kind],
        ratios: Sequence[float],
        *,
        seed: int,
        known: Known = NOTHING,
    ) -> None:
        """Insert compensation in a copy of a document.

        Args:
            base: The document, without compensation.
            nodes: Labels of the candidates.
            kinds: Kinds of compensation.
            ratios: Widths that a placement may have, as fractions of the output channels.
            seed: Seed of the generators' initial weights.
            known: What is known of what enters the nodes, and of the chips.
        """
        self.base, self._seed, self._known = base, seed, known
        self.nodes, self.kinds, self.ratios = tuple(nodes), tuple(kinds), tuple(ratios)
        sites, _ = find_sites(base, plan(base), behind=True)
        widest = [
            Choice(node, kind, max(ratios))
            for node in nodes
            for kind in kinds
            if KINDS[kind].unsuited(sites[node]) is None
        ]
        self.document, self._insertions = insert_all(base, widest, seed=seed, known=known)

    @property
    def keys(self) -> frozenset[str]:
        """Keys of all weights of the compensation."""
        return frozenset(c.name for insertion in self._insertions.values() for c in insertion.constants)

    def space(self, limit: float) -> Space:
        """Return the placements that the network holds, with what they cost.

        Costs are counted on two graphs, at the largest width and at width 1; between them they lie on a line,
        since every kind's maps grow with the width along one axis.
        """
        narrow = [Choice(node, kind, 0.0) for node, kind in self._insertions]
        thin, thin_insertions = insert_all(self.base, narrow, seed=self._seed, known=self._known)
        wide, small = _costs(self.document, self._insertions), _costs(thin, thin_insertions)
        costs = {
            Choice(node, kind, ratio): _between(
                small[node, kind], wide[node, kind], insertion.width, width_of(ratio, insertion.site, kind)
            )
            for (node, kind), insertion in self._insertions.items()
            for ratio in self.ratios
        }
        base = base_cost(plan(self.base).nodes)
        return Space(self.nodes, self.kinds, self.ratios, costs, base, limit)

    def variant(self, forward: Forward, placement: Placement) -> tuple[Forward, dict[str, torch.Tensor]]:
        """Return what computes a placement; gradients flow to what it uses.

        Args:
            forward: The network's document, lifted.
            placement: What to compute.

        Returns:
            The part of the network that the placement needs, and tensors that stand in for its weights.
        """
        wanted = {(choice.node, choice.kind): choice.ratio for choice in placement}
        weights, stand_ins = forward.module.weights, {}
        passed_by: dict[str, str] = {}
        for place, insertion in self._insertions.items():
            if place not in wanted:
                passed_by |= insertion.passed_by
                continue
            blocks = insertion.blocks(width_of(wanted[place], insertion.site, insertion.kind))
            for key in (part.constant.name for part in insertion.parts if part.axis is not None):
                mask = torch.zeros_like(weights[key])
                mask[blocks[key]] = 1
                stand_ins[key] = weights[key] * mask
        return replace(forward, module=forward.module.passing_by(passed_by)), stand_ins

    def extract(self, weights: Weights, placement: Placement) -> Document:
        """Return the document of a placement alone, with its part of the shared weights.

        Args:
            weights: The network's weights by key.
            placement: What to insert.
        """
        document, insertions = insert_all(self.base, placement, seed=self._seed, known=self._known)
        values: dict[str, np.ndarray] = {}
        for place, insertion in insertions.items():
            wide = self._insertions[place]
            held = {
                c.name: weights[c.name].detach().cpu().numpy() if c.name in weights else c.values
                for c in wide.constants
            }
            values |= insertion.narrowed(wide, held)
        write_back(document, {key: torch.from_numpy(np.array(value)) for key, value in values.items()})
        return document


def widest(base: Document, nodes: Sequence[str], kind: Kind, *, limit: float, seed: int) -> Placement:
    """Return compensation of one kind at as many nodes, and as wide, as a limit on overhead allows."""
    return Supernet(base, nodes, (kind,), RATIOS, seed=seed).space(limit).widest()


def insert_all(
    base: Document, choices: Iterable[Choice], *, seed: int, known: Known = NOTHING
) -> tuple[Document, dict[tuple[str, Kind], Insertion]]:
    """Insert compensation in a copy of a document, several kinds at one node behind each other.

    Args:
        base: The document; each node of the choices must be one that can be compensated. What is inserted
            goes before a compensation that the node has already.
        choices: What to insert.
        seed: Seed of the generators' initial weights; every node and kind has its own.
        known: What is known of what enters the nodes, and of the chips.

    Returns:
        The copy, and what was inserted by node and kind.
    """
    document = base.copy()
    sites, _ = find_sites(document, plan(document), behind=True)
    inserted: dict[tuple[str, Kind], Insertion] = {}
    for choice in choices:
        site = sites[choice.node]
        inserted[choice.node, choice.kind] = insert(
            document,
            site,
            choice.kind,
            width_of(choice.ratio, site, choice.kind),
            creator=InsertCompensation.name,
            seed=seed_of(seed, "compensation", choice.node, choice.kind) % 2**31,
            known=known,
        )
    return document, inserted


def _costs(
    document: Document, insertions: Mapping[tuple[str, Kind], Insertion]
) -> dict[tuple[str, Kind], Cost]:
    entries = {id(entry.node): entry for entry in plan(document).nodes if entry.node is not None}
    return {place: cost(entries[id(node)] for node in i.nodes) for place, i in insertions.items()}


def _between(small: Cost, wide: Cost, widest: int, width: int) -> Cost:
    """Return the cost at a width, from those at width 1 and at the largest."""

    def line(one: int, last: int) -> int:
        return last if width == widest else one + (last - one) * (width - 1) // (widest - 1)

    known = small.macs is not None and wide.macs is not None
    macs = line(small.macs or 0, wide.macs or 0) if known else None
    return Cost(line(small.params, wide.params), macs)


def train_shared(
    supernet: Supernet,
    space: Space,
    forward: Forward,
    problem: Problem,
    options: TrainOptions,
    *,
    path: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the shared weights: every part of a step draws a placement within the limit, and a chip.

    Analog weights stay as they are, bit for bit. A step trains only what its placement uses. The last weights
    are kept: a figure of all placements at once does not exist, and that of a few is for the search to take.

    Args:
        supernet: The network.
        space: What placements are drawn from; it allows at least one choice.
        forward: The network's document, lifted.
        problem: What to train on; its validator is not asked.
        options: How; the checks do not matter.
        path: Checkpoint file; an existing one is gone on from.
        progress: Told what happens.
    """

    def drawn(forward: Forward, generator: torch.Generator) -> tuple[Forward, Weights]:
        number = int(torch.randint(2**31, (), generator=generator))
        return supernet.variant(forward, _some(space, number))

    return train(
        forward,
        replace(problem, variant=drawn),
        replace(options, checks=0),
        trained=supernet.keys,
        path=path,
        progress=progress,
        title="shared compensation",
    )


def _some(space: Space, seed: int) -> Placement:
    """Draw a placement that compensates at least one node, since no other has anything to train."""
    return next(placement for number in count(seed) if (placement := space.sample(number)))
