"""Speed of the native library, as ratios to ONNX Runtime's own float32 kernels with constant weights.

    python benchmarks/speed.py measure            # into benchmarks/speed.json
    python benchmarks/speed.py table              # into docs/speed.md

A round runs every variant once, one after the other, on one thread; the ratio of a variant is the median,
over rounds, of its time to the floor's in the same round. Every run is of a chip of its own, so that sampling
the chip's weights is inside. Give the program a core of its own (`taskset -c 1`), or the spread tells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from pages import filled

from cnpass.document import Document
from cnpass.inspection import inspect
from cnpass.passes import Pipeline
from cnpass.passes.calibrate_ranges import calibrate
from cnpass.runtime.session import Session

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "benchmarks" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"
START = "<!-- made by benchmarks/speed.py -->"

PLAIN = "map-crossbar{sigma=0.5}"
TILED = "map-crossbar{sigma=0.5,tile-rows=128,adc-bits=8}"
NOISY = "map-crossbar{sigma=0.5,read-noise=0.01}"
VARIANTS = {
    "sampled weights": PLAIN,
    "128 rows, 8-bit ADC": TILED,
    "read noise": NOISY,
}


@dataclass(frozen=True)
class Workload:
    """A network and a batch of inputs for it."""

    model: Callable[[], onnx.ModelProto]
    images: int
    rounds: int

    def batch(self, model: onnx.ModelProto) -> np.ndarray:
        """Return inputs, float32, standard normal; the same ones every time."""
        dims = model.graph.input[0].type.tensor_type.shape.dim
        shape = [self.images, *(d.dim_value for d in dims[1:])]
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _vgg16() -> onnx.ModelProto:
    sys.path.insert(0, str(ROOT / "models"))  # only here: other folders have files of the same names
    from export import to_onnx
    from networks import HE_GAIN, initialise, vgg16

    network = vgg16(10)
    initialise(network, torch.Generator().manual_seed(0), HE_GAIN)
    return to_onnx(network, "vgg16", (3, 32, 32), "VGG16 for CIFAR, random weights")


WORKLOADS = {
    "lenet5": Workload(lambda: onnx.load(ROOT / "models" / "lenet5-mnist.onnx"), images=1024, rounds=101),
    "vgg16": Workload(_vgg16, images=128, rounds=15),
}


PARTS = [*WORKLOADS, "workers"]


def mapped(model: onnx.ModelProto, recipe: str, batch: np.ndarray) -> onnx.ModelProto:
    """Map a model to crossbars, with ranges calibrated on some of the batch where the recipe needs them."""
    document = Document.from_proto(model)
    Pipeline.parse(recipe).run(document)
    if recipe != PLAIN:
        calibrate(document, {model.graph.input[0].name: batch[:32]})
    return document.to_proto()


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def chips(session: Session, batch: np.ndarray) -> Iterator[Callable[[], Any]]:
    """Yield runs of the batch, each on a chip that was not run before."""
    for chip in itertools.count():
        yield partial(session.run, batch, chip=chip)


def measure_ratios(work: Workload) -> dict[str, Any]:
    """Time the floor and every variant in turn."""
    model = work.model()
    batch = work.batch(model)
    floor = partial(Session(model).run, batch)
    variants = {
        name: chips(Session(mapped(model, recipe, batch)), batch) for name, recipe in VARIANTS.items()
    }
    runs = {"floor": itertools.repeat(floor), **variants}
    for each in runs.values():
        next(each)()
    seconds = {name: np.empty(work.rounds) for name in runs}
    for number in range(work.rounds):
        for name, each in runs.items():
            seconds[name][number] = timed(next(each))
    macs, values = work_of(model, work.images)
    return {
        "images": work.images,
        "rounds": work.rounds,
        "macs": macs,
        "values": values,
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ratios": {name: quartiles(seconds[name] / seconds["floor"]) for name in VARIANTS},
    }


def quartiles(values: np.ndarray) -> list[float]:
    """Return median, lower and upper quartile."""
    return [float(v) for v in np.quantile(values, [0.5, 0.25, 0.75])]


def work_of(model: onnx.ModelProto, images: int) -> tuple[int, int]:
    """Count what a run of some images on a new chip has to do.

    Returns:
        Multiply-accumulates, and float32 values that go to or from memory if caches hold nothing from one
        node to the next: each node's input and output once, each weight three times (read, written as
        programmed, read for the product).
    """
    macs = inspect(Document.from_proto(model)).totals.macs
    if macs is None:
        raise ValueError("the model does not say all of its shapes")
    infos = onnx.shape_inference.infer_shapes(model).graph
    maps = [*infos.input, *infos.value_info, *infos.output]
    sizes = [math.prod(d.dim_value for d in info.type.tensor_type.shape.dim[1:]) for info in maps]
    weights = sum(math.prod(initializer.dims) for initializer in model.graph.initializer)
    return macs * images, (2 * sum(sizes) - sizes[0]) * images + 3 * weights


def limits() -> dict[str, float]:
    """Measure what a core of this machine can do: multiply-accumulates and copied bytes per second.

    The former is the fastest matrix product seen, of ONNX Runtime's and ours.
    """
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1024])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 512])],
        [onnx.numpy_helper.from_array(np.ones((1024, 512), np.float32), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    x = np.ones((2048, 1024), np.float32)
    products = [partial(Session(each).run, x) for each in (model, mapped(model, PLAIN, x))]
    source, target = np.ones((2, 1 << 25), np.float32)
    copy = partial(np.copyto, target, source)
    return {
        "macs": x.size * 512 / min(timed(product) for product in products for _ in range(50)),
        "bytes": 2 * source.nbytes / min(timed(copy) for _ in range(20)),
    }


def _worker(core: int, images: int, runs: int, start: Any, seconds: Any) -> None:
    os.sched_setaffinity(0, {core})
    model = WORKLOADS["vgg16"].model()
    batch = WORKLOADS["vgg16"].batch(model)[:images]
    session = Session(mapped(model, PLAIN, batch))
    session.run(batch, chip=0)
    for each in iter(start.get, None):
        seconds.put(timed(lambda first=each: [session.run(batch, chip=first + i) for i in range(runs)]))


def measure_workers(images: int = 32, runs: int = 8, rounds: int = 9) -> dict[str, Any]:
    """Compare one worker with two, each on a core of its own, by chips of VGG16 per second."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    context = multiprocessing.get_context("spawn")
    queues = [(context.Queue(), context.Queue()) for _ in cores]
    workers = [
        context.Process(target=_worker, args=(core, images, runs, *pair), daemon=True)
        for core, pair in zip(cores, queues, strict=True)
    ]
    for worker in workers:
        worker.start()
    gains = []
    for number in range(-1, rounds):
        taken = []
        for used in (queues[:1], queues):
            for start, _ in used:
                start.put(1 + (number + 1) * runs)
            taken.append(max(seconds.get() for _, seconds in used))
        if number >= 0:  # the first round also waits for the workers to be ready
            gains.append(len(queues) * taken[0] / taken[1])
    for start, _ in queues:
        start.put(None)
    for worker in workers:
        worker.join()
    return {"images": images, "chips": runs, "rounds": rounds, "gain": quartiles(np.array(gains))}


