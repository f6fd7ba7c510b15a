"""Processor time per simulated chip in ours and in other simulators, in one process, in turns, on one thread.

    taskset -c 1 build/peer/bin/python benchmarks/peers/speed.py    # writes speed.json beside this file
    python benchmarks/peer_speed.py table                           # into docs/speed.md

A round runs every simulator once, on a chip that it has not had before; the next round begins with another
simulator. Processor time is what one thread takes on a core of its own, and what else runs on the machine
disturbs it little; the medians over rounds take out the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Contender, contenders
from threadpoolctl import threadpool_limits
from workloads import WORKLOADS, Workload

STORE = Path(__file__).with_name("speed.json")
PACKAGES = ("onnxruntime", "torch", "aihwkit", "CrossSim", "numpy")
_DIGITS = 5


def measure(workload: Workload, rounds: int) -> Iterator[dict[str, Any]]:
    """Run all contenders round by round.

    Args:
        workload: The network and its images.
        rounds: How often each runs, after one run that does not count.

    Yields:
        After every round, what was measured so far: for every contender what it is, its seconds per chip and
        round, and how far the outputs of its last chip are from clean ones.
    """
    listed = list(contenders(workload))
    entries: list[dict[str, Any]] = [
        {"title": contender.title, "name": contender.name, "images": contender.images, "seconds": []}
        for contender in listed
    ]
    for number in range(rounds + 1):
        for place in range(len(listed)):
            index = (place + number) % len(listed)
            with threadpool_limits(1):  # also for what has just been loaded
                taken, deviation = run(listed[index], workload, number)
            if number:
                entries[index]["seconds"].append(round(taken, _DIGITS))
                entries[index]["deviation"] = round(deviation, _DIGITS)
        if number:
            yield {
                "images": len(workload.images),
                "macs": workload.macs,
                "weights": workload.weights,
                "rounds": number,
                "contenders": entries,
            }


def run(contender: Contender, workload: Workload, chip: int) -> tuple[float, float]:
    """Seconds of processor time for one chip with all images, and the deviation of its outputs."""
    with torch.inference_mode():
        start = time.process_time()
        contender.program(chip)
        programmed = time.process_time()
        outputs = contender.forward(chip)
        done = time.process_time()
    scale = len(workload.images) / contender.images
    return programmed - start + scale * (done - programmed), workload.deviation(outputs)


def processor() -> str:
    """Name of the processor, and the widest vectors that it has."""
    text = Path("/proc/cpuinfo").read_text()
    name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    width = next((flag for flag in ("avx512f", "avx2") if f" {flag} " in text), "no AVX2")
    return f"{name}, {width}"


def main() -> None:
    """Measure some models, and write them into the store beside the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=STORE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(1)  # noqa: NPY002, TID251 (CrossSim draws from the global generator)
    torch.manual_seed(1)  # noqa: TID251 (and so does aihwkit)
    kept = json.loads(asked.out.read_text())["models"] if asked.out.exists() else {}
    store: dict[str, Any] = {
        "processor": processor(),
        "versions": {name: version(name) for name in PACKAGES},
        "models": kept,
    }
    for name in asked.models:
        for results in measure(WORKLOADS[name](), asked.rounds):
            store["models"][name] = results
            asked.out.write_text(json.dumps(store, indent=1) + "\n")
            print(f"{name}: round {results['rounds']} of {asked.rounds}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
