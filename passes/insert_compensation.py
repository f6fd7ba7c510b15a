"""`insert-compensation`: a small digital network corrects the output of one analog node."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.compensation.insertion import insert, width_of
from cnpass.compensation.kinds import KINDS, Kind
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.errors import UsageError
from cnpass.mapping import plan
from cnpass.passes.base import PASS_CONFIG, Pass, PassPreconditionError, PassResult


@dataclass(frozen=True, config=PASS_CONFIG)
class InsertCompensation(Pass):
    """Insert a digital compensation behind, or around, one node that will run on a crossbar.

    The node's output is renamed `<name>.analog`; the compensation writes the old name, so that nothing else
    changes. On the ideal chip it changes nothing until it is trained. Run it before `map-crossbar`.
    """

    name: ClassVar[str] = "insert-compensation"

    node: str = Field(default="", description="name of the node to compensate, as `cnpass inspect` shows it")
    kind: Kind = Field(
        default="residual", description="bypass, residual, gain, probe, affine, linear or paper"
    )
    ratio: float = Field(
        default=0.1, gt=0, le=4, description="filters of the generator over output channels; at least one"
    )
    seed: int = Field(default=0, ge=0, description="seed of the generator's initial weights")

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        sites, reasons = find_sites(document, plan(document))
        known = ", ".join(sites) or "none"
        if not self.node:
            raise UsageError(f"pass {self.name!r}, option 'node' is required: one of {known}")
        site = sites.get(self.node)
        if site is None:
            why = reasons.get(self.node, f"is no analog node; nodes that can be compensated: {known}")
            raise PassPreconditionError(self.name, f"node {self.node!r} {why}")
        if reason := KINDS[self.kind].unsuited(site):
            raise PassPreconditionError(self.name, f"node {self.node!r}: {reason}")
        width = width_of(self.ratio, site, self.kind)
        insert(document, site, self.kind, width, creator=self.name, seed=self.seed)
        return PassResult(True, (f"{self.kind} compensation of {self.node!r} with width {width}",))
