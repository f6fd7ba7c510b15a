"""Many pieces of work at once: worker processes, each on one thread."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, Self

from cnpass import errors
from cnpass.errors import CnpassError
from cnpass.evaluation.work import J, Outcome, Runner, U, V

AHEAD = 2
"""Units that a worker holds at most, so that it never waits for the next."""


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0))


class _Worker(Generic[J, U, V]):
    """One process and the units it holds."""

    def __init__(self, runner: type[Runner[J, U, V]], job: J, log: Path) -> None:
        self.log = log
        self.units: deque[U] = deque()
        self._kind = runner
        self._tail = b""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            "OMP_NUM_THREADS": "1",
        }
        with log.open("wb") as errors_to:
            self._process = subprocess.Popen(  # noqa: S603 (a module of ours)
                [sys.executable, "-P", "-m", "cnpass.evaluation.worker", runner.address()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors_to,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the workers
            )
        self._send(runner.jobs.dump_json(job))

    def fileno(self) -> int:
        """Where answers come from."""
        assert self._process.stdout is not None  # noqa: S101 (it is a pipe)
        return self._process.stdout.fileno()

    def give(self, unit: U) -> None:
        """Hand over one more unit."""
        self.units.append(unit)
        self._send(self._kind.units.dump_json(unit))

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 (it is a pipe)
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def outcomes(self) -> Iterator[Outcome[U, V]]:
        """The answers that have arrived.

        Raises:
            CnpassError: a unit failed, or the process died.
        """
        data = os.read(self.fileno(), 1 << 16)
        if not data:
            raise self._death()
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "error" in answer:
                raise getattr(errors, answer["error"], CnpassError)(answer["text"])
            yield Outcome(self.units.popleft(), answer["value"], answer["seconds"])

    def _death(self) -> CnpassError:
        code = self._process.wait()
        said = self.log.read_text(errors="replace").strip().splitlines()
        if code < 0:
            how = f"was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        else:
            how = f"ended with status {code}" + (f": {said[-1]}" if said else "")
        return CnpassError(f"a worker process {how}; fewer --workers need less memory, finished work is kept")

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


class Pool(Generic[J, U, V]):
    """Runs units of one job; use it in a ``with``. With one worker, everything happens in this process.

    Args:
        runner: what measures them.
        job: what the units share.
        workers: number of processes.
        folder: for what workers say when they fail.
    """

    def __init__(self, runner: type[Runner[J, U, V]], job: J, workers: int, folder: Path) -> None:
        self._kind = runner
        self._job = job
        self._count = workers
        self._folder = folder
        self._workers: list[_Worker[J, U, V]] = []
        self._runner: Runner[J, U, V] | None = None

    def run(self, units: Iterable[U]) -> Iterator[Outcome[U, V]]:
        """The outcomes, as they arrive. Closing the iterator early leaves nothing behind.

        Raises:
            CnpassError: a unit failed, or a worker process died.
        """
        if self._count == 1:
            self._runner = self._runner or self._kind(self._job)
            yield from map(self._runner.measure, units)
            return
        waiting = deque(units)
        while len(self._workers) < min(self._count, len(waiting)):
            log = self._folder / f"worker-{len(self._workers)}.log"
            self._workers.append(_Worker(self._kind, self._job, log))
        try:
            with selectors.DefaultSelector() as selector:
                for worker in self._workers:
                    selector.register(worker, selectors.EVENT_READ, worker)
                self._fill(waiting)
                while any(worker.units for worker in self._workers):
                    for key, _ in selector.select():
                        yield from key.data.outcomes()
                    self._fill(waiting)
        finally:
            if any(worker.units for worker in self._workers):
                self.close()

    def _fill(self, waiting: deque[U]) -> None:
        for worker in self._workers * AHEAD:
            if waiting and len(worker.units) < AHEAD:
                worker.give(waiting.popleft())

    def close(self) -> None:
        """End all processes."""
        while self._workers:
            self._workers.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
