"""Monte-Carlo over chips: against a loop by hand, over processes, resumed, stopped early, interrupted."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnpass.data import Split
from cnpass.document import Document
from cnpass.errors import CnpassError, DataError, ModelError
from cnpass.evaluation import VALIDATION_CHIPS_START, MonteCarlo, monte_carlo
from cnpass.evaluation.evaluate import chosen_devices
from cnpass.evaluation.statistics import half_width
from cnpass.passes import Pipeline
from cnpass.passes.analog import analog_nodes
from cnpass.passes.correct_mean_gain import CorrectMeanGain
from cnpass.passes.map_crossbar import MapCrossbar
from cnpass.progress import Progress
from cnpass.recipe import EvaluateRecipe
from cnpass.runfolder import Journal
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.runtime.devices import LogNormal
from cnpass.runtime.reference import program_weight

STRONG = LogNormal(sigma=0.6)


def by_hand(
    proto: onnx.ModelProto,
    split: Split,
    chip: int,
    seed: int,
    copies: tuple[Copies, Copies] = (SINGLE, SINGLE),
) -> float:
    """Top-1 of one chip: weights programmed by the reference, the plain model in ONNX Runtime."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for stream, tensor in enumerate(changed.graph.initializer):  # first used in the order of the initializers
        stored, several = numpy_helper.to_array(tensor), copies[stream]
        rows = (1, 2, 3) if stored.ndim == 4 else (0,)
        where = {"seed": seed, "stream": stream, "chip": chip, "more": several.more(stored.shape, rows)}
        weight = program_weight(stored, STRONG, copies=several.count, **where)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(weight), tensor.name))
    session = ort.InferenceSession(changed.SerializeToString())
    batches = [session.run(None, {"x": split.x[i : i + 1]})[0] for i in range(len(split))]
    return float(np.mean(np.concatenate(batches).argmax(1) == split.y))


def test_against_a_loop_by_hand(build, split: Split) -> None:
    with MonteCarlo(Document.from_proto(build()), split, workers=1) as run:
        target = run.prepare(Document.from_proto(build()), STRONG, seed=3)
        chips = [0, 1, VALIDATION_CHIPS_START]
        assert run.values(target, chips) == [by_hand(build(), split, chip, 3) for chip in chips]
        assert run.clean == by_hand(build(), split, -1, 3)
        assert (run.metric, run.notes) == ("top1", [])


@pytest.mark.parametrize("mapped", [False, True])
def test_a_model_for_a_mean_gain_is_compared_with_what_it_is_made_for(
    build, split: Split, mapped: bool
) -> None:
    plain, corrected = (Document.from_proto(build()) for _ in range(2))
    Pipeline([CorrectMeanGain(device=STRONG), *([MapCrossbar(device=STRONG)] if mapped else [])]).run(
        corrected
    )
    for part in (split, replace(split, y=None)):
        with MonteCarlo(plain, part, workers=1) as one, MonteCarlo(corrected, part, workers=1) as two:
            assert (two.metric, two.clean) == (one.metric, one.clean)
            target = one.prepare(corrected, STRONG, seed=0)
            assert two.values(target, [0, 1]) == pytest.approx(one.values(target, [0, 1]))


