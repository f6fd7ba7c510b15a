"""Compile ONNX graphs into steps, and sort their constants: what is trained, fixed, or unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch

from cnpass.errors import ModelError
from cnpass.order import in_order
from cnpass.training.rules import Node, UnsupportedNodeError, find_rule
from cnpass.training.rules.dtypes import from_proto
from cnpass.training.steps import MISFITS, Run, Step, look_up
from cnpass.weights import RANDOM

_SEQUENCES = frozenset({"SequenceEmpty", "SequenceConstruct", "SplitToSequence"})
"""Operators that make sequences, which are no constants to keep."""
_MAKES_ROOTS = frozenset({"Cast", "DequantizeLinear", "ConstantOfShape"})
"""Operators whose floating result is a root where no trained constant went in."""

_LAYERS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "AnalogConv": (1,),
    "MatMul": (1, 0),
    "Gemm": (1, 0),
    "AnalogMatMul": (1,),
}
"""Operators that can sit on a crossbar, with the input slots that may hold their weight."""

_INTEGER_WEIGHTS = {"QLinearConv": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1}
"""Operators that multiply by integers, with the input slot that may hold a weight."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a trained matrix.

    Attributes:
        output: Name of the node's first output.
        op_type: Operator.
        operand: Tensor that the node multiplies by (the root, or what views make of it).
        key: Root of the operand.
        groups: Groups of a convolution, else 1.
    """

    output: str
    op_type: str
    operand: str
    key: str
    groups: int


class _Subgraph:
    """Body of If, Loop or Scan."""

    def __init__(self, inputs: tuple[str, ...], captures: tuple[str, ...], graph: Graph) -> None:
        self._inputs = inputs
        self._captures = captures
        self._outputs = graph.outputs
        self._fixed = graph.fixed
        self._run = Run(graph.steps, graph.outputs)

    @property
    def captures(self) -> tuple[str, ...]:
        """Outer tensors that the subgraph reads."""
        return self._captures

    def __call__(
        self, inputs: Sequence[torch.Tensor], captured: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Run on formal inputs and captured tensors."""
        env: dict[str, torch.Tensor | None] = dict(self._fixed)
        env.update(zip(self._captures, captured, strict=True))
        env.update(zip(self._inputs, inputs, strict=True))
        self._run(env)
        outputs = (look_up(env, name, "a subgraph") for name in self._outputs)
        return tuple(t for t in outputs if t is not None)


