"""`fold-batch-norm`: batch normalisation moves into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic.dataclasses import dataclass

from cnpass.constants import StoredConstant
from cnpass.document import Document
from cnpass.nodes import Node, label, node_metadata, scope
from cnpass.passes import analog
from cnpass.passes.base import PASS_CONFIG, Pass, PassResult, without_defaults
from cnpass.passes.mean_gain import keep_mean_gains, mean_gains
from cnpass.shapes import Shapes, infer
from cnpass.weights import Weight, resolve

_INFERENCE_BY_OUTPUTS = 7
"""Since this opset BatchNormalization trains if it has more outputs than one; opset 14 added an attribute."""

_BROADCAST = 7
"""The opset from which on elementwise operators and Gemm broadcast without being told."""
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STANDARD = ("", "ai.onnx", None)


@dataclass(frozen=True, config=PASS_CONFIG)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

    Computed in float64 and stored in the weight's own type. A weight that other nodes use too, or that is
    not plainly an initializer, is left alone; the node gets a folded copy of its own, and a note says so.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def apply(self, document: Document) -> PassResult:
        """See `Pass.apply`."""
        norms = batch_norms(document)
        inner = [node for node in document.all_nodes() if scope(node) and _is_norm(node)]
        if not norms and not inner:
            return PassResult(modified=False, notes=("the model has no BatchNormalization",))
        folder = _Folder(document)
        before = document.defaults
        notes = []
        folded = 0
        for norm in norms:
            name = label(norm)
            reason = folder.fold(norm)
            folded += reason is None
            if reason is not None:
                notes.append(f"node {name!r} stays: {reason}")
        notes += [f"node {label(node)!r} stays: is in a body of If, Loop or Scan" for node in inner]
        return PassResult(
            bool(folded),
            (
                f"{folded} of {len(norms) + len(inner)} nodes folded",
                *notes,
                *folder.notes,
                *without_defaults(before, document),
            ),
        )


def batch_norms(document: Document) -> list[gs.Node]:
    """The BatchNormalization nodes of the main graph, in the order of the file."""
    return [node for node in document.graph.nodes if _is_norm(node)]


def _is_norm(node: gs.Node) -> bool:
    return bool(node.op == "BatchNormalization" and node.domain in _STANDARD)


def trains(norm: gs.Node, opset: int) -> bool:
    """Whether a BatchNormalization normalises by the batch, not by statistics of its own."""
    if opset < _INFERENCE_BY_OUTPUTS:
        return not norm.attrs.get("is_test", 0)
    extra = any(tensor.name for tensor in norm.outputs[1:])
    return extra or bool(norm.attrs.get("training_mode", 0))


@plain_dataclass(frozen=True)
class _Match:
    """A linear node with a normalisation that can move into it, and all numbers needed.

    Attributes:
        linear: the node.
        weight: its constant operand.
        bias: its B or C; None if there is none.
        axis: axis of the weight's values that runs over the normalised channels.
        groups: groups among which the channels are split on that axis (of ConvTranspose).
        scale: what to multiply channels by, float64.
        shift: what to add then, float64.
    """

    linear: gs.Node
    weight: Weight
    bias: gs.Tensor | None
    axis: int
    groups: int
    scale: np.ndarray
    shift: np.ndarray


class _Folder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.shapes: Shapes = infer(document)
        self.notes: list[str] = []
        self.busy = {id(tensor) for tensor in document.graph.outputs}
        tensors = document.tensors()
        self.busy |= {id(tensors[name]) for name in document.captured if name in tensors}

    def fold(self, norm: gs.Node) -> str | None:
        """Fold one normalisation; returns the reason if it cannot be."""
        match = self.match(norm)
        if isinstance(match, str):
            return match
        bias = self.bias(match)
        if isinstance(bias, str):
            return bias
        self.rewrite(match, bias, norm)
        return None

    def match(self, norm: gs.Node) -> _Match | str:
        """What to fold, or why not."""
        if trains(norm, self.document.opset):
            return "it is in training mode"
        if not norm.attrs.get("spatial", 1):
            return "it normalises every element, not every channel"
        middle, output = norm.inputs[0], norm.outputs[0]
        linear = middle.inputs[0] if len(middle.inputs) == 1 else None
        if linear is None or linear.op not in _LINEAR or linear.domain not in _STANDARD:
            return "no convolution or matrix product is before it"
        if len(middle.outputs) != 1 or id(middle) in self.busy or middle is output:
            return f"{middle.name!r} has other readers"
        numbers = [resolve(tensor) for tensor in norm.inputs[1:5]]
        found = [number.values(self.document.opset).astype(np.float64) for number in numbers if number]
        if len(found) != 4:
            return "its parameters are not constant"
        if found[0].ndim != 1 or any(number.shape != found[0].shape for number in found):
            return "its parameters are not one per channel"
        scale, shift, mean, variance = found
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = scale / np.sqrt(variance + float(norm.attrs.get("epsilon", 1e-5)))
        if not np.all(np.isfinite(factor)):
            return "its scale is not finite"
        where = self.place(linear)
        if isinstance(where, str):
            return where
        weight, axis, groups = where
        if weight.shape[axis] * groups != factor.size:
            return f"its {factor.size} channels do not fit weight {weight.key!r}"
        bias = linear.inputs[2] if len(linear.inputs) > 2 and linear.inputs[2].name else None
        return _Match(linear, weight, bias, axis, groups, factor, shift - mean * factor)

    def place(self, linear: gs.Node) -> tuple[Weight, int, int] | str:
        """The weight of a linear node, the axis of its output channels, and ConvTranspose's groups."""
        weight = resolve(linear.inputs[1])
        if weight is None or not weight.is_float:
            return f"the weight of {label(linear)!r} is not a constant"
        if weight.kind == "converted":
            return f"the weight of {label(linear)!r} is quantised"
        if linear.op in ("Conv", "ConvTranspose"):
            groups = int(linear.attrs.get("group", 1))
            if len(weight.shape) < 3 or 0 in weight.shape or groups < 1 or weight.shape[0] % groups:
                return f"weight {weight.key!r}, of shape {list(weight.shape)}, fits no {linear.op}"
            return (weight, 0, 1) if linear.op == "Conv" else (weight, 1, groups)
        if self.document.opset < _BROADCAST:
            return f"folding into {linear.op} needs opset {_BROADCAST}, the model has {self.document.opset}"
        if self.shapes.rank(linear.outputs[0].name) != 2 or len(weight.shape) != 2:
            return f"{label(linear)!r} does not write a matrix, whose columns would be the channels"
        transposed = linear.op == "Gemm" and linear.attrs.get("transB", 0)
        return weight, 0 if transposed else 1, 1

    def bias(self, match: _Match) -> np.ndarray | str:
        """The new bias, one number per channel, float64; or why there can be none."""
        if match.bias is None:
            return match.shift
        found = resolve(match.bias)
        if found is None or found.dtype != match.weight.dtype:
            return f"the bias of {label(match.linear)!r} is not a constant of the weight's type"
        values = found.values(self.document.opset).astype(np.float64)
        channels = match.scale.size
        if values.size not in (1, channels) or (values.ndim and values.shape[-1] != values.size):
            return (
                f"the bias of {label(match.linear)!r}, of shape {list(values.shape)}, is not one per channel"
            )
        beta = float(match.linear.attrs.get("beta", 1.0)) if match.linear.op == "Gemm" else 1.0
        bias: np.ndarray = beta * values.reshape(-1) * match.scale + match.shift
        return bias

    def rewrite(self, match: _Match, bias: np.ndarray, norm: gs.Node) -> None:
        """Write weight and bias, and let the linear node write what the normalisation wrote."""
        linear, weight, dtype = match.linear, match.weight, match.weight.dtype
        values = weight.values(self.document.opset).astype(np.float64)
        shape = [1] * values.ndim
        shape[match.axis] = -1
        if match.groups == 1:
            values = values * match.scale.reshape(shape)
        else:  # [C, M / group, ...]: the channels of a group are along axis 1, the groups in blocks of axis 0
            blocks = values.reshape(match.groups, -1, *values.shape[1:])
            blocks = blocks * match.scale.reshape(match.groups, 1, -1, *[1] * (values.ndim - 2))
            values = blocks.reshape(values.shape)
        self.set(linear, 1, values.astype(dtype), f"{weight.key}.folded")
        gains = mean_gains(self.document)
        if weight.key in gains:  # a copy is made for the same mean factor as what it was made of
            keep_mean_gains(self.document, gains | {linear.inputs[1].name: gains[weight.key]})
        self.set_bias(match, bias.astype(dtype), norm)

    def set_bias(self, match: _Match, bias: np.ndarray, norm: gs.Node) -> None:
        linear, output = match.linear, norm.outputs[0]
        if linear.op == "MatMul":  # it has no bias: an Add takes the place of the normalisation
            constant = self.document.initializer(f"{match.weight.key}.bias", bias)
            middle = norm.inputs[0]
            place = next(i for i, node in enumerate(self.document.graph.nodes) if node is norm)
            analog.detach(norm)
            self.document.graph.nodes[place] = add = Node("Add", norm.name, {}, [middle, constant], [output])
            node_metadata(add).update(node_metadata(norm))
            return
        analog.detach(norm)
        self.document.graph.nodes[:] = [node for node in self.document.graph.nodes if node is not norm]
        linear.outputs.clear()
        linear.outputs.append(output)
        if match.bias is None:
            while len(linear.inputs) > 2:  # an empty third input
                linear.inputs.pop()
            linear.inputs.append(self.document.initializer(f"{match.weight.key}.bias", bias))
        else:
            self.set(linear, 2, bias, f"{match.bias.name}.folded")
        if linear.op == "Gemm" and linear.attrs.get("beta", 1.0) != 1.0:
            linear.attrs["beta"] = 1.0

    def set(self, node: gs.Node, index: int, values: np.ndarray, name: str) -> None:
        """Give a node new values for a constant: in place, or as a copy if something else reads it."""
        old: Any = node.inputs[index]
        alone = len(old.outputs) == 1 and id(old) not in self.busy
        if isinstance(old, StoredConstant | gs.Constant) and alone and tuple(old.shape) == values.shape:
            old.values = values
            self.document.pin(old)
            return
        node.inputs[index] = self.document.initializer(name, values)
        reason = "is not stored as the node takes it" if alone else "has other readers"
        self.notes.append(f"{old.name!r} {reason}: node {label(node)!r} has a folded copy of its own")
