"""Time and memory of large models, next to plain graphsurgeon and onnx-ir.

Writes the models into a folder, measures each program in a process of its own, and prints a table:

    python benchmarks/large_models.py --folder /tmp/large          # some minutes, 8 GB of disk
    python benchmarks/large_models.py --folder /tmp/large --only nodes

- nodes: 20,000 nodes, half of them MatMul, weights inside the file
- external: 200 MatMul with 2.5 GB of weights as external data, random bytes
- transformer: the graph of a decoder of 7 billion parameters, whose weights are a sparse file of zeros

Times are of the wall clock, after imports; memory is the highest resident set of the process, of which the
imports alone take the part in the column `imports`. Everything that was written is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

PROGRAMS = {
    "copy": "import shutil; work = lambda: [shutil.copyfile(f, out / f.name) for f in path.parent.iterdir()]",
    "cnpass inspect": "from cnpass.inspection import inspect; work = lambda: inspect(path)",
    "cnpass rewrite": (
        "from cnpass.document import Document; from cnpass.passes import Pipeline, map_crossbar;"
        " run = Pipeline.parse('map-crossbar').run;"
        " work = lambda: (lambda d: (run(d), d.save(out / 'model.onnx')))(Document.load(path))"
    ),
    "graphsurgeon load and save": (
        "import onnx, onnx_graphsurgeon as gs;"
        " work = lambda: onnx.save(gs.export_onnx(gs.import_onnx(onnx.load(path))), out / 'model.onnx',"
        " save_as_external_data=external)"
    ),
    "onnx-ir load and save": (
        "import onnx_ir as ir;"
        " data = 'model.data' if external else None;"
        " work = lambda: ir.save(ir.load(path), out / 'model.onnx', external_data=data)"
    ),
}
"""Each sets `work`; `path` is the model, `out` an empty folder, `external` whether it has external data."""

RUNNER = """
import json, resource, sys, time
from pathlib import Path
path, out, external = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1"
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
{program}
imports, start, busy = peak(), time.perf_counter(), time.process_time()
work()
print(json.dumps([time.perf_counter() - start, time.process_time() - busy, peak(), imports]))
"""


def nodes(folder: Path) -> Path:
    """20,000 nodes, half of them MatMul of 8 x 8."""
    random = np.random.default_rng(0)
    made, weights, x = [], [], "x"
    for i in range(10_000):
        values = random.standard_normal((8, 8)).astype(np.float32)
        weights.append(
            helper.make_tensor(f"layer.{i}.weight", TensorProto.FLOAT, (8, 8), values.tobytes(), raw=True)
        )
        made.append(
            helper.make_node("MatMul", [x, f"layer.{i}.weight"], [f"layer.{i}.y"], f"/layer.{i}/MatMul")
        )
        x = f"layer.{i}.out"
        made.append(helper.make_node("Relu", [f"layer.{i}.y"], [x], f"/layer.{i}/Relu"))
    return _write(folder, made, weights, x, 8)


def external(folder: Path) -> Path:
    """200 MatMul of 1792 x 1792: 2.5 GB."""
    width = 1792
    chunk = np.random.default_rng(0).bytes(4 * width * width)
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(200):
            file.write(chunk)
    made, weights, x = [], [], "x"
    for i in range(200):
        weights.append(_external(f"layer.{i}.weight", (width, width), i * len(chunk)))
        made.append(
            helper.make_node("MatMul", [x, f"layer.{i}.weight"], [f"layer.{i}.y"], f"/layer.{i}/MatMul")
        )
        x = f"layer.{i}.y"
    return _write(folder, made, weights, x, width)


def transformer(folder: Path) -> Path:
    """32 decoder layers of width 4096 without norms, 6.6 billion weights in float16, all of them 0."""
    width, inner, words = 4096, 11_008, 32_000
    made, weights, offset = [], [], 0
    kind = TensorProto.FLOAT16

    def dense(name: str, x: str, rows: int, cols: int) -> str:
        nonlocal offset
        weights.append(_external(f"{name}.weight", (rows, cols), offset, kind))
        offset += 2 * rows * cols
        made.append(helper.make_node("MatMul", [x, f"{name}.weight"], [f"{name}.y"], f"/{name}/MatMul"))
        return f"{name}.y"

    def node(op: str, inputs: list[str], name: str, **attributes: object) -> str:
        made.append(helper.make_node(op, inputs, [f"{name}.y"], f"/{name}/{op}", **attributes))
        return f"{name}.y"

    x = "x"
    for i in range(32):
        name = f"layers.{i}"
        q, k, v = (dense(f"{name}.{part}", x, width, width) for part in "qkv")
        scores = node("MatMul", [q, node("Transpose", [k], f"{name}.kt", perm=[0, 2, 1])], f"{name}.scores")
        mixed = node("MatMul", [node("Softmax", [scores], f"{name}.soft"), v], f"{name}.mixed")
        x = node("Add", [x, dense(f"{name}.o", mixed, width, width)], f"{name}.first")
        gate = node("Sigmoid", [dense(f"{name}.gate", x, width, inner)], f"{name}.sigmoid")
        wide = node("Mul", [gate, dense(f"{name}.up", x, width, inner)], f"{name}.wide")
        x = node("Add", [x, dense(f"{name}.down", wide, inner, width)], f"{name}.second")
    x = dense("head", x, width, words)
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(offset)
    return _write(folder, made, weights, x, width, kind, ["n", "length", width])


def _external(name: str, shape: tuple[int, int], offset: int, kind: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    size = shape[0] * shape[1] * helper.tensor_dtype_to_np_dtype(kind).itemsize
    for key, value in (("location", "weights.bin"), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _write(
    folder: Path,
    made: list[object],
    weights: list[TensorProto],
    last: str,
    width: int,
    kind: int = TensorProto.FLOAT,
    shape: list[int | str] | None = None,
) -> Path:
    x = helper.make_tensor_value_info("x", kind, shape or ["n", width])
    graph = helper.make_graph(made, "large", [x], [helper.make_tensor_value_info(last, kind, None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = folder / "source" / "model.onnx"
    path.parent.mkdir()
    if (folder / "weights.bin").exists():
        (folder / "weights.bin").rename(path.parent / "weights.bin")
    path.write_bytes(model.SerializeToString())
    return path


MODELS: dict[str, Callable[[Path], Path]] = {"nodes": nodes, "external": external, "transformer": transformer}
SKIPPED = {
    ("transformer", "graphsurgeon load and save"),
    ("transformer", "onnx-ir load and save"),
    ("transformer", "copy"),
}
"""What would fill memory or disk with a sparse file's zeros."""


def measure(path: Path, name: str, folder: Path, data: bool) -> Iterator[str]:
    """Run every program on a model, each in a process of its own."""
    for program, code in PROGRAMS.items():
        if (name, program) in SKIPPED:
            continue
        out = folder / "out"
        out.mkdir()
        command = [sys.executable, "-c", RUNNER.format(program=code), str(path), str(out), str(int(data))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        shutil.rmtree(out)
        if done.returncode:
            error = done.stderr.strip().splitlines()
            yield f"| {name} | {program} | failed: {error[-1] if error else done.returncode} | | | |"
            continue
        wall, busy, peak, imports = json.loads(done.stdout)
        yield f"| {name} | {program} | {wall:.2f} | {busy:.2f} | {peak:.0f} | {imports:.0f} |"


def main() -> None:
    """Write the models, measure, clean up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the models go"
    )
    parser.add_argument("--only", choices=MODELS, help="one model instead of all")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| model | program | wall s | CPU s | peak MB | imports MB |\n|---|---|---|---|---|---|")
    for name, make in MODELS.items():
        if options.only in (None, name):
            options.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=options.folder) as place:
                path = make(Path(place))
                for line in measure(path, name, Path(place), name != "nodes"):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