def test_a_scalar_input_belongs_to_each_sample() -> None:
    random = np.random.default_rng(0)
    w = random.standard_normal((4, 3)).astype(np.float32)
    nodes = [helper.make_node("Mul", ["x", "gain"], ["g"]), helper.make_node("MatMul", ["g", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("gain", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(w, "w")],
    )
    document = Document.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    )
    x = random.standard_normal((20, 4)).astype(np.float32)
    gain = random.choice([-1, 1], 20).astype(np.float32)
    labels = ((x * gain[:, None]) @ w).argmax(1)
    with MonteCarlo(document, Split({"x": x, "gain": gain}, labels), workers=1) as run:
        assert run.clean == 1.0
        assert run.notes == ["samples run one by one: input 'gain' is a scalar, which holds for a whole run"]


def test_copies_of_a_mapped_model_stay(build, split: Split) -> None:
    document = Document.from_proto(build())
    Pipeline.parse("map-crossbar,replicate-weights{tile-rows=128}").run(document)
    with MonteCarlo(document, split, workers=1) as run:
        target = run.prepare(document, STRONG, seed=3)
        assert run.values(target, [0, 1, 2]) == [
            by_hand(build(), split, chip, 3, copies=(Copies(14, 2, 9), Copies(2))) for chip in (0, 1, 2)
        ]


def test_processes_do_not_matter(document: Document, split: Split) -> None:
    one, two = (monte_carlo(document, split, [STRONG], range(12), workers=n) for n in (1, 2))
    assert one == two
    assert one[0].chips == 12
    assert one[0].std > 0


def test_a_mapped_model_keeps_or_changes_its_device(document: Document, split: Split) -> None:
    mapped = document.copy()
    MapCrossbar(device=STRONG, seed=5)(mapped)
    with MonteCarlo(document, split, workers=1) as run:
        own = run.prepare(mapped)
        assert (own.device, own.params, own.seed) == ("lognormal", {"sigma": 0.6}, 5)
        plain = run.values(run.prepare(document, STRONG, 5), range(4))
        assert run.values(own, range(4)) == plain
        other = run.values(run.prepare(mapped, LogNormal(sigma=0.2), 9), range(4))
        assert other == run.values(run.prepare(document, LogNormal(sigma=0.2), 9), range(4)) != plain
        assert run.clean_of(mapped) == run.clean


def test_a_mapped_model_that_leaves_device_and_seed_to_the_caller(document: Document, split: Split) -> None:
    mapped = document.copy()
    MapCrossbar(device=STRONG, seed=0)(mapped)
    for node in analog_nodes(mapped):
        for name in ("device", "seed"):
            del node.attrs[name]
    [device] = chosen_devices(EvaluateRecipe(sigma=(0.5,)), mapped)
    with MonteCarlo(document, split, workers=1) as run:
        expected = run.values(run.prepare(document, device, 0), range(3))
    with MonteCarlo(mapped, split, workers=1) as run:
        assert run.values(run.prepare(mapped, device), range(3)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"param": {"stuck_high": 0.01}},
            [("lognormal", {"sigma": 0.2, "stuck_low": 0.05, "stuck_high": 0.01})],
        ),
        (
            {"sigma": (0.3, 0.4)},
            [("lognormal", {"sigma": s, "stuck_low": 0.05, "stuck_high": 0.0}) for s in (0.3, 0.4)],
        ),
        (
            {"device": "lognormal", "sigma": (0.3,)},
            [("lognormal", {"sigma": 0.3, "stuck_low": 0.05, "stuck_high": 0.0})],
        ),
        ({"device": "gaussian"}, [("gaussian", {"sigma": s, "scale_floor": 1.0}) for s in (0.1, 0.3, 0.5)]),
    ],
)
def test_what_options_do_not_say_stays_as_a_mapped_model_has_it(
    document: Document, options: dict[str, Any], expected: list[tuple[str, dict[str, float]]]
) -> None:
    mapped = document.copy()
    MapCrossbar(device=LogNormal(sigma=0.2, stuck_low=0.05))(mapped)
    devices = chosen_devices(EvaluateRecipe(**options), mapped)
    assert [(device.name, device.attributes()) for device in devices if device is not None] == expected