def measure(parts: list[str]) -> None:
    """Measure and put the results beside those that the store has of other parts."""
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    for part in parts:
        if part == "workers":
            store[part] = measure_workers()
        else:
            store[part] = measure_ratios(WORKLOADS[part]) | {"limits": limits()}
    STORE.write_text(json.dumps(dict(sorted(store.items())), indent=1) + "\n")


def table() -> str:
    """Render the store."""
    store = json.loads(STORE.read_text())
    parts = {name: store[name] for name in WORKLOADS if name in store}
    lines = [*_ratios(parts), "", *_floors(parts)]
    if "workers" in store:
        part = store["workers"]
        gain = _range(part["gain"])
        lines += [
            "",
            f"Two workers, a core each (`vgg16`, {part['images']} images): {gain} times the chips of one.",
        ]
    return "\n".join(lines)


def render() -> str:
    """Return the page with the table in its place."""
    return filled(PAGE, START, table())


def _ratios(parts: dict[str, Any]) -> list[str]:
    lines = [f"| network | images | {' | '.join(VARIANTS)} |", "|---|---|" + "---|" * len(VARIANTS)]
    for name, part in parts.items():
        cells = [_range(part["ratios"][variant]) for variant in VARIANTS]
        lines.append(f"| `{name}` | {part['images']} | {' | '.join(cells)} |")
    return lines


def _floors(parts: dict[str, Any]) -> list[str]:
    header = (
        "network",
        "GMAC",
        "at the core's rate",
        "MB",
        "at the core's rate",
        "ONNX Runtime",
        "sampled weights",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, part in parts.items():
        macs, size, rates, seconds = part["macs"], 4 * part["values"], part["limits"], part["seconds"]
        times = [macs / rates["macs"], size / rates["bytes"], seconds["floor"], seconds["sampled weights"]]
        arithmetic, memory, *measured = [f"{1e3 * each:.1f} ms" for each in times]
        cells = [f"`{name}`", f"{macs / 1e9:.1f}", arithmetic, f"{size / 1e6:.0f}", memory, *measured]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _range(quartiles: list[float]) -> str:
    median, low, high = quartiles
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    parts = verbs.add_parser("measure", help="measure, into benchmarks/speed.json")
    parts.add_argument("part", nargs="?", choices=PARTS, help="one of them; all if not given")
    verbs.add_parser("table", help="render it into docs/speed.md")
    options = parser.parse_args()
    if options.verb == "measure":
        measure([options.part] if options.part else PARTS)
    else:
        PAGE.write_text(render())


if __name__ == "__main__":
    main()
