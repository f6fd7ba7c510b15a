"""The parts of operators' definitions that cnpass relies on: inputs that must be there, types of attributes.

A model that breaks them is no valid ONNX. Checking once, on reading, lets all other code trust what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx import AttributeProto, NodeProto

from cnpass.errors import ModelError
from cnpass.runtime import ops

_INT, _FLOAT, _TEXT = AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING
_INTS, _TENSOR = AttributeProto.INTS, AttributeProto.TENSOR


@dataclass(frozen=True)
class _Operator:
    """Inputs that must be there, types of attributes, and those of the inputs that may be empty."""

    inputs: int
    attributes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    empty: tuple[int, ...] = ()


_CONV = {
    **dict.fromkeys(("dilations", "kernel_shape", "pads", "strides"), (_INTS,)),
    "group": (_INT,),
    "auto_pad": (_TEXT,),
}
_ANALOG = {
    "device": (_TEXT,),
    "seed": (_INT,),
    "stream": (_INT,),
    ops.COPIES: (_INT,),
    ops.EXTRA_COPIES: (_INTS,),
    ops.WEIGHT_PERM: (_INTS,),
}
_AXIS = {"axis": (_INT,)}

_STANDARD = {
    "BatchNormalization": _Operator(
        5, {"epsilon": (_FLOAT,), "training_mode": (_INT,), "is_test": (_INT,), "spatial": (_INT,)}
    ),
    "Cast": _Operator(1, {"to": (_INT, _TEXT)}),
    "Constant": _Operator(0, {"value": (_TENSOR,), "value_float": (_FLOAT,), "value_int": (_INT,)}),
    "ConstantOfShape": _Operator(1, {"value": (_TENSOR,)}),
    "Conv": _Operator(2, _CONV),
    "ConvTranspose": _Operator(2, _CONV),
    "DequantizeLinear": _Operator(2, _AXIS),
    "Einsum": _Operator(1, {"equation": (_TEXT,)}),
    "Flatten": _Operator(1, _AXIS),
    "Gemm": _Operator(2, {"alpha": (_FLOAT,), "beta": (_FLOAT,), "transA": (_INT,), "transB": (_INT,)}),
    "Identity": _Operator(1),
    "MatMul": _Operator(2),
    "QuantizeLinear": _Operator(2, _AXIS),
    "Reshape": _Operator(1, {"shape": (_INTS,), "allowzero": (_INT,)}),
    "Squeeze": _Operator(1, {"axes": (_INTS,)}),
    "Transpose": _Operator(1, {"perm": (_INTS,)}),
    "Unsqueeze": _Operator(1, {"axes": (_INTS,)}),
}
_OWN = {
    ops.ANALOG_CONV: _Operator(4, _CONV | _ANALOG, empty=(2,)),
    ops.ANALOG_MATMUL: _Operator(3, _ANALOG),
}


def check(node: NodeProto, kinds: Mapping[str, int]) -> None:
    """Check a node of a kind that cnpass looks into; others pass.

    Args:
        node: the node.
        kinds: type of each attribute that has a value of its own.

    Raises:
        ModelError: inputs or outputs are missing, or an attribute has the wrong type.
    """
    table = _OWN if node.domain == ops.DOMAIN else _STANDARD if node.domain in ("", "ai.onnx") else {}
    operator = table.get(node.op_type)
    if operator is None:
        return
    name = node.name or next(iter(node.output), "")
    given = [bool(text) or place in operator.empty for place, text in enumerate(node.input)]
    if not all(given[: operator.inputs]) or len(given) < operator.inputs or not node.output:
        raise ModelError(f"node {name!r}: {node.op_type} needs {operator.inputs} input(s) and an output")
    for attribute, kind in kinds.items():
        allowed = operator.attributes.get(attribute)
        if allowed and kind not in allowed:
            wanted = " or ".join(AttributeProto.AttributeType.Name(each) for each in allowed)
            raise ModelError(f"node {name!r}: attribute {attribute!r} of {node.op_type} must be {wanted}")
