"""Writing files whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cnpass.errors import ModelError, UsageError


def check_output(
    path: Path,
    *,
    force: bool,
    sources: Iterable[Path] = (),
    hint: str = "--force overwrites it, -o names another file",
) -> None:
    """Refuse an output path before any work is done for it.

    Args:
        path: the file to write.
        force: whether it may be there.
        sources: files that the work reads, which are never written.
        hint: what to do if it is there and may not be.

    Raises:
        UsageError: the file is a source, or exists and ``force`` is off, or its folder does not exist or
            cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, not a file to write")
    if path.exists() and path.resolve() in {source.resolve() for source in sources}:
        raise UsageError(f"{path}: is the source, which is never written; name another file")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; {hint}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    try:
        # Asked by doing: permissions say nothing of special file systems, nor to a superuser.
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"{path}: the folder {path.parent} cannot be written ({reason})") from error


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sibling(model: Path, name: str) -> Path:
    """Return a path beside a model.

    Raises:
        ModelError: What is said to be a model has no name, as "." and "/" have none.
    """
    if not model.name:
        raise ModelError(f"{model}: is a folder, not an ONNX file")
    return model.with_name(name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system in here name the file, also where a write to it failed."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write UTF-8 text by way of a temporary file that is renamed into place.

    Raises:
        UsageError: as ``check_output``.
        OSError: the disk is full or fails; nothing is left behind.
    """
    check_output(path, force=force)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with naming(path), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