def test_a_fixed_batch_changes_nothing(build, split: Split) -> None:
    free = monte_carlo(Document.from_proto(build()), split, [STRONG], range(3), workers=1)
    for batch in (1, 4):
        with MonteCarlo(Document.from_proto(build(batch)), split, workers=1) as run:
            target = run.prepare(Document.from_proto(build(batch)), STRONG, 0)
            assert run.point(target, range(3)) == free[0]
            assert run.notes == [f"batch size freed (the model fixes {batch}); equal results on 3 samples"]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_cannot_be_freed(build, split: Split, batch: int) -> None:
    """Scaling by the largest value in the batch mixes samples: they must run as the model fixes it."""
    proto = build(batch)
    proto.graph.node[1].CopyFrom(helper.make_node("Relu", ["a"], ["r"], "relu"))
    proto.graph.node.insert(2, helper.make_node("ReduceMax", ["r"], ["m"], "largest", keepdims=0))
    proto.graph.node.insert(3, helper.make_node("Div", ["r", "m"], ["b"], "scaled"))
    document = Document.from_proto(proto)
    with MonteCarlo(document, split, workers=1) as run:
        assert f"samples run {batch} at a time" in run.notes[0]
        assert "largest" in run.notes[0]
        session = ort.InferenceSession(proto.SerializeToString())
        padded = np.concatenate([split.x, split.x[-1:].repeat(-len(split) % batch, 0)])
        outputs = [session.run(None, {"x": padded[i : i + batch]})[0] for i in range(0, len(padded), batch)]
        assert run.clean == np.mean(np.concatenate(outputs)[: len(split)].argmax(1) == split.y)
        assert len(run.values(run.prepare(document, STRONG, 0), range(2))) == 2


def test_a_free_batch_that_mixes_samples_runs_one_by_one(build, split: Split) -> None:
    proto = build()
    proto.graph.node.insert(3, helper.make_node("Softmax", ["c"], ["s"], "over_samples", axis=0))
    proto.graph.node[4].input[0] = "s"
    with MonteCarlo(Document.from_proto(proto), split, workers=1) as run:
        assert run.notes[0] == "samples run one by one: in a batch the model gives other results"


def test_finished_chips_are_not_run_again(document: Document, split: Split, tmp_path: Path) -> None:
    fresh = monte_carlo(document, split, [STRONG], range(8), workers=1)
    first = Journal(tmp_path / "chips.jsonl")
    monte_carlo(document, split, [STRONG, LogNormal(sigma=0.1)], range(3), workers=1, store=first)
    monte_carlo(document, split, [STRONG], range(3), seed=1, workers=1, store=first)
    assert len(first.lines) == 9
    first.close()
    again = Journal(tmp_path / "chips.jsonl")
    assert monte_carlo(document, split, [STRONG], range(8), workers=1, store=again) == fresh
    assert [line["chip"] for line in again.lines[9:]] == [3, 4, 5, 6, 7]
    again.close()


def test_a_journal_does_not_mix_models_or_data(build, split: Split, tmp_path: Path) -> None:
    store = Journal(tmp_path / "chips.jsonl")
    for model, data in ((0, split), (1, split), (0, split.take(slice(50)))):
        document = Document.from_proto(build(seed=model))
        expected = monte_carlo(document, data, [STRONG], range(2), workers=1)
        assert monte_carlo(document, data, [STRONG], range(2), workers=1, store=store) == expected
    assert len(store.lines) == 6
    store.close()


def test_early_stop_depends_on_values_alone(document: Document, split: Split) -> None:
    with MonteCarlo(document, split, workers=2) as run:
        target = run.prepare(document, STRONG, 0)
        every = run.values(target, range(60))
        limit = half_width(every[:40])
        stopped = run.values(target, range(60), until_ci=limit)
        count = len(stopped)
        assert stopped == every[:count]
        assert count % 10 == 0
        assert 20 <= count <= 40
        assert half_width(every[:count]) <= limit
        assert all(half_width(every[:n]) > limit for n in range(20, count, 10))
        assert run.values(target, range(3)) == every[:3]


def test_without_labels_or_classes(document: Document, build, samples: np.ndarray) -> None:
    split = Split({"x": samples})
    with MonteCarlo(document, split, workers=1) as run:
        assert (run.metric, run.clean) == ("agreement", 1.0)
        values = run.values(run.prepare(document, STRONG, 0), range(4))
        assert all(0.2 < value < 1 for value in values)
    proto = build()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((64, 1), np.float32), "v"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    regression = Document.from_proto(proto)
    with MonteCarlo(regression, split, workers=1) as run:
        assert (run.metric, run.clean) == ("ser", 150.0)
        weak, strong = (
            run.values(run.prepare(regression, LogNormal(sigma=s), 0), [0])[0] for s in (0.05, 0.6)
        )
        assert 0 < strong < weak < 60


