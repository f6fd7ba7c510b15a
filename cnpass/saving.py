"""Writing a model and its external data, whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import EncodeError
from onnx import ModelProto

from cnpass import external, files
from cnpass.errors import ModelError, UsageError


def serialize(model: ModelProto) -> bytes:
    """Return the bytes of a model, always the same for the same model.

    Raises:
        ModelError: it is larger than protobuf allows.
    """
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        raise ModelError(
            "the model is larger than 2 GB; protobuf needs its weights as external data"
        ) from None
    return data


def data_path(target: Path) -> Path:
    """Return where the external data of a model file go: beside it."""
    return target.with_name(target.name + ".data")


def write(
    model: ModelProto,
    target: Path,
    folder: Path,
    *,
    force: bool,
    sources: Iterable[Path],
    announce: Callable[[Mapping[str, str]], object] | None,
) -> None:
    """Write a model file, and one file `<target>.data` where the model has external data.

    Args:
        model: the model; locations of its external data become those of the new file.
        target: the file to write.
        folder: where present locations of external data start from.
        force: whether existing files may be replaced.
        sources: files that are never written.
        announce: told the SHA-256 of the model file (`output`) and of its external data, if it has any
            (`output_data`), when all is written and about to take its place; None for nobody.

    Raises:
        UsageError: a file exists, is a source, or cannot be written.
        ModelError: external data are missing, or the model is larger than protobuf allows.
    """
    sources, targets = list(sources), [target]
    if any(external.is_external(tensor) for tensor in external.tensors(model)):
        targets.insert(0, data_path(target))
    for each in targets:
        files.check_output(each, force=force, sources=sources)
    staged: dict[Path, Path] = {}
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(_stage(each, staged)) for each in targets]
            if len(streams) > 1:
                external.move(model, folder, streams[0], targets[0].name)
            data = serialize(model)
            streams[-1].write(data)
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
        if announce is not None:
            names = ("output_data", "output")[-len(targets) :]
            announce({name: files.sha256(staged[each]) for name, each in zip(names, targets, strict=True)})
        if len(targets) > 1:
            target.unlink(missing_ok=True)  # an old model must never be seen beside new data
        for each in targets:
            staged[each].replace(each)
        _sync_folder(target.parent)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _stage(target: Path, staged: dict[Path, Path]) -> BinaryIO:
    """Open a new file beside a target under a name that nobody has; noted before it exists."""
    staged[target] = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    return staged[target].open("xb")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
