"""The fuzzer: damaged models through what a user does with a model, in processes of their own.

    python tests/fuzz/run.py --cases 100000 --seed 0 --folder /tmp/fuzz

A case is a pure function of seed and number. A process that dies counts as a failure of the case it was at;
a new one goes on behind it. Ends with code 1 if any case failed; the failing models lie in FOLDER/failures.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from mutate import damaged
from sources import all_sources

BLOCK = 5000
"""Cases per process."""


def fuzz(folder: Path, seed: int, first: int, last: int) -> tuple[Counter[str], dict[int, str]]:
    """Run cases `first` to `last`; gives how often each outcome came, and the text of failures by case."""
    outcomes: Counter[str] = Counter()
    failures: dict[int, str] = {}
    number = first
    while number < last:
        stop = min(number + BLOCK, last)
        worker = Path(__file__).with_name("worker.py")
        command = [sys.executable, str(worker), str(folder), str(seed), str(number), str(stop)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for line in lines:
            if "outcome" in line:
                outcomes[line["outcome"]] += 1
                if line["outcome"] in ("failure", "timeout"):
                    failures[line["case"]] = line["text"]
        if not lines:
            raise RuntimeError(f"the worker did not start: {done.stderr}")
        number = lines[-1]["case"] + 1
        if "outcome" in lines[-1]:
            continue
        if lines[-1].get("runs") and done.returncode == -signal.SIGXCPU:
            outcomes["endless"] += 1
        else:
            outcomes["crash"] += 1
            failures[number - 1] = f"the process ended with code {done.returncode}: {done.stderr[-2000:]}"
    return outcomes, failures


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cnpass-fuzz")
    options = parser.parse_args()
    kept = options.folder / "failures"
    kept.mkdir(parents=True, exist_ok=True)
    sources = all_sources()
    outcomes: Counter[str] = Counter()
    failed = False
    for start in range(options.first, options.first + options.cases, BLOCK):
        stop = min(start + BLOCK, options.first + options.cases)
        found, failures = fuzz(options.folder / "work", options.seed, start, stop)
        outcomes.update(found)
        failed = failed or bool(failures)
        sys.stdout.write(f"{stop - options.first} cases: {dict(sorted(outcomes.items()))}\n")
        for number, text in failures.items():  # at once, for a run of hours may be stopped
            model = damaged(sources, np.random.default_rng([options.seed, number]))
            (kept / f"{options.seed}-{number}.onnx").write_bytes(model)
            (kept / f"{options.seed}-{number}.txt").write_text(text, encoding="utf-8")
            sys.stdout.write(f"case {number}: {text.strip().splitlines()[-1]}\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