def test_without_the_library(document: Document, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    native = monte_carlo(document, split, [STRONG], range(2), workers=1)[0]
    monkeypatch.setenv("CNPASS_NO_NATIVE", "1")
    with MonteCarlo(document, split, workers=2) as run:
        portable = run.point(run.prepare(document, STRONG, 0), range(2))
        assert portable.mean == pytest.approx(native.mean, abs=1.5 / len(split))
        assert [note for note in run.notes if "slower" in note]


def test_chance_level_is_warned_about_before_any_chip(document: Document, samples: np.ndarray) -> None:
    class Told(Progress):
        said: list[str] = []  # noqa: RUF012 (shared by both)

        def warn(self, text: str) -> None:
            self.said.append(text)

    for shift in (0, 4):
        split = Split({"x": samples}, (np.arange(len(samples)) + shift) % 5)
        with MonteCarlo(document, split, workers=1, progress=Told()):
            pass
    few, none = Told.said
    assert "is right on 30.0% of 90 samples, too few to tell that from chance (20.0%)" in few
    assert "no more than by chance" in none


def test_models_and_data_that_cannot_be_evaluated(document: Document, build, split: Split) -> None:
    with pytest.raises(DataError, match="no samples"):
        MonteCarlo(document, split.take(slice(0)))
    proto = build()
    del proto.graph.node[0]
    proto.graph.node[-1].CopyFrom(helper.make_node("Identity", ["c"], ["y"], "product"))
    proto.graph.node[0].input[0] = "x"
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 36
    nothing = Document.from_proto(proto)
    with (
        MonteCarlo(nothing, split, workers=1) as run,
        pytest.raises(ModelError, match="no node can run on a crossbar"),
    ):
        run.prepare(nothing, STRONG, 0)


def test_nan_in_weights(build, split: Split) -> None:
    proto = build()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    with pytest.raises(ModelError, match="gives NaN on 90 of 90 samples; its weights"):
        MonteCarlo(Document.from_proto(proto), split, workers=1)


# Worker processes


def test_a_killed_worker_is_one_error_and_no_hang(document: Document, split: Split) -> None:
    with MonteCarlo(document, split, workers=2) as run:
        target = run.prepare(document, STRONG, 0)
        run.values(target, range(4))
        (pool,) = run._pools.values()
        processes = [worker._process for worker in pool._workers]
        processes[0].kill()
        with pytest.raises(CnpassError, match=r"a worker process was killed by signal 9 \(out of memory\?\)"):
            run.values(target, range(100, 200))
        assert all(process.poll() is not None for process in processes)


def test_an_error_in_a_worker_keeps_its_kind(document: Document, split: Split) -> None:
    with MonteCarlo(document, split, workers=2) as run:
        target = run.prepare(document, STRONG, 0)
        with pytest.raises(CnpassError, match=r"chip is -[234]") as error:
            run.values(target, [-2, -3, -4])
        assert error.value.exit_code == 2


def test_workers_die_with_their_parent(tmp_path: Path, build) -> None:
    onnx.save_model(build(), str(tmp_path / "m.onnx"))
    script = f"""
        import os, numpy as np
        from cnpass.data import Split
        from cnpass.document import Document
        from cnpass.evaluation import MonteCarlo
        from cnpass.runtime.devices import LogNormal
        document = Document.load({str(tmp_path / "m.onnx")!r})
        run = MonteCarlo(document, Split({{"x": np.zeros((4, 1, 6, 6), np.float32)}}), workers=2)
        run.values(run.prepare(document, LogNormal(), 0), range(4))
        (pool,) = run._pools.values()
        print(*(worker._process.pid for worker in pool._workers), flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        if all(Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" for pid in pids):
            break
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_nothing_is_left_behind(document: Document, split: Split, tmp_path: Path) -> None:
    with MonteCarlo(document, split, workers=2, folder=tmp_path / "scratch") as run:
        run.values(run.prepare(document, STRONG, 0), range(4))
        (pool,) = run._pools.values()
        processes = [worker._process for worker in pool._workers]
        assert any((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "scratch").exists()
    assert all(process.poll() is not None for process in processes)
