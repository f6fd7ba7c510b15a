"""Lift an ONNX model to a torch module whose parameters are keyed by ONNX tensor names.

The graph is interpreted, not translated to source: every node becomes one kernel (`cnpass.training.rules`),
called in the model's own order. Trained weights go back by name into the original document
(`cnpass.training.writeback`), which otherwise stays as it was.

What is trained: every floating constant that a layer or an arithmetic operator consumes. A weight is keyed
by its root as `cnpass.weights` names it: the initializer, the output of a Constant node, or the first
floats made of stored integers. What lies between root and use (Identity, Reshape, Transpose, ...) runs in
every forward pass, so tied weights are one parameter. Scalars such as exponents and epsilons stay fixed,
normalisation statistics are buffers.

Training is for the first output, so what it needs has to be known; other outputs that need unknown operators
are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn

from cnpass.errors import ModelError
from cnpass.nodes import defined, local_keys, subgraphs
from cnpass.order import in_order
from cnpass.training.rules import Kernel, Node, Rule, UnsupportedNodeError, find_rule
from cnpass.training.rules.dtypes import FLOAT_TYPES, TORCH_TYPES, from_proto
from cnpass.weights import RANDOM

if TYPE_CHECKING:
    from cnpass.document import Document

_MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What kernels and their builders raise where a node's attributes or inputs are not what it should have."""
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


@dataclass(frozen=True)
class _Step:
    """One node, ready to run.

    Attributes:
        label: Node name, or its first output where it has none; for error messages.
        kernel: What to call.
        inputs: Tensor names, the captured tensors of subgraphs last; "" for an absent input.
        outputs: Tensor names.
        rule: The rule that made the kernel.
        free: Names that nothing reads after this step.
        roots: Of a step on constants alone, those that its result depends on; it runs only if one is trained.
    """

    label: str
    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rule: Rule
    free: tuple[str, ...] = ()
    roots: frozenset[str] = frozenset()


class _Run:
    """Executes steps on tensors by name.

    Attributes:
        steps: Those that lead to what is kept.
        kept: Names of the tensors that they are run for.
    """

    def __init__(self, steps: Sequence[_Step], keep: Iterable[str]) -> None:
        self.kept = tuple(keep)
        self.steps = _with_lifetimes(steps, set(self.kept))

    def passing_by(self, sources: Mapping[str, str]) -> _Run:
        """Return the same with tensors that stand for others, by the names of these."""

        def source(name: str) -> str:
            while name in sources:
                name = sources[name]
            return name

        steps = [replace(step, inputs=tuple(map(source, step.inputs))) for step in self.steps]
        return _Run(steps, map(source, self.kept))

    def __call__(self, env: dict[str, torch.Tensor | None]) -> None:
        for step in self.steps:
            tensors = [_read(env, name, f"node {step.label}") if name else None for name in step.inputs]
            _align(tensors, step.rule)
            try:
                result = step.kernel(*tensors)
            except _MISFITS as error:
                raise ModelError(f"node {step.label}: {_first_line(error)}") from error
            if isinstance(result, torch.Tensor):
                env[step.outputs[0]] = result
            else:
                env.update(zip(step.outputs, result, strict=False))
            for name in step.free:
                env.pop(name, None)


def _read(env: Mapping[str, torch.Tensor | None], name: str, reader: str) -> torch.Tensor | None:
    try:
        return env[name]
    except KeyError:
        raise ModelError(f"{reader} reads {name!r}, which nothing writes") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _align(tensors: list[torch.Tensor | None], rule: Rule) -> None:
    """Bring a node's data to its accelerator; shapes and indices stay on the CPU, where they are read."""
    single = [t for t in tensors if isinstance(t, torch.Tensor)]  # sequences are where their parts are
    device = next((t.device for t in single if t.device.type != "cpu"), None)
    if device is None:
        return
    for slot, tensor in enumerate(tensors):
        if isinstance(tensor, torch.Tensor) and tensor.device != device and slot not in rule.structural:
            tensors[slot] = tensor.to(device)


def _with_lifetimes(steps: Sequence[_Step], keep: set[str]) -> list[_Step]:
    """Drop steps that no kept tensor needs, and note where every intermediate tensor is read last."""
    needed, chosen = set(keep), []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            made = {o for o in step.outputs if o}
            last = {i for i in step.inputs if i and i not in needed}
            needed.update(i for i in step.inputs if i)
            chosen.append((step, last, made))
    produced = {o for _, _, made in chosen for o in made}
    result = []
    for step, last, made in reversed(chosen):
        unread = {o for o in made if o not in needed}
        free = tuple(sorted((last & produced) | unread))
        result.append(_Step(step.label, step.kernel, step.inputs, step.outputs, step.rule, free))
    return result


