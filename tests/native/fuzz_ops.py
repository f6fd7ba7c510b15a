"""Fuzz the native operators through ONNX Runtime: random nodes, right ones and wrong ones.

    python tests/native/fuzz_ops.py --cases 1000000 --seed 0

A case is a node with random attributes, shapes, types, absent inputs and odd numbers, run up to three
times. It must give an output or an error that names the node; a node with nothing wrong must give an output.
Cases run in a process of their own, so that a crash or a hang is seen; case N of a seed is the same in any
run. Memory is bounded, for what only exhausts it tells nothing: allocations beyond the bound fail, an error
like any other. What came of the cases is printed at the end, each kind with its number.
"""

from __future__ import annotations

import argparse
import collections
import json
import mmap
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from cnpass.runtime.devices import device_names, make_device
from cnpass.runtime.library import get_library_path
from cnpass.runtime.ops import ANALOG_CONV, ANALOG_MATMUL, DOMAIN, PROGRAMMED

ROOM = 256 << 20
"""Bytes that a worker may take beyond what it has when it starts."""

WORKER_CASES = 20_000
"""Cases after which a new worker goes on."""

HANG = 1800
"""Seconds that one case may take; so many, because the machine may have better to do."""

Attributes = dict[str, Any]
Inputs = dict[str, np.ndarray | None]

DEVICES = {name: make_device(name).attributes() for name in device_names()} | {PROGRAMMED: {}}
INTEGERS = (0, -1, 1, 2, 3, 17, 255, 2**16, 2**16 + 1, 2**24, 2**31, 2**32 - 2, 2**32, 2**53, 2**62, -(2**63))
FLOATS = (0.0, -1.0, 0.5, 1.0, 2.5, 1e-30, 1e-45, 1e30, 3e38, float("inf"), -float("inf"), float("nan"))
TEXTS = ("", "NOTSET", "SAME_UPPER", "lognormal", "x" * 3000, "\0", "gr\u00f6\u00dfe")
TYPES = (np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_, object)
ODD = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0], np.float32)
PERIPHERY = ("tile_rows", "tile_cols", "dac_bits", "adc_bits", "input_range", "output_range", "read_noise")
OF_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_OF_ORT = re.compile(r"\(layer\)|input feed|for input: |std::bad_alloc$")  # the last by our bound
OTHERS = (
    "seed",
    "stream",
    "weight_perm",
    "copies",
    "extra_copies",
    "stuck_low",
    "stuck_high",
    "sample_rows",
    "no_such",
)


