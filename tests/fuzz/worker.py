"""One process of the fuzzer: drives load, inspect, map, lower and save on damaged models, under bounds.

    python tests/fuzz/worker.py FOLDER SEED FIRST LAST

Prints one JSON line per case before it starts, and one with its outcome: "done", "refused" (an error that
cnpass means to give), "timeout", or "failure" with the traceback.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from mutate import damaged
from sources import all_sources

from cnpass.document import Document
from cnpass.errors import CnpassError
from cnpass.inspection import inspect
from cnpass.passes import Pipeline

SECONDS = 10
"""CPU time that a case may take."""
PATIENCE = 300
"""Wall time, for cases that wait for something; the machine may be busy."""
MEMORY = 1 << 30
"""Address space on top of that of the started process."""
SECRET = b"the secret outside of the model's folder"


class _TimeoutError(BaseException):
    """Not an Exception, so that no handler takes it for one of a library."""


def _alarm(_signal: int, _frame: FrameType | None) -> None:
    raise _TimeoutError


def prepare(folder: Path) -> tuple[Path, Path]:
    """The folders for a model and for outputs, with files around that nobody may touch or copy."""
    inside, out = folder / "model", folder / "out"
    for each in (inside, inside / "folder", out):
        each.mkdir(parents=True, exist_ok=True)
    (folder / "secret.bin").write_bytes(SECRET * 64)
    (inside / "weights.bin").write_bytes(bytes(range(256)))
    with contextlib.suppress(FileExistsError):
        (inside / "link.bin").symlink_to(folder / "secret.bin")
    return inside, out


def drive(path: Path, out: Path) -> None:
    """What a user does with a model file, as far as it goes."""
    document = Document.load(path)
    for step in (lambda: inspect(document), lambda: Pipeline.parse("fold-batch-norm").run(document)):
        with contextlib.suppress(CnpassError):
            step()
    document = Document.load(path)
    Pipeline.parse("map-crossbar").run(document)
    document.save(out / "mapped.onnx", force=True)
    lowered = Document.load(out / "mapped.onnx")
    Pipeline.parse("lower-analog").run(lowered)
    lowered.save(out / "lowered.onnx", force=True)


def check(folder: Path, before: set[Path], out: Path) -> None:
    """Nothing was written outside of the output folder, and nothing from outside was copied into it."""
    after = {each for each in folder.rglob("*") if out not in each.parents}
    assert after == before, f"files outside of the output folder changed: {after ^ before}"
    for each in out.iterdir():
        assert SECRET not in each.read_bytes(), f"{each.name} holds what lies outside of the model's folder"
        each.unlink()


def case(path: Path, out: Path, sources: list[bytes], seed: int, number: int) -> dict[str, str]:
    """Run one case; gives its outcome."""
    path.write_bytes(damaged(sources, np.random.default_rng([seed, number])))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        drive(path, out)
    except CnpassError as error:
        lines = str(error).count("\n")
        return (
            {"outcome": "refused"} if not lines else {"outcome": "failure", "text": f"{lines} lines: {error}"}
        )
    except _TimeoutError:
        return {"outcome": "timeout", "text": traceback.format_exc()}
    except Exception:  # noqa: BLE001 (that is what a fuzzer looks for)
        return {"outcome": "failure", "text": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return {"outcome": "done"}


def main() -> None:
    """Run the cases of the command line."""
    folder, (seed, first, last) = Path(sys.argv[1]).resolve(), map(int, sys.argv[2:])
    inside, out = prepare(folder)
    sources = all_sources()
    path = inside / "model.onnx"
    path.write_bytes(b"")
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, _alarm)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    before = {each for each in folder.rglob("*") if out not in each.parents}
    # Libraries write to standard output on their own; the lines for the parent go where nobody else writes.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for number in range(first, last):
        lines.write(json.dumps({"case": number}) + "\n")
        found = case(path, out, sources, seed, number)
        try:
            check(folder, before, out)
        except AssertionError as error:
            found = {"outcome": "failure", "text": str(error)}
        lines.write(json.dumps({"case": number, **found}) + "\n")
        if number % 200 == 0:
            gc.collect()


if __name__ == "__main__":
    main()
