"""Operators that make tensors out of nothing but shapes and attributes."""

from __future__ import annotations

import math
from typing import Any

import torch

from cnpass.training.rules.dtypes import TORCH_TYPES
from cnpass.training.rules.registry import ALL_SLOTS, Kernel, Node, as_ints, rule

_CONSTANT_TYPES = {
    "value_float": torch.float32,
    "value_floats": torch.float32,
    "value_int": torch.int64,
    "value_ints": torch.int64,
}


def constant_value(attributes: dict[str, Any]) -> torch.Tensor | None:
    """Return the tensor that a Constant node with these attributes holds, or None where there is no rule."""
    for name, value in attributes.items():
        if name == "value":
            return value if isinstance(value, torch.Tensor) else None
        if name in _CONSTANT_TYPES:
            return torch.tensor(value, dtype=_CONSTANT_TYPES[name])
    return None


@rule("Constant")
def constant(node: Node) -> Kernel:
    """Constant, dense and numeric."""
    value = constant_value(dict(node.attributes))
    if value is None:
        raise node.refuse(f"attributes {', '.join(sorted(node.attributes)) or 'missing'}")
    return lambda: value


@rule("ConstantOfShape", since=9, structural={0})
def constant_of_shape(node: Node) -> Kernel:
    """ConstantOfShape."""
    value = node.attributes.get("value", torch.zeros(1))
    return lambda shape: value.reshape(()).expand(as_ints(shape)).clone()


@rule("Range", since=11, structural=ALL_SLOTS)
def range_(_node: Node) -> Kernel:
    """Range; the count follows ONNX's formula, not floating accumulation."""

    def kernel(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
        return start + torch.arange(count, dtype=start.dtype, device=start.device) * delta

    return kernel


@rule("EyeLike", since=9, structural={0})
def eye_like(node: Node) -> Kernel:
    """EyeLike with diagonal offset ``k``."""
    k, wanted = node.integer("k", 0), node.attributes.get("dtype")
    if wanted is not None and wanted not in TORCH_TYPES:
        raise node.refuse(f"dtype={wanted}")

    def kernel(x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype if wanted is None else TORCH_TYPES[wanted]
        rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])
        return (columns - rows == k).to(device=x.device, dtype=dtype)

    return kernel
