"""The folder where a long run keeps its state, so that a killed run goes on where it stopped.

A folder holds one sub-folder per verb. Each has a manifest that says what the results depend on, a lock that
keeps a second process out, and journals: files of JSON lines, one per finished piece of work.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cnpass.errors import UsageError
from cnpass.files import naming, sibling, write_text

MANIFEST = "manifest.json"
LOCK = "lock"
_OTHERWISE = {"data": "data (or the same, limited or prepared otherwise)"}


def default_run(model: Path) -> Path:
    """The run folder of a model when none is named: ``{stem}.cnpass.run`` beside it."""
    return sibling(model, f"{model.stem}.cnpass.run")


class Journal:
    """An append-only file of JSON lines. A line torn by a kill is dropped when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self._recover()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def _recover(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            self.lines = [json.loads(line) for line in content[:whole].splitlines()]
        except ValueError as error:
            raise UsageError(f"{self.path}: is damaged ({error}); --restart starts over") from error
        if whole < len(content):
            os.truncate(self.path, whole)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; it is in the file, whole, when this returns."""
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file).st_size
        with naming(self.path):
            if os.write(self._file, data) != len(data):
                os.ftruncate(self._file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.lines.append(dict(line))

    def close(self) -> None:
        """Close the file; the journal can still be read."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class RunFolder:
    """One verb's part of a run folder, locked while it is open (use it in a ``with``).

    Args:
        root: the run folder; made if it is not there.
        verb: name of the verb, and of its sub-folder.
        identity: what the results depend on, as JSON values; a folder of another identity is refused.
        restart: drop the results of an earlier run instead.

    Raises:
        UsageError: the folder belongs to other inputs (names what changed), is not a run folder, is in use,
            or cannot be written.
    """

    def __init__(self, root: Path, verb: str, identity: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = root / verb
        self._journals: list[Journal] = []
        self._fresh = [folder for folder in (self.path, root) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be used as run folder ({error.strerror}); see --run"
            ) from error
        try:
            self._claim(dict(identity), restart)
        except BaseException:
            os.close(self._lock)
            raise

    def _claim(self, identity: dict[str, Any], restart: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{self.path}: another process is using this run folder") from error
        manifest = self.path / MANIFEST
        if not manifest.exists():
            names = sorted(item.name for item in self.path.iterdir())
            strangers = [name for name in names if name != LOCK and not name.startswith(f".{MANIFEST}.")]
            if strangers:
                raise UsageError(
                    f"{self.path}: is no run folder (it holds {strangers[0]}); choose another --run"
                )
        elif restart:
            self._clear()
        else:
            self._compare(manifest, identity)
            return
        try:
            write_text(manifest, json.dumps({"schema": 1, "identity": identity}, indent=2) + "\n")
        except OSError:
            self._vanish()
            raise

    def _clear(self) -> None:
        """Remove everything but the lock; the manifest goes last, so that a kill leaves a run folder."""
        items = sorted(self.path.iterdir(), key=lambda item: item.name == MANIFEST)
        for item in items:
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            elif item.name != LOCK:
                item.unlink()

    @staticmethod
    def _compare(manifest: Path, identity: dict[str, Any]) -> None:
        try:
            stored = json.loads(manifest.read_text(encoding="utf-8"))["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{manifest}: is damaged; --restart starts over") from error
        fresh = json.loads(json.dumps(identity))
        names = sorted(k for k in stored.keys() | fresh.keys() if stored.get(k) != fresh.get(k))
        changed = [_OTHERWISE.get(name, name) for name in names]
        if changed:
            raise UsageError(
                f"{manifest.parent}: holds a run with another {', '.join(changed)}; "
                "--restart starts over, --run DIR keeps both"
            )

    def journal(self, name: str) -> Journal:
        """Open the journal ``name``.jsonl, with the lines of earlier runs."""
        journal = Journal(self.path / f"{name}.jsonl")
        self._journals.append(journal)
        return journal

    def close(self) -> None:
        """Close the journals and let go of the lock."""
        for journal in self._journals:
            journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._vanish()
        self.close()

    def _vanish(self) -> None:
        """Leave no new folder behind a run that failed before it had any result."""
        ours = {MANIFEST, LOCK, *(journal.path.name for journal in self._journals if not journal.lines)}
        if self.path in self._fresh and all(item.name in ours for item in self.path.iterdir()):
            shutil.rmtree(self.path)
            for folder in self._fresh[1:]:
                folder.rmdir()