class _Subgraph:
    """Body of If, Loop or Scan."""

    def __init__(self, inputs: tuple[str, ...], captures: tuple[str, ...], graph: _Graph) -> None:
        self._inputs = inputs
        self._captures = captures
        self._outputs = graph.outputs
        self._fixed = graph.fixed
        self._run = _Run(graph.steps, graph.outputs)

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
        outputs = (_read(env, name, "a subgraph") for name in self._outputs)
        return tuple(t for t in outputs if t is not None)


@dataclass
class _Graph:
    """A compiled graph: its steps and the constants that they read."""

    outputs: tuple[str, ...]
    steps: list[_Step] = field(default_factory=list)
    fixed: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class _Compiler:
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

    def graph(self, proto: onnx.GraphProto) -> _Graph:
        """Compile one graph; constants are left in ``values``, those to train in ``parameters``."""
        result = _Graph(tuple(o.name for o in proto.output))
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

    def _node(self, proto: onnx.NodeProto, graph: _Graph) -> None:
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
        except _MISFITS as error:
            raise ModelError(f"node {label}: its attributes are no {proto.op_type}'s: {error}") from error
        step = _Step(label, kernel, (*proto.input, *captures), tuple(proto.output), rule)
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

    def _fold(self, proto: onnx.NodeProto, step: _Step, graph: _Graph) -> bool:
        """Compute a node of constants; return whether that settles it, and it is no use of a weight."""
        env: dict[str, torch.Tensor | None] = {i: self.values[i] for i in step.inputs if i}
        with torch.no_grad():
            _Run([step], step.outputs)(env)
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

    def _note_use(self, proto: onnx.NodeProto, step: _Step) -> None:
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


