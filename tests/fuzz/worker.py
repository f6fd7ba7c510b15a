"""One process of the fuzzer: drives damaged models through what a user does with a model, under bounds.

    python tests/fuzz/worker.py FOLDER SEED FIRST LAST

Prints one JSON line per case before it starts, one before each step, and one with its outcome: "done",
"refused" (an error that cnpass means to give), "endless" (the model itself takes too long to run),
"timeout", or "failure" with the traceback.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from mutate import damaged
from sources import all_sources

from cnpass.data.inputs import input_specs, random_dataset
from cnpass.document import Document
from cnpass.errors import CnpassError
from cnpass.evaluation import evaluate
from cnpass.functions import inline_products
from cnpass.inspection import inspect
from cnpass.passes import Pipeline
from cnpass.training.forward import Forward, Samples
from cnpass.training.lift import lift
from cnpass.training.writeback import write_back

SECONDS = 10
"""CPU time that a case may take."""
PATIENCE = 300
"""Wall time, for cases that wait for something; the machine may be busy."""
MEMORY = 1 << 30
"""Address space on top of that of the started process."""
SAMPLES = 4
"""Samples that a model runs on."""
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


def examine(path: Path, _out: Path) -> None:
    """`inspect`."""
    inspect(Document.load(path))


def fold(path: Path, _out: Path) -> None:
    """`rewrite -p fold-batch-norm`, without saving."""
    Pipeline.parse("fold-batch-norm").run(Document.load(path))


def measure(path: Path, _out: Path) -> None:
    """`evaluate` on random samples, in this process."""
    evaluate(path, sigma=(0.5,), chips=2, limit=SAMPLES, workers=1)


def train(path: Path, out: Path) -> None:
    """What training does: lift, one step forward and back, and other weights into a file."""
    document = Document.load(path)
    inline_products(document)
    split = random_dataset(input_specs(document.to_proto())).val.take(slice(SAMPLES))
    module = lift(document)
    output = Forward(module)(Samples.of(split, module.input_names, torch.device("cpu")))
    if output.requires_grad:
        output.sum().backward()
    write_back(document, {key: 2 * weight for key, weight in module.weights.items()})
    document.save(out / "trained.onnx", force=True)
    Document.load(out / "trained.onnx")


def rewrite(path: Path, out: Path) -> None:
    """`rewrite -p map-crossbar` and `lower`."""
    document = Document.load(path)
    Pipeline.parse("map-crossbar").run(document)
    document.save(out / "mapped.onnx", force=True)
    lowered = Document.load(out / "mapped.onnx")
    Pipeline.parse("lower-analog").run(lowered)
    lowered.save(out / "lowered.onnx", force=True)


STEPS = (examine, fold, measure, train, rewrite)
"""What a user does with a model file; the last one says whether the model counts as refused."""
RUNNING = (measure, train)
"""Steps that run the model, which may ask for any time and memory: a loop's count may be damaged, too."""


class _EndlessError(BaseException):
    """A model takes too long to run."""


def drive(path: Path, out: Path, tell: Callable[[bool], object]) -> bool:
    """Take every step as far as it goes; gives whether the last one went through.

    Args:
        path: File of the model.
        out: Folder for outputs.
        tell: Told before each step whether it runs the model.
    """
    done = False
    for step in STEPS:
        tell(step in RUNNING)
        try:
            step(path, out)
            done = True
        except MemoryError:  # the command line says so in a line
            assert step in RUNNING, f"{step.__name__}: out of memory"
            done = False
        except _TimeoutError:
            if step in RUNNING:
                raise _EndlessError from None
            raise
        except CnpassError as error:
            assert "\n" not in str(error), f"{step.__name__}: an error of several lines: {error}"  # noqa: PT017
            done = False
    return done


def check(folder: Path, before: set[Path], out: Path) -> None:
    """Nothing was written outside of the output folder, and nothing from outside was copied into it."""
    after = {each for each in folder.rglob("*") if out not in each.parents}
    assert after == before, f"files outside of the output folder changed: {after ^ before}"
    for each in filter(Path.is_file, out.rglob("*")):
        assert SECRET not in each.read_bytes(), f"{each.name} holds what lies outside of the model's folder"
    for each in out.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def case(
    path: Path, out: Path, sources: list[bytes], seed: int, number: int, tell: Callable[[bool], object]
) -> dict[str, str]:
    """Run one case; gives its outcome."""
    path.write_bytes(damaged(sources, np.random.default_rng([seed, number])))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    # Python does not hear the timer while native code runs; this ends the process.
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 3 * SECONDS, resource.RLIM_INFINITY))
    try:
        done = drive(path, out, tell)
    except _EndlessError:
        return {"outcome": "endless"}
    except _TimeoutError:
        return {"outcome": "timeout", "text": traceback.format_exc()}
    except Exception:  # noqa: BLE001 (that is what a fuzzer looks for)
        return {"outcome": "failure", "text": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return {"outcome": "done" if done else "refused"}


def main() -> None:
    """Run the cases of the command line."""
    folder, (seed, first, last) = Path(sys.argv[1]).resolve(), map(int, sys.argv[2:])
    inside, out = prepare(folder)
    sources = all_sources()
    path = inside / "model.onnx"
    path.write_bytes(b"")
    tempfile.tempdir = str(out)
    torch.set_num_threads(1)
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, _alarm)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    before = {each for each in folder.rglob("*") if out not in each.parents}
    # Libraries write to standard output on their own; the lines for the parent go where nobody else writes.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)

    def say(**fields: object) -> None:
        lines.write(json.dumps(fields) + "\n")

    for number in range(first, last):
        say(case=number)
        found = case(path, out, sources, seed, number, lambda runs, case=number: say(case=case, runs=runs))
        try:
            check(folder, before, out)
        except AssertionError as error:
            found = {"outcome": "failure", "text": str(error)}
        say(case=number, **found)
        if number % 200 == 0:
            gc.collect()


if __name__ == "__main__":
    main()
