"""Ctrl-C, kill -9, closed pipes: nothing half-written or left running, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARGUMENTS = ("--chips", 4000, "--workers", 2, "--sigma", 0.3)


def wait_for_chips(journal: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not journal.exists() or len(journal.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "no chips arrived"
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Processes whose parent is the given one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (signal.SIGINT, (130, "cnpass: interrupted\n")),
        (signal.SIGTERM, (143, "")),
        (signal.SIGKILL, (-9, "")),
    ],
)
def test_stopped_and_resumed(cnpass, start, digits: Path, sent: int, expected: tuple[int, str]) -> None:
    run = digits.with_name("run")
    journal = run / "evaluate" / "chips.jsonl"
    process = start("evaluate", digits, *ARGUMENTS, "--run", run)
    wait_for_chips(journal, 5)
    workers = descendants(process.pid)
    assert len(workers) == 2
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == expected
    assert out == ""
    deadline = time.monotonic() + 10
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(gone, workers))

    done = len(journal.read_text().splitlines())
    assert 5 <= done < 4000
    total = done + 20
    again = cnpass("evaluate", digits, *ARGUMENTS, "--chips", total, "--run", run, "--format", "json")
    chips = [json.loads(line)["chip"] for line in journal.read_text().splitlines()]
    assert sorted(set(chips)) == sorted(chips)
    assert set(range(total)) <= set(chips)
    assert len(chips) <= total + 2 * 2  # chips that were on their way when the signal came
    fresh = cnpass(
        "evaluate",
        digits,
        *ARGUMENTS,
        "--chips",
        total,
        "--run",
        digits.with_name("other"),
        "--format",
        "json",
    )
    one, two = (json.loads(text) for text in (again.out, fresh.out))
    assert one["points"] == two["points"]
    assert not (run / "evaluate" / "scratch").exists()


def wait_for_handlers(pid: int) -> None:
    """Wait until the command handles signals itself; before, Python is starting, and may drop a Ctrl-C."""
    handled = 1 << (signal.SIGTERM - 1)
    deadline = time.monotonic() + 30
    while True:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        if int(caught, 16) & handled:
            return
        assert time.monotonic() < deadline, "the command does not start"
        time.sleep(0.005)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_interrupted_before_the_first_result(start, digits: Path, seconds: float) -> None:
    before = sorted(digits.parent.rglob("*"))
    process = start("evaluate", digits, *ARGUMENTS)
    wait_for_handlers(process.pid)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    if not digits.with_name("digits.cnpass.run").exists():
        assert sorted(digits.parent.rglob("*")) == before
    assert (process.returncode, err) == (130, "cnpass: interrupted\n")


OUTSIDE = """
import os, signal
from typer.core import TyperGroup
import cnpass.__main__ as command

def make_context(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)

TyperGroup.make_context = make_context
command.main()
"""


def test_interrupted_before_the_verb() -> None:
    """While the command line is being read: typer would end the process its own way."""
    done = subprocess.run([sys.executable, "-c", OUTSIDE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "cnpass: interrupted\n")


EVALUATING = """
import os, signal, time
import cnpass.__main__ as command

def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)

command._run = lambda: eval("interrupted()")
command.main()
"""


def test_interrupted_in_an_eval(tmp_path: Path) -> None:
    """Python keeps in mind that one left an `eval`, and would end `python -m` by the signal."""
    (tmp_path / "evaluating.py").write_text(EVALUATING)
    done = subprocess.run(
        [sys.executable, "-m", "evaluating"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))},
    )
    assert (done.returncode, done.stderr) == (130, "cnpass: interrupted\n")


LATE = """
import os, signal, time
import cnpass.__main__ as command

class Failed(Exception):
    def __str__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return "too late"

def run():
    raise Failed

command._run = run
command.main()
"""


def test_interrupted_in_the_last_words() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.partition(" (")[0]) == (
        70,
        "cnpass: internal error: Failed: too late",
    )


DROPPING = """
import os, signal, time
import cnpass.__main__ as command

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

def run():
    Finalized()
    time.sleep(20)
    return 0

command._run = run
command.main()
"""


def test_interrupted_where_python_drops_exceptions() -> None:
    """In a finalizer, say: the interrupt comes again, and nothing is printed of the dropped one."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPING], capture_output=True, text=True, check=False, timeout=15
    )
    assert (done.returncode, done.stderr) == (130, "cnpass: interrupted\n")


IMPORTING = """
import time
import cnpass.__main__ as command

def run():
    import interrupted
    time.sleep(20)
    return 0

command._run = run
command.main()
"""


@pytest.mark.parametrize(("seconds", "printed"), [(0, "imported\n"), (20, "")])
def test_interrupted_while_a_module_is_imported(tmp_path: Path, seconds: float, printed: str) -> None:
    """The import is finished before, if it does not take too long."""
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)"]
    lines += [f"time.sleep({seconds})", "print('imported')"]
    (tmp_path / "interrupted.py").write_text("\n".join(lines))
    command = [sys.executable, "-c", IMPORTING]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, printed, "cnpass: interrupted\n")


@pytest.mark.parametrize("arguments", [("inspect",), ("inspect", "--format", "json")])
def test_reader_that_goes_away(start, digits: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*arguments, digits, stdout=write)
    os.close(write)
    _, err = process.communicate()
    assert (process.returncode, err) == (141, "")