class Case:
    """One node with its inputs; what is `None` is absent."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = np.random.default_rng([seed, number])
        self.conv = self.chance(0.5)
        self.attributes: Attributes = {}
        self.inputs: Inputs = self.make_conv() if self.conv else self.make_matmul()
        self.make_device()
        self.inputs["chip"] = np.array(self.integer(-1, 3))
        if self.chance(0.4):
            self.make_periphery()
        self.fed = {"X", "chip", "first_sample"} | ({"W"} if self.chance(0.3) else set())
        self.outputs = 1
        # What is wrong, perhaps; nothing in a third of all cases.
        self.changes = [self.pick(CHANGES)(self) for _ in range(max(0, self.integer(-1, 3)))]
        self.bound()

    # random numbers

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, low: int, end: int) -> int:
        return int(self.rng.integers(low, end))

    def pick(self, choices: Any) -> Any:
        return choices[self.integer(0, len(choices))]

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    # a node that is right

    def make_conv(self) -> Inputs:
        squares = self.chance(0.2)  # what Winograd's convolution is for
        axes = 2 if squares else self.integer(1, 4)
        group, channels, filters = self.pick((1, 1, 2, 5)), self.integer(1, 6), self.integer(1, 5)
        if squares:
            channels, filters = self.integer(16, 25), self.integer(16, 25)
        kernel, dilations = self.rng.integers(1, 4, (2, axes))
        if squares:
            kernel[:], dilations[:] = 3, 1
        size = (kernel - 1) * dilations + self.rng.integers(1, 8, axes)
        optional = {
            "kernel_shape": kernel.tolist(),
            "strides": self.rng.integers(1, 2 if squares else 4, axes).tolist(),
            "group": group,
        }
        if self.chance(0.5):
            optional["pads"] = self.rng.integers(0, 3, 2 * axes).tolist()
        else:
            optional["auto_pad"] = self.pick(("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
        self.attributes = {k: v for k, v in optional.items() if k == "group" or self.chance(0.8)}
        self.attributes["dilations"] = dilations.tolist()
        return {
            "X": self.floats(self.integer(0, 4), group * channels, *size),
            "W": self.floats(group * filters, channels, *kernel),
            "B": self.floats(group * filters) if self.chance(0.5) else None,
        }

    def make_matmul(self) -> Inputs:
        depth, columns = self.integer(1, 40), self.integer(1, 40)
        x = self.floats(*self.rng.integers(0 if self.chance(0.1) else 1, 4, self.integer(0, 4)), depth)
        if not self.chance(0.2):
            return {"X": x, "W": self.floats(depth, columns)}
        self.attributes["weight_perm"] = [1, 0]
        return {"X": x, "W": self.floats(columns, depth)}

    def make_device(self) -> None:
        name = self.pick(tuple(DEVICES))
        self.attributes |= {"device": name, **DEVICES[name], "seed": self.integer(-(2**63), 2**63)}
        optional = {"stream": self.integer(0, 2**24), "copies": self.integer(1, 5)}
        depth = self.integer(2, 30)
        optional["extra_copies"] = [self.integer(1, depth), depth]
        optional |= {rate: float(self.rng.random() / 2) for rate in ("stuck_low", "stuck_high")}
        self.attributes |= {key: value for key, value in optional.items() if self.chance(0.3)}

    def make_periphery(self) -> None:
        self.attributes |= {
            "tile_rows": self.tile_rows(),
            "tile_cols": self.integer(0, 40),
            "dac_bits": self.pick((0, 2, 8, 16)),
            "adc_bits": self.pick((0, 2, 8, 16)),
            "input_range": float(self.rng.random() * 4 + 0.1),
            "output_range": float(self.rng.random() * 4 + 0.1),
            "read_noise": float(self.rng.random()),
        }
        if self.chance(0.7):
            self.inputs["first_sample"] = np.array(self.integer(0, 2**31))

    def tile_rows(self) -> int:
        """Rows that have room for what a tile is to hold."""
        extra, depth = self.attributes.get("extra_copies", (0, 0))
        least = depth * self.attributes.get("copies", 1) + extra
        return self.integer(least, least + self.pick((40, 400)))

    # what can be wrong with it; each gives its name

    def change_attribute(self) -> str:
        names = [*self.attributes, *PERIPHERY, *OTHERS, *(OF_CONV if self.conv else ())]
        name = self.pick(names)
        old = self.attributes.get(name)
        if isinstance(old, list) and all(isinstance(v, int) for v in old) and self.chance(0.6):
            new = [self.pick(INTEGERS) if self.chance(0.5) else v for v in old]
            self.attributes[name] = [*new, 1] if self.chance(0.2) else new
        elif isinstance(old, float) and self.chance(0.6):
            self.attributes[name] = self.pick(FLOATS)
        elif isinstance(old, int) and self.chance(0.6):
            self.attributes[name] = self.pick(INTEGERS)
        else:
            lists = [self.pick(INTEGERS) for _ in range(self.integer(0, 7))]
            values = (
                self.pick(INTEGERS),
                self.pick(FLOATS),
                self.pick(TEXTS),
                lists,
                [0.5, 2.0],
                ["a"],
                self.floats(2),
            )
            self.attributes[name] = self.pick(values)
        return f"attribute {name}"

    def drop_attribute(self) -> str:
        name = self.pick(tuple(self.attributes))
        del self.attributes[name]
        return f"no attribute {name}"

    def change_shape(self) -> str:
        name = self.pick(tuple(self.inputs))
        shape = [self.pick((0, 1, 1, 2, 3, 7, 30)) for _ in range(self.integer(0, 7))]
        old = self.inputs[name]
        if old is not None and old.ndim and self.chance(0.5):
            shape = list(old.shape)
            shape[self.integer(0, len(shape))] = self.integer(0, 8)
        kind = np.int64 if name in ("chip", "first_sample") else np.float32
        self.inputs[name] = self.floats(*shape).astype(kind)
        return f"shape of {name}"

    def change_type(self) -> str:
        name = self.pick(tuple(self.inputs))
        old, kind = self.inputs[name], self.pick(TYPES)
        if old is not None and old.dtype != object:  # text, of an earlier change, is no number
            with np.errstate(all="ignore"):
                self.inputs[name] = np.full(old.shape, "text", object) if kind is object else old.astype(kind)
        return f"type of {name}"

    def drop_input(self) -> str:
        name = self.pick(tuple(self.inputs))
        self.inputs[name] = None
        return f"no {name}"

    def add_input(self) -> str:
        self.inputs[f"more {len(self.inputs)}"] = self.floats(2)
        return "one input more"

    def add_output(self) -> str:
        self.outputs += 1
        return "one output more"

    def change_numbers(self) -> str:
        name = self.pick([name for name in self.inputs if name not in ("chip", "first_sample")])
        array = self.inputs[name]
        if array is not None and array.dtype == np.float32:
            where = self.rng.random(array.shape) < self.pick((0.02, 0.5, 1.0))
            self.inputs[name] = np.where(where, self.rng.choice(ODD, array.shape), array)
        return f"numbers in {name}"

    def change_selector(self) -> str:
        name = self.pick(("chip", "first_sample"))
        self.inputs[name] = np.array(self.pick(INTEGERS))
        return f"value of {name}"

    def bound(self) -> None:
        """Keep what takes long, and says no more for it, small."""
        copies = self.attributes.get("copies")
        weight = self.inputs["W"]
        if isinstance(copies, int) and copies > 256 and weight is not None and weight.size > 64:
            self.attributes["copies"] = 256

    # the model

    def model(self) -> ModelProto:
        given = [(name, value) for name, value in self.inputs.items()]
        while given and given[-1][1] is None:
            given.pop()
        node = NodeProto(
            op_type=ANALOG_CONV if self.conv else ANALOG_MATMUL,
            name="layer",
            domain=DOMAIN,
            input=[name if value is not None else "" for name, value in given],
            output=["Y", *(f"Y{i}" for i in range(1, self.outputs))],
        )
        node.attribute.extend(_attribute(name, value) for name, value in self.attributes.items())
        graph = GraphProto(name="g", node=[node])
        for name, value in given:
            if value is None:
                continue
            if name in self.fed:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
            else:
                graph.initializer.append(numpy_helper.from_array(value, name))
        graph.output.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, None))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    @property
    def plain_chip(self) -> bool:
        """Whether another number can be fed for the chip."""
        chip = self.inputs["chip"]
        return chip is not None and chip.dtype == np.int64 and chip.ndim == 0

    def feeds(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in self.inputs.items() if name in self.fed and value is not None}


CHANGES = (
    *[Case.change_attribute] * 16,
    *[Case.drop_attribute] * 4,
    *[Case.change_shape] * 8,
    *[Case.change_type] * 2,
    *[Case.drop_input] * 2,
    Case.add_input,
    Case.add_output,
    *[Case.change_numbers] * 4,
    *[Case.change_selector] * 4,
)


def _attribute(name: str, value: Any) -> AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    if value == []:
        return AttributeProto(name=name, type=AttributeProto.INTS)
    return helper.make_attribute(name, value)


def _kind(text: str) -> str:
    """An error without the numbers and names of the case.

    Raises:
        AssertionError: it names no node, and is none of those in which ORT names an input of the model.
    """
    ours = re.search(r'Analog(Conv|MatMul) node "layer": (.*)', text, re.DOTALL)
    assert ours or _OF_ORT.search(text), f"an error that does not say where: {text}"
    words = ours[2] if ours else "ONNX Runtime: " + text.rpartition("] : ")[2].partition(" : ")[2]
    words = re.sub(r'"[^"]*"', '"..."', words)
    return re.sub(r"-?[0-9][0-9.e+x-]*|\b(inf|nan)\b", "#", words)[:70]


def run_case(case: Case, options: ort.SessionOptions) -> str:
    """Run one case; gives what came of it, without numbers and names of the case.

    Raises:
        AssertionError: it should have been otherwise.
    """
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4
    feeds = case.feeds()
    model = case.model().SerializeToString()
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for chip in (None, -1, 5):
            if chip is not None and case.plain_chip:
                feeds["chip"] = np.array(chip)
            (y,) = session.run(["Y"], feeds, quiet)
            assert y.dtype == np.float32, y.dtype
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 (ORT raises many types)
        text = str(error)
        assert case.changes, f"a good node is refused: {text}"
        return _kind(text)
    return "an output"


def work(library: Path, seed: int, first: int, end: int, place: Path) -> None:
    """Run cases; `place` always holds the number of the one that is running."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.register_custom_ops_library(str(library))
    run_case(Case(seed, first), options)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    outcomes: collections.Counter[str] = collections.Counter()
    with place.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        for number in range(first, end):
            shared[:] = number.to_bytes(8, "little")
            try:
                case = Case(seed, number)
                outcomes[run_case(case, options)] += 1
            except MemoryError:  # of Python, while it makes the case
                outcomes["no memory to make the case"] += 1
            except AssertionError as error:
                sys.exit(f"case {number} of seed {seed} ({', '.join(case.changes)}): {error}")
    json.dump(outcomes, sys.stdout)


