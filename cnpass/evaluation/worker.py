"""A worker process of a runner: JSON lines in (the job, then units), JSON lines out (outcomes).

It ends as soon as its input closes, even in the middle of a unit, so that none outlives its parent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import TextIO

from cnpass.allocator import keep_freed_memory
from cnpass.errors import CnpassError
from cnpass.evaluation.work import find_runner


def _read(stream: TextIO, lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Serve the runner named on the command line until the input closes."""
    keep_freed_memory()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, lines), daemon=True).start()
    kind = find_runner(sys.argv[1])
    runner = kind(kind.jobs.validate_json(lines.get()))
    while True:
        unit = kind.units.validate_json(lines.get())
        try:
            outcome = runner.measure(unit)
            answer = json.dumps({"value": outcome.value, "seconds": outcome.seconds})
        except CnpassError as error:
            answer = json.dumps({"error": type(error).__name__, "text": str(error)})
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
