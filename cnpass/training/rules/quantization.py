"""Quantisation nodes with straight-through gradients.

Quantised values are carried as whole numbers in float tensors: rounding then passes the gradient on unchanged
inside the representable range and stops it outside, which is what quantisation-aware training needs.
Operators that multiply integers pass gradients on to what they read, too; their own integer weights stay.
"""

from __future__ import annotations

import onnx
import torch

from cnpass.training.rules.convolution import conv
from cnpass.training.rules.dtypes import INTEGER_RANGES
from cnpass.training.rules.registry import ALL_SLOTS, Kernel, Node, rule

_TYPE_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.int16: (-32768, 32767),
    torch.int32: (0, 65535),
}


_ZERO = 2
"""Slot of the zero point."""


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round half to even, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def _float(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_floating_point() else x.float()


def _aligned(parameter: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Shape scale or zero point (scalar, per axis, per block) for arithmetic with ``x``."""
    if parameter.numel() == 1 and not block:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


@rule("QuantizeLinear", since=10, state={1, 2})
def quantize_linear(node: Node) -> Kernel:
    """QuantizeLinear; the output type comes from output_dtype, else from the zero point, else uint8."""
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    stored = node.types[_ZERO] if node.has(_ZERO) else onnx.TensorProto.UINT8
    declared = node.integer("output_dtype", onnx.TensorProto.UNDEFINED) or stored
    if declared and declared not in INTEGER_RANGES:
        raise node.refuse(f"output type {onnx.TensorProto.DataType.Name(declared)}")

    def kernel(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        if declared:
            low, high = INTEGER_RANGES[declared]
        else:
            assert zero is not None  # noqa: S101 (its type is not known before it is there)
            low, high = _TYPE_RANGES[zero.dtype]
        y = round_through(_float(x) / _aligned(scale, x, axis, block))
        if zero is not None:
            y = y + _aligned(_float(zero), x, axis, block)
        return y.clamp(low, high)

    return kernel


@rule("DequantizeLinear", since=10, state={1, 2})
def dequantize_linear(node: Node) -> Kernel:
    """DequantizeLinear, per tensor, per axis or per block."""
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)

    def kernel(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        y = _float(x)
        if zero is not None:
            y = y - _aligned(_float(zero), x, axis, block)
        return y * _aligned(scale, x, axis, block)

    return kernel


@rule("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(_node: Node) -> Kernel:
    """DynamicQuantizeLinear: uint8 over the range of the tensor, zero included."""

    def kernel(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.round(-low / scale).clamp(0, 255)
        return (round_through(x / scale) + zero).clamp(0, 255), scale, zero

    return kernel


def _rows(parameter: torch.Tensor) -> torch.Tensor:
    """Shape scale or zero point of the rows of a matrix (or of all) for arithmetic with it."""
    return parameter[..., None] if parameter.dim() == 1 and parameter.numel() > 1 else parameter


def _maps(parameter: torch.Tensor, rank: int) -> torch.Tensor:
    """Shape scale or zero point of the output channels of a convolution (or of all), along axis 0."""
    return parameter.reshape(-1, *[1] * (rank - 1))


def _shifted(x: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    return _float(x) if zero is None else _float(x) - _float(zero)


def _requantised(y: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Sums of products of integers as integers of the type of ``zero``; ``scale`` is that of a step."""
    low, high = _TYPE_RANGES[zero.dtype]
    return (round_through(y * scale) + _float(zero)).clamp(low, high)


@rule("MatMulInteger", since=10, state=ALL_SLOTS)
def matmul_integer(_node: Node) -> Kernel:
    """MatMulInteger on whole numbers in float; exact below 2^24 per sum."""

    def kernel(
        a: torch.Tensor,
        b: torch.Tensor,
        a_zero: torch.Tensor | None = None,
        b_zero: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return torch.matmul(_shifted(a, None if a_zero is None else _rows(a_zero)), _shifted(b, b_zero))

    return kernel


@rule("QLinearMatMul", since=10, state=ALL_SLOTS)
def qlinear_matmul(_node: Node) -> Kernel:
    """QLinearMatMul on whole numbers in float, with scales of rows of A and columns of B."""

    def kernel(
        a: torch.Tensor,
        a_scale: torch.Tensor,
        a_zero: torch.Tensor,
        b: torch.Tensor,
        b_scale: torch.Tensor,
        b_zero: torch.Tensor,
        y_scale: torch.Tensor,
        y_zero: torch.Tensor,
    ) -> torch.Tensor:
        y = torch.matmul(_shifted(a, _rows(a_zero)), _shifted(b, b_zero))
        return _requantised(y, _rows(a_scale) * b_scale / _rows(y_scale), _rows(y_zero))

    return kernel


@rule("ConvInteger", since=10, state=ALL_SLOTS)
def conv_integer(node: Node) -> Kernel:
    """ConvInteger on whole numbers in float; padding stands for the zero point."""
    convolve = conv(node)

    def kernel(
        x: torch.Tensor,
        w: torch.Tensor,
        x_zero: torch.Tensor | None = None,
        w_zero: torch.Tensor | None = None,
    ) -> torch.Tensor:
        w = _shifted(w, None if w_zero is None else _maps(w_zero, w.dim()))
        result: torch.Tensor = convolve(_shifted(x, x_zero), w)
        return result

    return kernel


@rule("QLinearConv", since=10, state=ALL_SLOTS)
def qlinear_conv(node: Node) -> Kernel:
    """QLinearConv on whole numbers in float; the bias is in steps of the product of both scales."""
    convolve = conv(node)

    def kernel(
        x: torch.Tensor,
        x_scale: torch.Tensor,
        x_zero: torch.Tensor,
        w: torch.Tensor,
        w_scale: torch.Tensor,
        w_zero: torch.Tensor,
        y_scale: torch.Tensor,
        y_zero: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = convolve(
            _shifted(x, x_zero),
            _shifted(w, _maps(w_zero, w.dim())),
            None if bias is None else _float(bias),
        )
        return _requantised(y, _maps(x_scale * w_scale / y_scale, w.dim() - 1), y_zero)

    return kernel
