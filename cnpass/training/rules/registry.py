"""How an ONNX operator becomes a torch function: the node that a rule reads and the table of rules.

A rule is called once per node, at lift time, with the node's attributes; it returns the kernel that every
forward pass calls with the node's inputs. Rules are versioned like ONNX's own operator schemas: the rule with
the highest ``since`` not above the model's opset applies, so a model is never converted to another opset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Kernel = Callable[..., Any]
"""Takes the node's inputs (``None`` for an absent one); returns one tensor or a tuple, one per output."""

DEFAULT_DOMAIN = ""
"""ONNX's own operators; ``ai.onnx`` is the same domain spelled out."""


class UnsupportedNodeError(Exception):
    """A rule exists for the operator, but not for this node's attributes or inputs."""


class Block(Protocol):
    """A lifted subgraph (body of If, Loop or Scan) as its rule sees it."""

    @property
    def captures(self) -> tuple[str, ...]:
        """Names of the outer tensors that the subgraph reads."""
        ...

    def __call__(
        self, inputs: Sequence[torch.Tensor], captured: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Run the subgraph on its formal inputs and the captured outer tensors."""
        ...


@dataclass(frozen=True)
class Node:
    """What a rule may know about a node before any tensor is there.

    Attributes:
        op_type: Operator name.
        opset: Version of the node's domain that the model imports.
        attributes: Attribute values; strings decoded, tensors as ``torch.Tensor``, subgraphs left out.
        present: For every input slot, whether it is connected.
        types: For every input slot, the ONNX element type of a stored constant; 0 for other inputs.
        outputs: Number of outputs that something may read.
        blocks: Lifted subgraphs by attribute name.
    """

    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    present: tuple[bool, ...]
    types: tuple[int, ...]
    outputs: int
    blocks: Mapping[str, Block] = field(default_factory=dict)

    def has(self, slot: int) -> bool:
        """Tell whether input ``slot`` is connected."""
        return slot < len(self.present) and self.present[slot]

    def integer(self, name: str, default: int) -> int:
        """Return integer attribute ``name``."""
        return int(self.attributes.get(name, default))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return an integer attribute that means yes or no."""
        return bool(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """Return float attribute ``name``."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return string attribute ``name``."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """Return list attribute ``name``, or None where it is absent."""
        value = self.attributes.get(name)
        return None if value is None else [int(v) for v in value]

    def refuse(self, reason: str) -> UnsupportedNodeError:
        """Return the error that says why this node has no kernel."""
        return UnsupportedNodeError(f"{self.op_type} with {reason}")


Builder = Callable[[Node], Kernel]


@dataclass(frozen=True)
class Rule:
    """One operator, from one opset version on.

    Attributes:
        builder: Makes the kernel of a node.
        structural: Input slots that never carry a trainable weight (shapes, axes, bounds, indices).
        state: Input slots that hold statistics: they move with the module but are not trained.
        layer: The operator is a layer, whose constants are trained even where they have a single element.
        view: Run on a trained constant, the operator stays in the graph instead of being folded, so that
            weights shared through it remain one parameter.
    """

    builder: Builder
    structural: frozenset[int]
    state: frozenset[int]
    layer: bool
    view: bool

    def trains(self, slot: int) -> bool:
        """Tell whether a floating constant at input ``slot`` may be a parameter."""
        return slot not in self.structural and slot not in self.state


_RULES: dict[tuple[str, str], dict[int, Rule]] = {}
ALL_SLOTS = frozenset(range(64))
"""For operators without gradient: no input is a weight."""


def rule(
    *op_types: str,
    since: int = 1,
    domain: str = DEFAULT_DOMAIN,
    structural: frozenset[int] | set[int] = frozenset(),
    state: frozenset[int] | set[int] = frozenset(),
    layer: bool = False,
    view: bool = False,
) -> Callable[[Builder], Builder]:
    """Register a builder for ``op_types`` from opset ``since`` on; see :class:`Rule` for the flags."""

    def register(builder: Builder) -> Builder:
        for op_type in op_types:
            versions = _RULES.setdefault((domain, op_type), {})
            if since in versions:
                raise ValueError(f"two rules for {op_type} since {since}")
            versions[since] = Rule(builder, frozenset(structural), frozenset(state), layer, view)
        return builder

    return register


def constantly(kernel: Kernel) -> Builder:
    """Return the builder of an operator whose attributes do not matter."""
    return lambda _node: kernel


def pure(
    kernels: Mapping[str, Kernel], *, structural: frozenset[int] = frozenset(), view: bool = False
) -> None:
    """Register operators without attributes, whose kernel is a plain function."""
    for op_type, kernel in kernels.items():
        rule(op_type, structural=structural, view=view)(constantly(kernel))


def find_rule(domain: str, op_type: str, opset: int) -> Rule | None:
    """Return the rule for an operator at ``opset``, or None where there is none."""
    versions = _RULES.get((DEFAULT_DOMAIN if domain == "ai.onnx" else domain, op_type), {})
    usable = [since for since in versions if since <= opset]
    return versions[max(usable)] if usable else None


def covered() -> set[tuple[str, str]]:
    """Return every (domain, operator) that has a rule."""
    return set(_RULES)


def as_ints(tensor: torch.Tensor) -> list[int]:
    """Read an integer tensor (a shape, axes, ...) of any rank as a flat list."""
    return [int(v) for v in tensor.reshape(-1).tolist()]
