"""Running the command, in this process or in one of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cnpass import __main__ as command


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def cnpass(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["cnpass", *map(str, arguments)])
        monkeypatch.setattr(command.signal, "signal", lambda *_: None)
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command.main()
        out, err = capfd.readouterr()
        assert isinstance(exit_.value.code, int)
        return Done(exit_.value.code, out, err)

    return run


def _heed_interrupts() -> None:
    """Undo what a shell does to jobs in its background, where the tests may be running."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts the command as a process."""

    def popen(*arguments: object, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cnpass", *map(str, arguments)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            preexec_fn=_heed_interrupts,  # noqa: PLW1509 (the tests start no threads before)
        )

    return popen


@pytest.fixture
def digits(models: Path, tmp_path: Path) -> Path:
    """A copy of the small digits model in a folder of its own, with a hundred test samples beside it."""
    shutil.copy(models / "digits-lenet5.onnx", tmp_path / "digits.onnx")
    with np.load(models / "digits-lenet5.npz") as arrays:
        np.savez(tmp_path / "digits.npz", x_test=arrays["x_test"][:100], y_test=arrays["y_test"][:100])
    return tmp_path / "digits.onnx"
