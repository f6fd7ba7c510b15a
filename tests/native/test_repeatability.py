"""The same bits for any split of the batch and any number of threads; close ones across instruction sets."""

from __future__ import annotations

import platform
import threading

import numpy as np
import pytest

from cnpass.runtime.devices import LogNormal
from cnpass.runtime.reference import program_weight

NODE = {"device": "lognormal", "sigma": 0.4, "seed": 1, "stream": 0}

CASES = {
    "conv": ("AnalogConv", (13, 20, 9, 9), (30, 20, 3, 3), {"pads": [1] * 4}),
    "large images": ("AnalogConv", (13, 20, 21, 21), (30, 20, 3, 3), {"pads": [1] * 4}),
    "small images": ("AnalogConv", (13, 70, 2, 2), (300, 70, 3, 3), {"pads": [1] * 4}),
    "strided": ("AnalogConv", (13, 4, 21, 17), (7, 4, 3, 3), {"strides": [2, 3]}),
    "depthwise": ("AnalogConv", (13, 24, 11, 13), (24, 1, 3, 3), {"pads": [1] * 4, "group": 24}),
    "1-D": ("AnalogConv", (13, 3, 400), (5, 3, 7), {"dilations": [2]}),
    "matmul": ("AnalogMatMul", (130, 300), (300, 70), {}),
}


@pytest.fixture(params=CASES)
def case(request, make_model):
    op, x_shape, w_shape, attributes = CASES[request.param]
    generator = np.random.default_rng(0)
    x, w = (generator.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
    inputs = {"x": x, "w": w, **({"b": None} if op == "AnalogConv" else {}), "chip": np.array(0)}
    return make_model(op, inputs, {"x", "chip"}, NODE | attributes), x, w


def test_batch_splits_and_threads(case, make_session):
    model, x, _ = case
    chip = np.array(3)
    whole = make_session(model, 1).run(None, {"x": x, "chip": chip})[0]
    generator = np.random.default_rng(1)
    for threads in (1, 2):
        session = make_session(model, threads)
        assert np.array_equal(session.run(None, {"x": x, "chip": chip})[0], whole)
        for _ in range(4):
            cuts = np.sort(generator.integers(0, len(x) + 1, 3))
            parts = [
                session.run(None, {"x": part, "chip": chip})[0] for part in np.split(x, cuts) if len(part)
            ]
            assert np.array_equal(np.concatenate(parts), whole)


def test_chips_differ_and_come_back(case, make_session):
    model, x, _ = case
    session = make_session(model)
    ys = {chip: session.run(None, {"x": x, "chip": np.array(chip)})[0] for chip in (-1, 0, 1, 2**32 - 2)}
    assert len({y.tobytes() for y in ys.values()}) == len(ys)
    for chip in (0, -1, 2**32 - 2, 1):
        assert np.array_equal(session.run(None, {"x": x, "chip": np.array(chip)})[0], ys[chip])


@pytest.mark.parametrize("session_threads", [1, 2])
def test_threads_share_a_session_on_different_chips(case, make_session, session_threads):
    model, x, _ = case
    x = x[:4]
    session = make_session(model, session_threads)
    expected = [session.run(None, {"x": x, "chip": np.array(chip)})[0] for chip in range(6)]
    wrong = []

    def work(worker: int) -> None:
        for i in range(60):
            chip = (worker + i * (worker + 1)) % 6
            y = session.run(None, {"x": x, "chip": np.array(chip)})[0]
            if not np.array_equal(y, expected[chip]):
                wrong.append((worker, chip))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one instruction set")
def test_instruction_sets_agree(case, make_session, output_with_isa):
    model, x, _ = case
    y = make_session(model).run(None, {"x": x, "chip": np.array(3)})[0]
    for isa in ("v1", "v3"):
        assert np.abs(output_with_isa(isa, model, x) - y).max() <= 1e-6 * np.abs(y).max()


@pytest.mark.parametrize("op", ["AnalogConv", "AnalogMatMul"])
def test_weight_that_is_no_constant(op, make_model, make_session):
    """A fed weight is programmed anew when its values change, and only its values count."""
    generator = np.random.default_rng(2)
    shape = (4, 3, 3, 3) if op == "AnalogConv" else (5, 7)
    x = generator.standard_normal((2, 3, 6, 6) if op == "AnalogConv" else (3, 5)).astype(np.float32)
    weights = [generator.standard_normal(shape).astype(np.float32) for _ in range(3)]
    bias = {"b": None} if op == "AnalogConv" else {}
    chip = np.array(4)

    def session(device, fed):
        inputs = {"x": x, "w": weights[0], **bias, "chip": chip}
        return make_session(make_model(op, inputs, fed, device))

    analog = session(NODE, {"x", "w", "chip"})
    upstream = session({"device": "programmed"}, {"x", "w", "chip"})
    for w in (*weights, weights[0], weights[0]):
        y = analog.run(None, {"x": x, "w": w, "chip": chip})[0]
        programmed = program_weight(w, LogNormal(sigma=0.4), seed=1, stream=0, chip=4)
        assert np.array_equal(upstream.run(None, {"x": x, "w": programmed, "chip": chip})[0], y)
        ideal = {"x": x, "w": w, "chip": np.array(-1)}
        assert np.array_equal(upstream.run(None, ideal)[0], analog.run(None, ideal)[0])


def test_programmed_ignores_the_chip(run_op):
    inputs = {"x": np.ones((2, 4), np.float32), "w": np.ones((4, 3), np.float32)}
    assert np.array_equal(run_op("AnalogMatMul", inputs, chip=8, device="programmed"), np.full((2, 3), 4.0))
