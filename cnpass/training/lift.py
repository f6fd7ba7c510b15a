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

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Self

import onnx
import torch
from torch import nn

from cnpass.errors import ModelError
from cnpass.nodes import defined, local_keys, subgraphs
from cnpass.training.compiling import Compiler, Graph, Layer
from cnpass.training.rules.dtypes import FLOAT_TYPES, TORCH_TYPES
from cnpass.training.steps import Run, first_line, look_up

if TYPE_CHECKING:
    from cnpass.document import Document


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
        self._views = Run(live, operands)
        self._run = Run(graph.steps, self.output_names)
        used = {i for s in (*self._run.steps, *self._views.steps) for i in s.inputs} | set(self.output_names)
        self._parameters_by_key: dict[str, str] = {}
        self._buffers_by_name: dict[str, str] = {}
        self._structural: dict[str, torch.Tensor] = {}
        for name in sorted(used & compiler.values.keys() - {o for s in graph.steps for o in s.outputs}):
            self._store(name, compiler)
        self.layers = tuple(layer for layer in compiler.layers if layer.key in self._parameters_by_key)
        self.integer_weights = tuple(dict.fromkeys(compiler.integers))
        self.unused_weights = tuple(sorted(compiler.parameters - self._parameters_by_key.keys()))

    def _store(self, name: str, compiler: Compiler) -> None:
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

    def on(self, device: torch.device) -> Self:
        """Take the module to a torch device, on CUDA with channels last, and return it."""
        self.to(device)
        return self.channels_last() if device.type == "cuda" else self

    def channels_last(self) -> Self:
        """Lay out weights with four axes such that channels lie last, and return the module.

        Convolutions by them give images that lie so, too, which tensor cores need and what follows keeps.
        """
        for weight in self.parameters():
            if weight.dim() == len("NCHW"):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self

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
        outputs = [look_up(env, name, "the graph's list of outputs") for name in self._run.kept]
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
        raise ModelError(f"local functions cannot be inlined: {first_line(error)}") from error


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


def _compile(model: onnx.ModelProto) -> tuple[Compiler, Graph]:
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    compiler = Compiler(opsets)
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