@dataclass
class Graph:
    """A compiled graph: its steps and the constants that they read."""

    outputs: tuple[str, ...]
    steps: list[Step] = field(default_factory=list)
    fixed: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Compiler:
    """Turns graphs into steps and sorts their constants.

    Attributes:
        opsets: Version by domain.
        values: Every tensor that is known at lift time.
        types: ONNX element types of stored constants.
        roots: Floating constants that may be trained.
        keys: Root of every tensor that is a live view of one.
        opaque: Tensors that cannot be computed, with all that is missing for them: operators without a rule,
            with the node's reason where there is one, and constants of types that torch has not.
        depends: Roots that every tensor made of constants alone depends on.
        parameters: Roots that a layer or arithmetic operator consumes.
        layers: Nodes that multiply by a trained matrix.
        integers: Integer weights that nodes multiply by.
    """

    opsets: Mapping[str, int]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    roots: set[str] = field(default_factory=set)
    keys: dict[str, str] = field(default_factory=dict)
    opaque: dict[str, frozenset[str]] = field(default_factory=dict)
    depends: dict[str, frozenset[str]] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    layers: list[Layer] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)

    def graph(self, proto: onnx.GraphProto) -> Graph:
        """Compile one graph; constants are left in ``values``, those to train in ``parameters``."""
        result = Graph(tuple(o.name for o in proto.output))
        for initializer in proto.initializer:
            self.types[initializer.name] = initializer.data_type
            self._constant(initializer.name, from_proto(initializer), f"initializer {initializer.name}")
        for sparse in proto.sparse_initializer:
            self.opaque[sparse.values.name] = frozenset({f"sparse initializer {sparse.values.name}"})
        for node in in_order(proto.node):
            self._node(node, result)
        read = {name for step in result.steps for name in step.inputs} | set(result.outputs)
        made = {name for step in result.steps for name in step.outputs}
        result.fixed = {n: self.values[n] for n in read if n in self.values and n not in made}
        return result

    def lacking(self, names: Iterable[str]) -> frozenset[str]:
        """All that is missing to compute some tensors."""
        return frozenset[str]().union(*(self.opaque.get(name, ()) for name in names if name))

    def _leave_out(self, proto: onnx.NodeProto, lacking: Iterable[str]) -> None:
        reasons = self.lacking(proto.input) | {*lacking}
        self.opaque.update(dict.fromkeys(proto.output, reasons))

    def _constant(self, name: str, value: torch.Tensor | None, what: str) -> None:
        if value is None:
            self.opaque[name] = frozenset({f"{what} (element type)"})
            return
        self.values[name] = value
        if value.is_floating_point() and bool(torch.isfinite(value).all()):
            self.roots.add(name)
            self.keys[name] = name

    def _node(self, proto: onnx.NodeProto, graph: Graph) -> None:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        opset = self.opsets.get(domain, 1)
        rule = find_rule(domain, proto.op_type, opset)
        if rule is None:
            self._leave_out(proto, {f"{domain}::{proto.op_type}" if domain else proto.op_type})
            return
        blocks, captures = self._blocks(proto)
        lacking = self.lacking((*proto.input, *captures))
        node = Node(
            op_type=proto.op_type,
            opset=opset,
            attributes=_attributes(proto),
            present=tuple(bool(i) for i in proto.input),
            types=tuple(self.types.get(i, 0) for i in proto.input),
            outputs=max((k + 1 for k, o in enumerate(proto.output) if o), default=0),
            blocks=blocks,
        )
        label = proto.name or next((o for o in proto.output if o), proto.op_type)
        try:
            kernel = rule.builder(node)
        except UnsupportedNodeError as error:
            self._leave_out(proto, lacking | {str(error)})
            return
        except MISFITS as error:
            raise ModelError(f"node {label}: its attributes are no {proto.op_type}'s: {error}") from error
        step = Step(label, kernel, (*proto.input, *captures), tuple(proto.output), rule)
        if lacking:
            self._leave_out(proto, lacking)
            self._note_use(proto, step)
            return
        if proto.op_type == "Constant" and not domain:
            self.types.update((proto.output[0], a.t.data_type) for a in proto.attribute if a.name == "value")
            self._constant(proto.output[0], kernel(), f"Constant {label}")
            return
        known = all(not i or i in self.values for i in step.inputs)
        if (
            known
            and not blocks
            and proto.op_type not in RANDOM | _SEQUENCES
            and self._fold(proto, step, graph)
        ):
            return
        self._note_use(proto, step)
        graph.steps.append(step)

    def _fold(self, proto: onnx.NodeProto, step: Step, graph: Graph) -> bool:
        """Compute a node of constants; return whether that settles it, and it is no use of a weight."""
        env: dict[str, torch.Tensor | None] = {i: self.values[i] for i in step.inputs if i}
        with torch.no_grad():
            Run([step], step.outputs)(env)
        made = {o: t for o in step.outputs if o and (t := env.get(o)) is not None}
        self.values.update(made)
        floats = all(t.is_floating_point() for t in made.values())
        trained = [i for slot, i in enumerate(step.inputs) if i and step.rule.trains(slot)]
        roots = frozenset[str]().union(*(self.depends.get(i, {i} & self.roots) for i in trained))
        if roots and floats:
            self.depends.update(dict.fromkeys(made, roots))
        keys = [self.keys[i] for i in trained if i in self.keys and self.values[i].numel() > 1]
        if keys and step.rule.view and floats:
            self.keys.update(dict.fromkeys(made, keys[0]))
            return False
        if proto.op_type in _MAKES_ROOTS and proto.input[0] not in self.keys:
            for output, value in made.items():
                self._constant(output, value, step.label)
        elif roots and floats:
            graph.steps.append(replace(step, roots=roots))
        return True

    def _note_use(self, proto: onnx.NodeProto, step: Step) -> None:
        """Note which of the constants that a step reads are trained, and what it multiplies by."""
        for slot, name in enumerate(step.inputs):
            trained = name in self.roots and step.rule.trains(slot)
            if trained and (step.rule.layer or self.values[name].numel() > 1):
                self.parameters.add(name)
        integer = _INTEGER_WEIGHTS.get(proto.op_type)
        if integer is not None and proto.input[integer] in self.values:
            self.integers.append(proto.input[integer])
        slots = _LAYERS.get(proto.op_type, ())
        operand = next(
            (proto.input[s] for s in slots if s < len(proto.input) and proto.input[s] in self.keys), None
        )
        if operand is not None:
            groups = next((a.i for a in proto.attribute if a.name == "group"), 1)
            self.layers.append(
                Layer(proto.output[0], proto.op_type, operand, self.keys[operand], int(groups))
            )

    def _blocks(self, proto: onnx.NodeProto) -> tuple[dict[str, _Subgraph], tuple[str, ...]]:
        """Compile the subgraphs of a node; return them and the outer tensors that they read, in order."""
        blocks: dict[str, _Subgraph] = {}
        captures: list[str] = []
        for attribute in sorted(proto.attribute, key=lambda a: a.name == "else_branch"):
            if attribute.type != onnx.AttributeProto.GRAPH:
                continue
            compiled = self.graph(attribute.g)
            inputs = tuple(i.name for i in attribute.g.input)
            made = {o for step in compiled.steps for o in step.outputs}.union(inputs)
            read = [i for step in compiled.steps for i in step.inputs if i] + list(compiled.outputs)
            local = {n: t for n, t in compiled.fixed.items() if n not in self.keys}
            compiled.fixed = local
            outer = tuple(dict.fromkeys(i for i in read if i not in made and i not in local))
            blocks[attribute.name] = _Subgraph(inputs, outer, compiled)
            captures.extend(outer)
        return blocks, tuple(captures)


def _attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """Read attributes: strings decoded, tensors as torch, subgraphs left out."""
    result: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
            continue
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif isinstance(value, onnx.TensorProto):
            value = from_proto(value)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
            value = [v.decode(errors="replace") for v in value]
        result[attribute.name] = value
    return result
