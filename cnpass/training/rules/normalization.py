"""Normalisation layers and normalising functions."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from cnpass.training.rules.registry import Kernel, Node, rule


@rule("BatchNormalization", state={3, 4}, layer=True)
def batch_norm(node: Node) -> Kernel:
    """BatchNormalization on stored statistics, as inference runs it."""
    if node.flag("training_mode") or not node.flag("spatial", default=True):
        raise node.refuse("training_mode=1 or spatial=0")
    if node.outputs > 1:
        raise node.refuse("statistics outputs")
    epsilon = node.number("epsilon", 1e-5)

    def kernel(
        x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
    ) -> torch.Tensor:
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)

    return kernel


@rule("InstanceNormalization", layer=True)
def instance_norm(node: Node) -> Kernel:
    """InstanceNormalization: every channel of every sample over space."""
    epsilon = node.number("epsilon", 1e-5)

    def kernel(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return _normalised(x, x.shape[1], scale, bias, epsilon)

    return kernel


def _normalised(
    x: torch.Tensor, groups: int, scale: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Group normalisation; torch's own function refuses groups of a single value, which become the bias."""
    samples, channels = x.shape[:2]
    result: torch.Tensor = torch.native_group_norm(
        x, scale, bias, samples, channels, math.prod(x.shape[2:]), groups, epsilon
    )[0]
    return result


def _group_norm(node: Node, *, per_group: bool) -> Kernel:
    groups, epsilon = node.integer("num_groups", 1), node.number("epsilon", 1e-5)

    def kernel(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if per_group:
            repeat = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(repeat), bias.repeat_interleave(repeat)
        return _normalised(x, groups, scale, bias, epsilon)

    return kernel


@rule("GroupNormalization", since=18, layer=True)
def group_norm_18(node: Node) -> Kernel:
    """GroupNormalization with one scale and bias per group."""
    return _group_norm(node, per_group=True)


@rule("GroupNormalization", since=21, layer=True)
def group_norm_21(node: Node) -> Kernel:
    """GroupNormalization with one scale and bias per channel."""
    return _group_norm(node, per_group=False)


@rule("LayerNormalization", since=17, layer=True)
def layer_norm(node: Node) -> Kernel:
    """LayerNormalization, with mean and inverse deviation where the node asks for them."""
    axis, epsilon, outputs = node.integer("axis", -1), node.number("epsilon", 1e-5), node.outputs

    def kernel(
        x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        axes = tuple(range(axis % x.dim(), x.dim()))
        shape = x.shape[axes[0] :]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            y = F.layer_norm(x, shape, scale, bias, epsilon)
        else:
            y = F.layer_norm(x, shape, None, None, epsilon) * scale
            y = y if bias is None else y + bias
        if outputs == 1:
            return y
        mean = x.mean(axes, True)
        inverse = (x.var(axes, correction=0, keepdim=True) + epsilon).rsqrt()
        return (y, mean, inverse)[:outputs]

    return kernel


@rule("RMSNormalization", since=23, layer=True)
def rms_norm(node: Node) -> Kernel:
    """RMSNormalization."""
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def kernel(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        axes = tuple(range(axis % x.dim(), x.dim()))
        return x * (x.square().mean(axes, True) + epsilon).rsqrt() * scale

    return kernel


@rule("LRN")
def local_response_norm(node: Node) -> Kernel:
    """LRN across channels."""
    size, alpha = node.integer("size", 1), node.number("alpha", 1e-4)
    beta, bias = node.number("beta", 0.75), node.number("bias", 1.0)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        # ONNX puts the odd neighbour of an even window behind the channel, torch's own function before it.
        before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
        squares = x.square().flatten(2) if x.dim() > 2 else x.square().unsqueeze(2)
        padded = F.pad(squares, (0, 0, before, after)).unfold(1, size, 1).sum(-1).reshape(x.shape)
        return x / (bias + alpha / size * padded) ** beta

    return kernel


@rule("LpNormalization")
def lp_normalization(node: Node) -> Kernel:
    """LpNormalization; a zero vector stays zero."""
    axis, p = node.integer("axis", -1), node.integer("p", 2)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    return kernel


@rule("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node: Node) -> Kernel:
    """MeanVarianceNormalization, with the epsilon of its ONNX function body."""
    axes = tuple(node.integers("axes") or (0, 2, 3))

    def kernel(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(axes, True)
        return centred / (x.var(axes, correction=0, keepdim=True).sqrt() + 1e-9)

    return kernel


def _over_axis(node: Node, function: Kernel) -> Kernel:
    axis = node.integer("axis", -1)
    return lambda x: function(x, axis)


def _over_tail(node: Node, function: Kernel) -> Kernel:
    """Before opset 13 these functions saw the input as a matrix, split at ``axis``."""
    axis = node.integer("axis", 1)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        rows = math.prod(x.shape[: axis if axis >= 0 else axis + x.dim()])
        return function(x.reshape(rows, -1), -1).reshape(x.shape)  # type: ignore[no-any-return]

    return kernel


def _hardmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _register(op_type: str, function: Kernel) -> None:
    rule(op_type)(lambda node: _over_tail(node, function))
    rule(op_type, since=13)(lambda node: _over_axis(node, function))


_register("Softmax", torch.Tensor.softmax)
_register("LogSoftmax", torch.Tensor.log_softmax)
_register("Hardmax", _hardmax)
