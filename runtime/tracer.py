"""Traced values: the Python that computes with arrays writes ONNX nodes when it is given these instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from cnpass.runtime.numerics import HALF_PI

_ATTRIBUTE_CONSTANTS = {
    np.dtype(np.int64): ("value_int", AttributeProto.INT),
    np.dtype(np.float32): ("value_float", AttributeProto.FLOAT),
}


@dataclass(frozen=True)
class Value:
    """A tensor of the graph being written. Its operators add a node each; numbers take its type."""

    tracer: Tracer = field(repr=False)
    name: str
    dtype: np.dtype[Any]

    def _binary(self, op_type: str, other: Value | float) -> Value:
        return self.tracer.op(op_type, self, self._operand(other), dtype=self.dtype)

    def _operand(self, other: Value | float) -> Value:
        return other if isinstance(other, Value) else self.tracer.constant(other, self.dtype)

    def __add__(self, other: Value | float) -> Value:
        return self._binary("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("Sub", other)

    def __rsub__(self, other: float) -> Value:
        return self.tracer.op("Sub", self._operand(other), self, dtype=self.dtype)

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("Mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary("Div", other)

    def __neg__(self) -> Value:
        return self.tracer.op("Neg", self, dtype=self.dtype)

    def __lt__(self, other: Value | float) -> Value:
        return self.tracer.op("Less", self, self._operand(other), dtype=np.bool_)

    def __gt__(self, other: Value | float) -> Value:
        return self.tracer.op("Greater", self, self._operand(other), dtype=np.bool_)

    def __and__(self, other: Value | int) -> Value:
        return self._binary("BitwiseAnd", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("BitwiseOr", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._binary("BitwiseXor", other)

    def __lshift__(self, bits: int) -> Value:
        """Of int64 values that stay below 2^63."""
        return self * (1 << bits)

    def __rshift__(self, bits: int) -> Value:
        """Logical shift of int64: ONNX shifts unsigned integers only."""
        tracer, unsigned = self.tracer, np.dtype(np.uint64)
        shift = tracer.constant(bits, unsigned)
        shifted = tracer.op("BitShift", tracer.cast(self, unsigned), shift, dtype=unsigned, direction="RIGHT")
        return tracer.cast(shifted, self.dtype)

    __radd__ = __add__
    __rmul__ = __mul__
    __rxor__ = __xor__


class Tracer:
    """Collects the nodes of one function body; offers the functions of `cnpass.runtime.numerics.RandomMath`.

    Logarithm, exponential, sine and cosine are the runtime's own, so results agree with the exact ones to
    a few units in the last place.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], Value] = {}

    def op(self, op_type: str, *inputs: Value, dtype: Any, **attributes: Any) -> Value:
        """Adds a node with one output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, [value.name for value in inputs], [name], **attributes))
        return Value(self, name, np.dtype(dtype))

    def input(self, name: str, dtype: Any) -> Value:
        """A value that comes from outside under that name."""
        return Value(self, name, np.dtype(dtype))

    def constant(self, value: Any, dtype: Any) -> Value:
        """A constant; equal ones share a node."""
        array = np.asarray(value, dtype)
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._constants:
            tensor = numpy_helper.from_array(array)
            self._constants[key] = self.op("Constant", dtype=array.dtype, value=tensor)
        return self._constants[key]

    def attribute(self, name: str, dtype: Any) -> Value:
        """The scalar value of an attribute of the function: int64 or float32."""
        argument, kind = _ATTRIBUTE_CONSTANTS[np.dtype(dtype)]
        value = self.op("Constant", dtype=dtype)
        self.nodes[-1].attribute.append(AttributeProto(name=argument, ref_attr_name=name, type=kind))
        return value

    def integers(self, name: str) -> Value:
        """The values of an attribute of the function: int64 [n]."""
        value = self.op("Constant", dtype=np.int64)
        reference = AttributeProto(name="value_ints", ref_attr_name=name, type=AttributeProto.INTS)
        self.nodes[-1].attribute.append(reference)
        return value

    def cast(self, x: Value, dtype: Any) -> Value:
        """`x` in another type."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.op("Cast", x, dtype=dtype, to=to)

    def abs(self, x: Value) -> Value:
        """Absolute value."""
        return self.op("Abs", x, dtype=x.dtype)

    def floor(self, x: Value) -> Value:
        """Largest integer that is not above."""
        return self.op("Floor", x, dtype=x.dtype)

    def where(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        """One or the other; a number takes the other's type."""
        dtype = yes.dtype if isinstance(yes, Value) else no.dtype if isinstance(no, Value) else np.float32
        values = [v if isinstance(v, Value) else self.constant(v, dtype) for v in (yes, no)]
        return self.op("Where", condition, *values, dtype=dtype)

    def float32(self, x: Value) -> Value:
        """Integers as float32."""
        return self.op("Cast", x, dtype=np.float32, to=TensorProto.FLOAT)

    def exp(self, x: Value) -> Value:
        """Exponential."""
        return self.op("Exp", x, dtype=x.dtype)

    def log(self, x: Value) -> Value:
        """Natural logarithm."""
        return self.op("Log", x, dtype=x.dtype)

    def sqrt(self, x: Value) -> Value:
        """Square root."""
        return self.op("Sqrt", x, dtype=x.dtype)

    def cos_sin(self, quadrant: Value, turn: Value) -> tuple[Value, Value]:
        """Cosine and sine of (quadrant + turn) * pi / 2."""
        angle = (self.float32(quadrant) + turn) * HALF_PI
        return self.op("Cos", angle, dtype=angle.dtype), self.op("Sin", angle, dtype=angle.dtype)

    def reshape(self, x: Value, shape: Value | list[int]) -> Value:
        """`x` in another shape."""
        target = shape if isinstance(shape, Value) else self.constant(shape, np.int64)
        return self.op("Reshape", x, target, dtype=x.dtype)
