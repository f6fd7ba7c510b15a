"""Elementwise arithmetic, comparison and logic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import onnx
import torch

from cnpass.training.rules.dtypes import TORCH_TYPES
from cnpass.training.rules.movement import broadcast_shape
from cnpass.training.rules.registry import ALL_SLOTS, Kernel, Node, constantly, pure, rule

Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _div(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _pow(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # A scalar exponent takes torch's exact paths (squares, roots); the result has the type of the base.
    dtype = x.dtype
    x = x if x.is_floating_point() else x.double()
    result = torch.pow(x, y.item()) if y.numel() == 1 and not y.requires_grad else torch.pow(x, y)
    return result.to(dtype).expand(broadcast_shape(x, y.shape))


_ARITHMETIC: dict[str, Binary] = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _div}
_OTHER: dict[str, Binary] = {"Pow": _pow}
_LOGIC: dict[str, Binary] = {
    "Equal": torch.eq,
    "Less": torch.lt,
    "Greater": torch.gt,
    "LessOrEqual": torch.le,
    "GreaterOrEqual": torch.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


def _legacy(node: Node, function: Binary) -> Kernel:
    """Before opset 7 broadcasting was asked for, and aligned at ``axis`` instead of at the end."""
    axis = node.attributes.get("axis") if node.flag("broadcast") else None
    if axis is None:
        return function

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return function(x, y.reshape(*y.shape, *[1] * (x.dim() - int(axis) - y.dim())))

    return kernel


def _register(
    table: Mapping[str, Binary], *, structural: frozenset[int] = frozenset(), view: bool = False
) -> None:
    for name, function in table.items():
        rule(name, structural=structural, view=view)(functools.partial(_legacy, function=function))
        rule(name, since=7, structural=structural, view=view)(constantly(function))


_register(_ARITHMETIC, view=True)
_register(_OTHER)
_register(_LOGIC, structural=ALL_SLOTS)

pure(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "Log": torch.log,
        "Neg": torch.neg,
        "Reciprocal": torch.reciprocal,
        "Round": torch.round,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Sum": lambda *tensors: functools.reduce(torch.add, tensors),
        "Mean": lambda *tensors: functools.reduce(torch.add, tensors) / len(tensors),
        "Max": lambda *tensors: functools.reduce(torch.maximum, tensors),
        "Min": lambda *tensors: functools.reduce(torch.minimum, tensors),
    }
)
pure({"Identity": lambda x: x}, view=True)
pure({"IsNaN": torch.isnan, "Not": torch.logical_not}, structural=ALL_SLOTS)


@rule("IsInf", since=10, structural=ALL_SLOTS)
def is_inf(node: Node) -> Kernel:
    """IsInf, of either sign or one."""
    negative, positive = (
        node.flag("detect_negative", default=True),
        node.flag("detect_positive", default=True),
    )

    def kernel(x: torch.Tensor) -> torch.Tensor:
        sign = (x < 0) & negative | (x > 0) & positive
        return torch.isinf(x) & sign

    return kernel


@rule("Mod", since=10)
def mod(node: Node) -> Kernel:
    """Mod: the sign of the divisor, or C's fmod."""
    return torch.fmod if node.flag("fmod") else torch.remainder


@rule("Where", since=9, structural={0})
def where(_node: Node) -> Kernel:
    """Where."""
    return torch.where


@rule("Cast", view=True)
def cast(node: Node) -> Kernel:
    """Cast; half-precision types are held in float32 (see :mod:`cnpass.training.rules.dtypes`)."""
    target = node.integer("to", onnx.TensorProto.FLOAT)
    if target not in TORCH_TYPES:
        raise node.refuse(f"to={onnx.TensorProto.DataType.Name(target)}")
    dtype = TORCH_TYPES[target]
    return lambda x: x.to(dtype)


@rule("CastLike", since=15, structural={1})
def cast_like(_node: Node) -> Kernel:
    """CastLike."""
    return lambda x, like: x.to(like.dtype)
