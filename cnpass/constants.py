"""Constants of a model: tied to the source, read when first asked for, exported as they were."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from cnpass import external
from cnpass.errors import ModelError

Stored = TensorProto | SparseTensorProto

_MOST_PER_BYTE = 4
"""Elements of the smallest types, of two bits."""


def element_type(tensor: TensorProto) -> Any:
    """The NumPy type of a tensor's elements.

    Raises:
        ModelError: this ONNX release does not know the type.
    """
    try:
        return helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelError(f"tensor {tensor.name!r} has the unknown type {tensor.data_type}") from None


class StoredValues(LazyValues):  # type: ignore[misc] # graphsurgeon has no types
    """Values of a tensor in the file, inline or external, read when first asked for."""

    def __init__(self, tensor: Stored, folder: Path) -> None:
        dense = tensor if isinstance(tensor, TensorProto) else tensor.values
        self.tensor = tensor
        self.folder = folder
        self.shape = tuple(tensor.dims)
        self.dtype = element_type(dense)
        if min(self.shape, default=0) < 0:
            raise ModelError(f"tensor {dense.name!r} has a negative dimension: {list(self.shape)}")
        # Whoever made room for the values before reading them would run out of memory.
        inline = tensor is dense and not external.is_external(dense)
        if inline and prod(self.shape) > _MOST_PER_BYTE * dense.ByteSize():
            raise ModelError(f"tensor {dense.name!r} has shape {list(self.shape)}, but fewer values")

    def load(self) -> np.ndarray:
        """Read the values.

        Raises:
            ModelError: the bytes do not fit the shape, or external data are missing.
        """
        if isinstance(self.tensor, TensorProto):
            return self._dense(self.tensor)
        values = self._dense(self.tensor.values)
        indices = self._dense(self.tensor.indices)
        full = np.zeros(self.shape, values.dtype)
        if indices.ndim == 1:
            full.reshape(-1)[indices] = values
        else:
            full[tuple(indices.T)] = values
        return full

    def _dense(self, tensor: TensorProto) -> np.ndarray:
        if external.is_external(tensor):
            tensor = external.read(tensor, self.folder)
        return np.array(inline_values(tensor))


class StoredConstant(gs.Constant):  # type: ignore[misc] # graphsurgeon has no types
    """A constant of the source: an initializer, a sparse initializer or a tensor attribute."""

    def __init__(self, name: str, source: Stored, folder: Path) -> None:
        super().__init__(name, StoredValues(source, folder))
        self.stored = self._values

    def copy(self) -> StoredConstant:
        """A constant of the same name and values, tied to the same source."""
        twin = StoredConstant(self.name, self.stored.tensor, self.stored.folder)
        if not isinstance(self._values, StoredValues):
            twin.values = self._values
        return twin

    def read(self) -> np.ndarray:
        """The values, not kept in memory by this call."""
        values: np.ndarray = self._values.load() if isinstance(self._values, StoredValues) else self._values
        return values

    @property
    def is_sparse(self) -> bool:
        """Whether the source stores only the values that are not zero."""
        return isinstance(self.stored.tensor, SparseTensorProto)

    def export(self) -> Stored:
        """The source itself, unless name or values changed.

        Raises:
            TypeError: new values have another type; whatever reads the tensor would not expect it.
        """
        source: Stored = self.stored.tensor
        if not isinstance(self._values, StoredValues) and not _same_bits(self._values, self.stored):
            new = tensor_proto(self.name, self._values)
            old = source if isinstance(source, TensorProto) else source.values
            if new.data_type != old.data_type:
                was, now = (TensorProto.DataType.Name(t.data_type) for t in (old, new))
                raise TypeError(f"weight {self.name!r} was {was}, its new values are {now}")
            if old.HasField("doc_string"):
                new.doc_string = old.doc_string
            new.metadata_props.extend(old.metadata_props)
            return new
        if isinstance(source, TensorProto) and source.name != self.name:
            renamed = TensorProto()
            renamed.CopyFrom(source)
            renamed.name = self.name
            return renamed
        return source


def inline_values(tensor: TensorProto) -> np.ndarray:
    """The values of a tensor that holds them itself.

    Raises:
        ModelError: they do not fit its shape or type.
    """
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"values of tensor {tensor.name!r} cannot be read: {error}") from None


def _same_bits(values: np.ndarray, stored: StoredValues) -> bool:
    """Whether values equal the stored ones bit for bit, so that NaNs and signed zeros count as they are."""
    if values.shape != stored.shape or values.dtype != stored.dtype:
        return False
    source = stored.load()
    if values.dtype == object:
        return bool(np.array_equal(values, source))
    return values.tobytes() == source.tobytes()


def tensor_proto(name: str, values: np.ndarray) -> TensorProto:
    """Values as a tensor with raw bytes."""
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)


def constant_proto(constant: gs.Constant) -> Stored:
    """The proto of a constant: the source's where it has one and did not change."""
    if isinstance(constant, StoredConstant):
        return constant.export()
    return tensor_proto(constant.name, constant.values)


def constant_values(constant: gs.Constant) -> np.ndarray:
    """The values of a constant; those of a stored one are not kept in memory by this call."""
    values: np.ndarray = constant.read() if isinstance(constant, StoredConstant) else constant.values
    return values
