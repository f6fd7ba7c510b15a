"""What happens to ``cnpass optimize`` as a process: killed in every stage, out of disk, with odd data."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SEARCH = ("--sigma", "1.2", "--epochs", "12", "--max-overhead", "0.5")
OPTIONS = {
    "optimize": (*SEARCH, "--trials", "3", "--chips", "12"),
    "search": (*SEARCH, "--trials", "12", "--workers", "2"),
}
STAGES = {
    "optimize": (
        "chips.jsonl",
        "shared.pt",
        "study.db",
        "compensation.pt",
        "retrain.pt",
        "penalty.pt",
        "together.pt",
    ),
    "search": ("shared.pt", "study.db", "compensation.pt"),
}
"""Files of a run in the order in which they appear."""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(model: Path) -> Start:
    """Starts ``cnpass optimize`` on the model as a process; it leaves ``out.onnx`` beside it."""

    def begin(*arguments: object, verb: str = "optimize", **options: Any) -> subprocess.Popen[str]:
        output = model.with_name("out.onnx")
        command = (verb, model, "-o", output, "--run", model.with_name("run"), *OPTIONS[verb], *arguments)
        paths = filter(None, sys.path)
        return subprocess.Popen(
            [sys.executable, "-m", "cnpass", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            **options,
        )

    return begin


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err.strip().splitlines()


def _change(model: Path, **arrays: np.ndarray) -> None:
    data = model.with_suffix(".npz")
    with np.load(data) as before:
        kept = dict(before)
    np.savez(data, **(kept | arrays))


@pytest.mark.slow
@pytest.mark.parametrize("verb", STAGES)
def test_killed_in_every_stage_and_asked_again(model: Path, start: Start, verb: str) -> None:
    """Whatever file shows up next ends the process; what is left goes on, and ends as if never killed."""
    state, output = model.with_name("run") / verb, model.with_name("out.onnx")
    for name in STAGES[verb]:
        assert not (state / name).exists(), f"{name} was there before its turn"
        process = start(verb=verb)
        while not (state / name).exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert (state / name).exists()
        assert not output.exists()
    code, _, err = _finish(start("--format", "json", verb=verb))
    assert code == 0, err
    resumed = output.read_bytes()
    record = json.loads(output.with_suffix(".json").read_text())
    output.unlink()
    code, _, err = _finish(start("--restart", "--force", verb=verb))
    assert code == 0, err
    assert output.read_bytes() == resumed
    again = json.loads(output.with_suffix(".json").read_text())
    assert {**again, "seconds": 0} == {**record, "seconds": 0}


@pytest.mark.parametrize("limit", [0, 1000, 20_000, 100_000])
def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(
    model: Path, start: Start, limit: int
) -> None:
    """A limit on the size of files stands for the disk: writes fail in the same way."""

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    folder = model.with_name("run")
    code, out, err = _finish(start("-q", preexec_fn=full))
    assert (code, out, len(err)) == (2, "", 1), err
    assert err[0].startswith(f"cnpass: error: {folder}")
    assert not model.with_name("out.onnx").exists()
    assert not list(model.parent.glob(".out*"))
    if limit == 100_000:  # the study, which is the largest file, is half made
        code, _, err = _finish(start())
        assert code == 0, err


def test_one_class_in_the_training_data_is_warned_about(model: Path, start: Start) -> None:
    _change(model, y_train=np.zeros(160, np.int64))
    code, _, err = _finish(start("-q", "--epochs", "1"))
    assert (code, len(err)) == (0, 1)
    assert "all training samples are of class 0" in err[0]


@pytest.mark.parametrize("count", [1, 20])
def test_fewer_samples_than_a_batch_are_one_batch(model: Path, start: Start, count: int) -> None:
    with np.load(model.with_suffix(".npz")) as arrays:
        few = {name: arrays[name][:count] for name in ("x_train", "y_train")}
    _change(model, **few)
    code, _, err = _finish(start("-q", "--epochs", "1"))
    assert code == 0, err
    assert json.loads(model.with_name("out.json").read_text())["n"]["train"] == count


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y_train": np.full(160, 9)}, "y_train: label 9 is outside the model's 4 classes"),
        ({"y_val": np.full(60, -1)}, "y_val: label -1 is negative"),
        ({"x_train": np.full((160, 1, 8, 8), np.nan, np.float32)}, "x_train: holds NaN"),
        ({"x_val": np.full((60, 1, 8, 8), np.inf, np.float32)}, "x_val: holds NaN or infinite"),
        ({"y_train": np.eye(4)[np.zeros(160, int)]}, "y_train: labels have shape (160, 4)"),
    ],
)
def test_data_that_do_not_fit_end_before_any_work(
    model: Path, start: Start, changes: dict[str, np.ndarray], said: str
) -> None:
    _change(model, **changes)
    code, out, err = _finish(start())
    assert (code, out, len(err)) == (4, "", 1)
    assert said in err[0]
    assert not model.with_name("run").exists()