class Lifted(nn.Module):
    """An ONNX model as a torch module.

    Attributes:
        input_names: Graph inputs that have no default value, in the model's order.
        output_names: Graph outputs, without those that need operators without a rule.
        layers: Nodes that multiply by a trained matrix, in the model's order.
        integer_weights: Names of integer weights that nodes multiply by; they are not trained.
        unused_weights: Names of floating weights that only tensors need that are not computed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Lift ``model``, whose external data are loaded.

        Args:
            model: Any model; it is not changed. Local functions are inlined, except ours (function bodies of
                ``ai.cnpass`` operators), whose operators have rules of their own.

        Raises:
            ModelError: Some operators that lead to the first output have no rule; all of them are listed.
        """
        super().__init__()
        model = _with_keys(_inlined(model))
        compiler, graph = _compile(model)
        if not graph.outputs:
            raise ModelError("the model has no outputs, so there is nothing to train for")
        if problems := compiler.lacking(graph.outputs[:1]):
            raise ModelError(f"no PyTorch rule for: {', '.join(sorted(problems))}")
        outputs = [output for output in model.graph.output if output.name not in compiler.opaque]
        graph.steps = [s for s in graph.steps if not s.roots or s.roots & compiler.parameters]
        self.input_names = tuple(i.name for i in model.graph.input if i.name not in compiler.values)
        self.output_names = tuple(output.name for output in outputs)
        self._output_types = tuple(
            TORCH_TYPES.get(o.type.tensor_type.elem_type)
            if o.type.tensor_type.elem_type not in FLOAT_TYPES
            else None
            for o in outputs
        )
        self._input_types = {
            i.name: TORCH_TYPES.get(i.type.tensor_type.elem_type, torch.float32) for i in model.graph.input
        }
        self._scalars = {
            i.name
            for i in model.graph.input
            if i.type.tensor_type.HasField("shape") and not i.type.tensor_type.shape.dim
        }
        live = [s for s in graph.steps if all(not i or i in compiler.values for i in s.inputs)]
        operands = {layer.operand for layer in compiler.layers}
        self._views = _Run(live, operands)
        self._run = _Run(graph.steps, self.output_names)
        used = {i for s in (*self._run.steps, *self._views.steps) for i in s.inputs} | set(self.output_names)
        self._parameters_by_key: dict[str, str] = {}
        self._buffers_by_name: dict[str, str] = {}
        self._structural: dict[str, torch.Tensor] = {}
        for name in sorted(used & compiler.values.keys() - {o for s in graph.steps for o in s.outputs}):
            self._store(name, compiler)
        self.layers = tuple(layer for layer in compiler.layers if layer.key in self._parameters_by_key)
        self.integer_weights = tuple(dict.fromkeys(compiler.integers))
        self.unused_weights = tuple(sorted(compiler.parameters - self._parameters_by_key.keys()))

    def _store(self, name: str, compiler: _Compiler) -> None:
        value = compiler.values[name]
        if name in compiler.parameters:
            slot = f"weight_{len(self._parameters_by_key)}"
            self.register_parameter(slot, nn.Parameter(value.clone()))
            self._parameters_by_key[name] = slot
        elif value.is_floating_point():
            slot = f"constant_{len(self._buffers_by_name)}"
            self.register_buffer(slot, value.clone(), persistent=False)
            self._buffers_by_name[name] = slot
        else:
            self._structural[name] = value

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The trained parameters by ONNX name, in a fixed order."""
        return {key: getattr(self, slot) for key, slot in self._parameters_by_key.items()}

    def leading_to_first_output(self) -> set[str]:
        """Names of all tensors from which something leads to the first output, weights included."""
        needed = {self._run.kept[0]}
        for step in reversed(self._run.steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
        return needed

    def passing_by(self, sources: Mapping[str, str]) -> Lifted:
        """Return the module with the same parameters, but without what makes some tensors.

        Args:
            sources: Tensors that stand for others, by the names of these. What only these need is not
                computed.
        """
        shorter = copy(self)
        vars(shorter)["_run"] = self._run.passing_by(sources)
        return shorter

    @property
    def device(self) -> torch.device:
        """Where the module's weights lie."""
        return next(self.parameters(), torch.empty(0)).device

    def _environment(self, weights: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor | None]:
        env: dict[str, torch.Tensor | None] = dict(self._structural)
        env.update({name: getattr(self, slot) for name, slot in self._buffers_by_name.items()})
        env.update(self.weights)
        for key, value in (weights or {}).items():
            if key not in self._parameters_by_key:
                raise KeyError(f"{key} is no trained weight")
            env[key] = value
        return env

    def forward(
        self, *inputs: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Run the model.

        Args:
            inputs: One tensor per entry of ``input_names``.
            weights: Tensors that stand in for parameters, by key (for example programmed ones).

        Returns:
            One tensor per entry of ``output_names``.

        Raises:
            ModelError: A node cannot run on these inputs; the text names it.
        """
        if len(inputs) != len(self.input_names):
            raise ValueError(f"the model has {len(self.input_names)} inputs, got {len(inputs)}")
        env = self._environment(weights)
        for name, tensor in zip(self.input_names, inputs, strict=True):
            if name in self._scalars and tensor.numel() != 1:
                raise ModelError(f"input {name!r} is a scalar, so samples cannot be trained on in batches")
            shaped = tensor.reshape(()) if name in self._scalars else tensor
            env[name] = shaped.to(self._input_types[name])
        self._run(env)
        outputs = [_read(env, name, "the graph's list of outputs") for name in self._run.kept]
        return tuple(
            t if dtype is None or t.dtype == dtype else t.to(dtype)
            for t, dtype in zip(outputs, self._output_types, strict=True)
            if t is not None
        )

    def matrices(
        self, keys: Iterable[str], weights: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[tuple[Layer, torch.Tensor]]:
        """Yield the layers whose weight has one of ``keys``, with the matrix of each as [groups, out, in].

        A product ``x @ W`` counts as ``W`` transposed; a weight of more than two axes in a product has no one
        matrix and is left out. Gradients flow to the parameters.
        """
        wanted = set(keys)
        env = self._environment(weights)
        self._views(env)
        for layer in self.layers:
            operand = env.get(layer.operand)  # one that a body computes is known only while it runs
            if layer.key not in wanted or operand is None:
                continue
            if layer.op_type in {"Conv", "AnalogConv"}:
                yield layer, operand.reshape(layer.groups, operand.shape[0] // layer.groups, -1)
            elif operand.dim() == 2:
                yield layer, operand.t()[None]


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline model-local functions, but not the bodies of our own operators."""
    from onnx import inliner

    from cnpass.runtime.ops import DOMAIN

    foreign = [f for f in model.functions if f.domain != DOMAIN]
    if not foreign:
        return model
    ours = [(f.domain, f.name) for f in model.functions if f.domain == DOMAIN]
    try:
        return inliner.inline_selected_functions(model, ours, exclude=True)
    except (RuntimeError, ValueError) as error:  # what the inliner throws
        raise ModelError(f"local functions cannot be inlined: {_first_line(error)}") from error


def _with_keys(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the tensors of bodies named by their keys, so that no two tensors share a name."""
    if not any(True for node in model.graph.node for _ in subgraphs(node)):
        return model
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    _rename(renamed.graph.node, {}, set(defined(model.graph)))
    return renamed


def _rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str], taken: set[str]) -> None:
    for node in nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        for body in subgraphs(node):
            inner = {**names, **local_keys(body, taken)}
            for value in (*body.input, *body.output, *body.initializer):
                value.name = inner.get(value.name, value.name)
            _rename(body.node, inner, taken)


def _compile(model: onnx.ModelProto) -> tuple[_Compiler, _Graph]:
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    compiler = _Compiler(opsets)
    return compiler, compiler.graph(model.graph)


def unsupported(document: Document) -> list[str]:
    """List every operator without a torch rule that leads to the first output, sorted."""
    compiler, graph = _compile(_with_keys(_inlined(document.embedded())))
    return sorted(compiler.lacking(graph.outputs[:1]))


def lift(document: Document) -> Lifted:
    """Lift a document.

    Raises:
        ModelError: Some operators that lead to the first output have no rule; all of them are listed.
    """
    return Lifted(document.embedded())
