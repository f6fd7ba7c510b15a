"""Checkpoints: torch files that hold nothing but tensors and plain values, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from cnpass.errors import UsageError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a kill leaves the old one.

    Raises:
        UsageError: The disk is full or the folder cannot be written.
    """
    import torch

    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: the checkpoint cannot be written ({reason})") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or return None where there is none.

    Raises:
        UsageError: The file is damaged, or holds more than tensors and plain values.
    """
    import torch

    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises errors of many modules
        raise UsageError(f"{path}: the checkpoint is damaged; --restart starts over") from error
    return state
