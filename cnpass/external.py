"""External data: tensors whose bytes lie in a file beside the model.

Nothing here holds more than one chunk of a weight in memory, except `read`, which is asked for one tensor.
The paths come from the model file, so they are not trusted: they must stay inside the model's folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from cnpass.errors import ModelError

CHUNK = 1 << 20
"""Bytes held at a time while data are copied or hashed; blocks of 4 MiB would be fresh memory each time."""

ALIGNMENT = 4096
"""Offsets in a data file are multiples of this, so that runtimes can map the weights into memory."""

_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}


def is_external(tensor: TensorProto) -> bool:
    """Whether the bytes of a tensor lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in a model: initializers, attributes, subgraphs, functions, training graphs."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [*attribute.sparse_tensors]
        if attribute.HasField("sparse_tensor"):
            sparse.append(attribute.sparse_tensor)
        for tensor in sparse:
            yield tensor.values
            yield tensor.indices
        graphs = [*attribute.graphs]
        if attribute.HasField("g"):
            graphs.append(attribute.g)
        for graph in graphs:
            yield from _graph_tensors(graph)


def byte_size(tensor: TensorProto) -> int:
    """Bytes that the values of a tensor take in raw form.

    Raises:
        ModelError: a dimension is negative, or the type has no fixed size.
    """
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise ModelError(f"tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}")
        count *= dim
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        except KeyError:
            raise ModelError(f"tensor {tensor.name!r} has the unknown type {tensor.data_type}") from None
        if dtype.hasobject:
            raise ModelError(f"tensor {tensor.name!r} holds strings, which cannot be external data")
        bits = 8 * dtype.itemsize
    return (count * bits + 7) // 8


@dataclass(frozen=True)
class Region:
    """Where the bytes of one tensor lie."""

    file: Path
    offset: int
    length: int


def locate(tensor: TensorProto, folder: Path) -> Region:
    """The checked place of an external tensor's bytes.

    Raises:
        ModelError: the path leaves the model's folder, the file is not there, or is too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = _inside(location, folder, tensor.name)
    needed = byte_size(tensor)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(needed)))
    except ValueError:
        raise ModelError(f"tensor {tensor.name!r}: external offset or length is not a number") from None
    if offset < 0 or length != needed:
        raise ModelError(
            f"tensor {tensor.name!r}: external data say offset {offset}, length {length};"
            f" the shape {list(tensor.dims)} needs {needed} bytes"
        )
    size = file.stat().st_size
    if offset + length > size:
        raise ModelError(
            f"external data file {location!r} is too short: tensor {tensor.name!r} ends at byte"
            f" {offset + length} of {size}"
        )
    return Region(file, offset, length)


def _inside(location: str, folder: Path, name: str) -> Path:
    """The file that a location names, refused if it lies outside the model's folder."""
    pure = PurePosixPath(location)
    outside = pure.is_absolute() or ".." in pure.parts or "\0" in location
    if not location or outside or PureWindowsPath(location).drive or location.startswith("\\"):
        raise ModelError(
            f"tensor {name!r}: external data path {location!r} is not a path inside the model's folder"
        )
    root = folder.resolve()
    file = root / location
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ModelError(
            f"external data file {location!r} of tensor {name!r} is missing; put it into {folder}"
        ) from None
    if not real.is_relative_to(root):
        raise ModelError(
            f"tensor {name!r}: external data path {location!r} is a link that leaves the model's folder;"
            " copy the file beside the model"
        )
    if not real.is_file():
        raise ModelError(f"external data path {location!r} of tensor {name!r} is not a regular file")
    return real


def read(tensor: TensorProto, folder: Path) -> TensorProto:
    """A copy of an external tensor that holds its bytes.

    Raises:
        ModelError: see `locate`.
    """
    region = locate(tensor, folder)
    loaded = TensorProto()
    loaded.CopyFrom(tensor)
    loaded.ClearField("external_data")
    loaded.ClearField("data_location")
    with region.file.open("rb") as file:
        file.seek(region.offset)
        loaded.raw_data = file.read(region.length)
    return loaded


def files(model: ModelProto, folder: Path) -> list[Path]:
    """All data files of a model, each checked, in order of their path."""
    return sorted({locate(tensor, folder).file for tensor in tensors(model) if is_external(tensor)})


def update_hash(digest: hashlib._Hash, path: Path) -> None:
    """Feed a file to a hash."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)


def move(model: ModelProto, folder: Path, out: BinaryIO, location: str) -> None:
    """Copy the bytes of all external tensors into one file, and let the tensors point there.

    Args:
        model: edited in place: location, offset and length of its external tensors.
        folder: where the tensors' present locations start from.
        out: the new data file, written from its start; holes of sparse source files stay holes.
        location: path of the new data file from the new model's folder.

    Raises:
        ModelError: see `locate`.
    """
    placed: dict[Region, int] = {}
    end = 0
    for tensor in tensors(model):
        if not is_external(tensor):
            continue
        region = locate(tensor, folder)
        if region not in placed:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            copy_region(region, out, start)
            placed[region] = start
            end = start + region.length
        kept = [e for e in tensor.external_data if e.key not in ("location", "offset", "length", "checksum")]
        values = {"location": location, "offset": str(placed[region]), "length": str(region.length)}
        fresh = [onnx.StringStringEntryProto(key=key, value=value) for key, value in values.items()]
        tensor.ClearField("external_data")
        tensor.external_data.extend(fresh + kept)
    out.truncate(end)


def copy_region(region: Region, out: BinaryIO, start: int) -> None:
    """Copy one tensor's bytes to offset `start`, chunk by chunk and without the holes of a sparse file."""
    with region.file.open("rb") as file:
        stop = region.offset + region.length
        for first, last in _extents(file, region.offset, stop):
            file.seek(first)
            out.seek(start + first - region.offset)
            _copy(file.read, out.write, last - first)


def _extents(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of a file between two offsets that hold data."""
    while start < stop:
        try:
            first = os.lseek(file.fileno(), start, os.SEEK_DATA)
            last = os.lseek(file.fileno(), first, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # the file system cannot tell holes from data
                yield start, stop
            return  # ENXIO: no data up to the end of the file
        if first >= stop:
            return
        yield first, min(last, stop)
        start = last


def _copy(read_some: Callable[[int], bytes], write: Callable[[bytes], object], length: int) -> None:
    while length > 0:
        chunk = read_some(min(CHUNK, length))
        if not chunk:
            raise ModelError("an external data file became shorter while it was copied")
        write(chunk)
        length -= len(chunk)