def main() -> None:
    """Start workers one after the other, and watch them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--library", type=Path, help="default: the one of cnpass")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    library = options.library or get_library_path()
    end = options.first + options.cases
    if options.worker:
        work(library, options.seed, options.first, end, options.worker)
        return
    outcomes: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    for first in range(options.first, end, WORKER_CASES):
        outcomes += watch(library, options.seed, first, min(end, first + WORKER_CASES))
        done = f"{sum(outcomes.values())} cases in {time.monotonic() - start:.0f} s"
        sys.stderr.write(f"{done}\n")
    sys.stdout.writelines(f"{count:8d}  {outcome}\n" for outcome, count in outcomes.most_common())


def watch(library: Path, seed: int, first: int, end: int) -> collections.Counter[str]:
    """Run cases in a process of their own; ends this one if that one fails, crashes or hangs."""
    with tempfile.NamedTemporaryFile() as place:
        place.write((first).to_bytes(8, "little"))
        place.flush()
        command = [sys.executable, __file__, "--library", str(library), "--seed", str(seed)]
        command += ["--first", str(first), "--cases", str(end - first), "--worker", place.name]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        last, since = -1, time.monotonic()
        while True:
            try:
                out, _ = worker.communicate(timeout=5)
                break
            except subprocess.TimeoutExpired:
                number = int.from_bytes(Path(place.name).read_bytes(), "little")
                if number != last:
                    last, since = number, time.monotonic()
                elif time.monotonic() - since > HANG:
                    worker.kill()
                    sys.exit(f"case {number} of seed {seed} hangs")
        number = int.from_bytes(Path(place.name).read_bytes(), "little")
        if worker.returncode < 0:
            sys.exit(f"case {number} of seed {seed} dies of signal {-worker.returncode}")
        if worker.returncode > 0:
            sys.exit(worker.returncode)
    return collections.Counter(json.loads(out))


if __name__ == "__main__":
    main()
