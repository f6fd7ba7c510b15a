"""Element types: how ONNX types are held in torch.

Half-precision floats are held and computed in float32: training needs the head-room, CPUs have no fast half
arithmetic, and write-back rounds to the model's own type. Unsigned types wider than a byte are held in the
next wider signed type, for which torch has full support; sums and products in them do not wrap around.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import torch

from cnpass.constants import inline_values
from cnpass.errors import ModelError

_P = onnx.TensorProto
TORCH_TYPES: dict[int, torch.dtype] = {
    _P.FLOAT: torch.float32,
    _P.FLOAT16: torch.float32,
    _P.BFLOAT16: torch.float32,
    _P.DOUBLE: torch.float64,
    _P.BOOL: torch.bool,
    _P.INT8: torch.int8,
    _P.INT16: torch.int16,
    _P.INT32: torch.int32,
    _P.INT64: torch.int64,
    _P.UINT8: torch.uint8,
    _P.UINT16: torch.int32,
    _P.UINT32: torch.int64,
    _P.UINT64: torch.int64,
    _P.INT4: torch.int8,
    _P.UINT4: torch.uint8,
}

INTEGER_RANGES: dict[int, tuple[int, int]] = {
    _P.INT8: (-128, 127),
    _P.UINT8: (0, 255),
    _P.INT16: (-32768, 32767),
    _P.UINT16: (0, 65535),
    _P.INT4: (-8, 7),
    _P.UINT4: (0, 15),
}
"""Value range of every type that QuantizeLinear may produce and that has a rule."""

FLOAT_TYPES = frozenset({_P.FLOAT, _P.FLOAT16, _P.BFLOAT16, _P.DOUBLE})


def from_proto(tensor: onnx.TensorProto) -> torch.Tensor | None:
    """Read a TensorProto whose data are inside it; None where torch has no type for its elements.

    Raises:
        ModelError: its values do not fit its shape.
    """
    if tensor.data_type not in TORCH_TYPES:
        return None
    return from_array(inline_values(tensor))


def from_array(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """A copy of an array as torch holds its type.

    Raises:
        ModelError: torch has no type for its elements.
    """
    target = TORCH_TYPES.get(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    if target is None:
        raise ModelError(f"torch has no type for {array.dtype} numbers")
    native = np.dtype(str(target).removeprefix("torch."))
    return torch.from_numpy(np.array(array, native, order="C", copy=True))
