"""The contract of device models, as pytest tests that anyone can run on a model of their own.

    class TestMine(DeviceContract):
        @pytest.fixture(params=[0.1, 0.5])
        def device(self, request):
            return Mine(sigma=request.param)

Statistical checks have fixed seeds, so they pass or fail for good. Each bound is 5 standard deviations of the
figure that it checks: a correct model that draws other numbers misses one with a probability of 6e-7.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from pydantic import ValidationError

from cnpass.runtime import ops
from cnpass.runtime.bodies import BITWISE_OPSET, function_bodies
from cnpass.runtime.copies import SINGLE, Copies
from cnpass.runtime.devices import DeviceModel, ScaledModel, TorchDraws
from cnpass.runtime.library import WITHOUT_LIBRARY, has_library
from cnpass.runtime.program import PROGRAM_DOMAIN, program_function, program_node
from cnpass.runtime.reference import program_weight
from cnpass.runtime.session import Session

DRAWS = 2**20
FULL = 1.5
DEVIATIONS = 5.0

_CHIP: dict[str, Any] = {"seed": 2**40 + 17, "stream": 3, "chip": 12}

_PROGRAM = """
import hashlib, importlib, json, sys
import numpy as np
from cnpass.runtime.reference import program_weight
module, name, parameters, chip = json.loads(sys.argv[1])
device = getattr(importlib.import_module(module), name)(**parameters)
weight = np.linspace(-1, 1, 1000, dtype=np.float32)
print(hashlib.sha256(program_weight(weight, device, **chip).tobytes()).hexdigest())
"""


class DeviceContract:
    """Base of a test class; a subclass gives the fixture `device`, an instance with some variation.

    Its parameters should leave the fourth moment well behaved (for `lognormal`, sigma up to 0.5), because the
    bound on the standard deviation is estimated from it.
    """

    levels: ClassVar[tuple[float, ...]] = (-1.5, 0.25, 1.0)
    """Weights whose programmed values are checked against the closed-form moments; the full scale is 1.5."""

    near_zero: ClassVar[float] = 2e-7
    """What function body and reference may differ by, in fractions of the largest weight, near zero."""

    in_ops: ClassVar[bool] = True
    """Whether analog nodes can name the model; False for one that serves `device="programmed"`."""

    def test_description(self, device: DeviceModel) -> None:
        """Name, formula and source; for every parameter unit, help and a default within its range."""
        description = type(device).describe()
        assert description.name == type(device).name == description.name.lower()
        assert all((description.summary, description.formula, description.source))
        names = [field.name for field in description.fields]
        assert names == [*device.parameter_names(), ops.STUCK_LOW, ops.STUCK_HIGH]
        for preset in description.presets.values():
            assert preset.source
            type(device)(**preset.parameters)
        for field in description.fields:
            assert field.unit, field.name
            assert field.help, field.name
            assert field.minimum is None or field.default >= field.minimum
            assert field.maximum is None or field.default <= field.maximum

    def test_parameters(self, device: DeviceModel) -> None:
        """They round-trip, cannot change, must be known and within their range; the defaults are legal."""
        make: Any = type(device)
        assert make(**device.attributes()) == device
        assert make() == make(**make().attributes())
        assert all(isinstance(value, float) for value in device.attributes().values())
        for field in make.describe().fields:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(device, field.name, field.default)
            if field.minimum is not None:
                with pytest.raises(ValidationError):
                    make(**{field.name: field.minimum - 1})
            with pytest.raises(ValidationError):
                make(**{field.name: float("nan")})
        with pytest.raises(ValidationError):
            make(no_such_parameter=1.0)

    def test_ideal_chip(self, device: DeviceModel) -> None:
        """Chip -1 holds the nominal weights."""
        weight = _weights()
        chip = {**_CHIP, "chip": ops.IDEAL_CHIP}
        np.testing.assert_array_equal(program_weight(weight, device, **chip), weight)

    def test_same_bits_in_torch(self, device: DeviceModel) -> None:
        """NumPy and torch program the same bits."""
        weight = _weights()
        self._check_torch(device, weight, program_weight(weight, device, **_CHIP))

    def test_same_bits_in_the_library(self, device: DeviceModel) -> None:
        """The native op computes with the same bits, and the formula in ONNX ops agrees to 1e-5."""
        if not self.in_ops:
            pytest.skip("no analog node can name this device")
        weight = _weights()
        self._check_ops(device, weight, program_weight(weight, device, **_CHIP))

    def test_programmed_upstream(self, device: DeviceModel, monkeypatch: pytest.MonkeyPatch) -> None:
        """A node of its own programs the same weights to 1e-5, with the library and without."""
        weight = _weights()
        faulty = dataclasses.replace(device, stuck_low=0.05, stuck_high=0.03)
        expected = program_weight(weight, faulty, **_CHIP, copies=2)
        near_zero = self.near_zero * np.abs(expected).max()
        for without in ("0", "1"):
            monkeypatch.setenv(WITHOUT_LIBRARY, without)
            programmed = _programmed_upstream(faulty, weight, copies=2)
            np.testing.assert_allclose(programmed, expected, rtol=1e-5, atol=near_zero)

    def test_moments(self, device: DeviceModel) -> None:
        """Mean and standard deviation of 2^20 devices match the closed forms."""
        for stream, level in enumerate(self.levels):
            _check_moments(_devices_of(device, level, stream=stream), device, level)

    def test_one_number_per_device(self, device: DeviceModel) -> None:
        """Devices of one level differ: no draw per level, tensor or row."""
        weight = np.ones((256, 256), np.float32)
        programmed = program_weight(weight, device, **_CHIP)
        assert len(np.unique(programmed)) > 0.95 * weight.size

    def test_a_chip_is_one_draw_for_life(self, device: DeviceModel) -> None:
        """Programming the same chip again gives the same bits, whatever was asked for in between."""
        weight = _weights()
        first = program_weight(weight, device, **_CHIP)
        program_weight(weight, device, **{**_CHIP, "chip": 13})
        np.testing.assert_array_equal(program_weight(weight, device, **_CHIP), first)

    def test_every_process_makes_the_same_chip(self, device: DeviceModel) -> None:
        """A chip is its number, in any process."""
        make = type(device)
        task = json.dumps([make.__module__, make.__qualname__, device.attributes(), _CHIP])
        command = [sys.executable, "-c", _PROGRAM, task]
        run = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own code)
        weight = np.linspace(-1, 1, 1000, dtype=np.float32)
        expected = hashlib.sha256(program_weight(weight, device, **_CHIP).tobytes()).hexdigest()
        assert run.stdout.strip() == expected

    @pytest.mark.parametrize("change", [{"chip": 13}, {"stream": 4}, {"seed": 17}, {"copy": 1}])
    def test_independent(self, device: DeviceModel, change: dict[str, int]) -> None:
        """Another chip, weight, family or copy: no correlation over 2^20 devices."""
        one, other = (_deviations_of(device, self.levels[-1], **where) for where in ({}, change))
        assert abs(np.mean(one * other)) < DEVIATIONS / np.sqrt(DRAWS)

    def test_neighbours_are_independent(self, device: DeviceModel) -> None:
        """Devices next to each other, and those that share a Philox block, are not correlated."""
        deviation = _deviations_of(device, self.levels[-1])
        for lag in (1, 16, 32, 64):
            correlation = np.mean(deviation[lag:] * deviation[:-lag])
            assert abs(correlation) < DEVIATIONS / np.sqrt(DRAWS - lag), lag

    @pytest.mark.parametrize("copies", [2, 5])
    def test_copies(self, device: DeviceModel, copies: int) -> None:
        """Several devices per weight: the mean of them, the same bits in the library, close in the body."""
        weight = _weights()
        each = [program_weight(weight, device, **_CHIP, copy=copy) for copy in range(copies)]
        expected = program_weight(weight, device, **_CHIP, copies=copies)
        np.testing.assert_allclose(expected, np.mean(each, 0, np.float64), rtol=1e-5, atol=1e-6)
        self._check_ops(device, weight, expected, copies=Copies(copies))
        drawn = _devices_of(device, self.levels[0], copies=copies)
        deviation = device.std(self.levels[0], FULL) / np.sqrt(copies)
        squares = (drawn - device.mean(self.levels[0], FULL)) ** 2
        assert abs(squares.mean() - deviation**2) < DEVIATIONS * squares.std() / np.sqrt(DRAWS)

    @pytest.mark.parametrize("perm", [None, [1, 0]])
    def test_extra_copies(self, device: DeviceModel, perm: list[int] | None) -> None:
        """Some rows with one device more: the bits of that many devices, everywhere; close in the body."""
        weight, copies = _weights(), Copies(2, 3, 7)
        axis, row_axis = (1, 0) if perm is None else (0, 1)
        where = {**_CHIP, "column_axis": axis}
        fewer, many = (program_weight(weight, device, **where, copies=count) for count in (2, 3))
        rows = np.arange(weight.shape[row_axis]) % 7 < 3
        expected = np.where(rows[:, None] if row_axis == 0 else rows, many, fewer)
        more = copies.more(weight.shape, (row_axis,))
        held = program_weight(weight, device, **where, copies=2, more=more)
        np.testing.assert_array_equal(held, expected)
        self._check_torch(device, weight, expected, copies=2, more=more, column_axis=axis)
        self._check_ops(device, weight, expected, copies=copies, perm=perm)

    def test_faults(self, device: DeviceModel) -> None:
        """With any model: the moments of the mixture, the same bits everywhere."""
        faulty = dataclasses.replace(device, stuck_low=0.05, stuck_high=0.03)
        for stream, level in enumerate(self.levels):
            _check_moments(_devices_of(faulty, level, stream=stream), faulty, level)
        weight = _weights()
        expected = program_weight(weight, faulty, **_CHIP, copies=2)
        self._check_torch(faulty, weight, expected, copies=2)
        self._check_ops(faulty, weight, expected, copies=Copies(2))

    @pytest.mark.parametrize("floor", [0.0, 0.3])
    @pytest.mark.parametrize("perm", [None, [1, 0]])
    def test_full_scale_of_columns(self, device: DeviceModel, floor: float, perm: list[int] | None) -> None:
        """Columns with a full scale of their own: what is largest in one column does not touch the others."""
        if not isinstance(device, ScaledModel):
            pytest.skip("the model has no full scale")
        device = dataclasses.replace(device, scale_floor=floor)
        weight, axis = _weights(), 1 if perm is None else 0
        weight[2, 3] = 50.0
        expected = program_weight(weight, device, **_CHIP, column_axis=axis)
        self._check_torch(device, weight, expected, column_axis=axis)
        self._check_ops(device, weight, expected, perm=perm)
        if floor == 0:
            alone = dataclasses.replace(device, scale_floor=1.0)
            column: Any = (slice(None), 7) if axis else 7
            others = np.zeros_like(weight)
            others[column] = weight[column]
            np.testing.assert_array_equal(program_weight(others, alone, **_CHIP)[column], expected[column])

    def test_a_weight_of_zeros(self, device: DeviceModel) -> None:
        """No full scale: nothing to divide by, and nothing to vary."""
        weight = np.zeros((3, 70), np.float32)
        expected = program_weight(weight, device, **_CHIP)
        np.testing.assert_array_equal(expected, 0)
        self._check_ops(device, weight, expected)

    def test_training_formula(self, device: DeviceModel) -> None:
        """Noise for training has the same moments, repeats with its generator, lets gradients through."""
        torch = pytest.importorskip("torch")
        for level in (self.levels[-1], 0.0):
            start = torch.full((DRAWS + 1,), level)
            start[0] = FULL
            weight = start.requires_grad_()
            draws = (TorchDraws(weight, torch.Generator().manual_seed(5)) for _ in range(2))
            one, again = (device.program(weight, draw, torch) for draw in draws)
            assert torch.equal(one, again)
            if level:  # what multiplies a weight of 0 has no deviation to measure by
                _check_moments(one.detach().numpy()[1:].astype(np.float64), device, level)
            (gradient,) = torch.autograd.grad(one.sum(), weight)
            assert torch.isfinite(gradient).all()
            assert gradient[1:].abs().mean() > 0, f"a weight of {level} would stay where it is"

    def _check_torch(
        self, device: DeviceModel, weight: np.ndarray, expected: np.ndarray, **where: Any
    ) -> None:
        torch = pytest.importorskip("torch")
        programmed = program_weight(torch.from_numpy(weight), device, **_CHIP, **where, xp=torch).numpy()
        assert expected.dtype == programmed.dtype == np.float32
        np.testing.assert_array_equal(programmed.view(np.uint32), expected.view(np.uint32))

    def _check_ops(self, device: DeviceModel, weight: np.ndarray, expected: np.ndarray, **more: Any) -> None:
        """The native op computes with the same weights; its function body with close ones."""
        if not self.in_ops:
            return
        if has_library():
            np.testing.assert_array_equal(_programmed_by_op(device, weight, bodies=False, **more), expected)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(WITHOUT_LIBRARY, "1")
            programmed = _programmed_by_op(device, weight, bodies=True, **more)
        near_zero = self.near_zero * np.abs(expected).max()
        np.testing.assert_allclose(programmed, expected, rtol=1e-5, atol=near_zero)


def _weights() -> np.ndarray:
    """Weights of many sizes, not a multiple of a Philox group, with zeros of both signs."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((37, 29)) * 10.0 ** rng.uniform(-3, 1, (37, 29))).astype(np.float32)
    weight[0, :2] = 0.0, -0.0
    return weight


@functools.lru_cache(maxsize=8)
def _devices_of(device: DeviceModel, level: float, **where: int) -> np.ndarray:
    """2^20 programmed devices of one weight, in a tensor whose full scale is `FULL`; float64."""
    weight = np.full(DRAWS + 1, level, np.float32)
    weight[0] = FULL
    programmed: np.ndarray = program_weight(weight, device, **{**_CHIP, **where})
    return programmed[1:].astype(np.float64)


def _deviations_of(device: DeviceModel, level: float, **where: int) -> np.ndarray:
    """The same, less their mean, over their standard deviation."""
    drawn = _devices_of(device, level, **where)
    deviations: np.ndarray = (drawn - device.mean(level, FULL)) / device.std(level, FULL)
    return deviations


def _check_moments(programmed: np.ndarray, device: DeviceModel, level: float) -> None:
    """Compares a sample's mean and variance with the closed forms, by their standard errors."""
    mean, std = float(device.mean(level, FULL)), float(device.std(level, FULL))
    assert abs(programmed.mean() - mean) < DEVIATIONS * std / np.sqrt(programmed.size)
    squares = (programmed - mean) ** 2
    assert abs(squares.mean() - std**2) < DEVIATIONS * squares.std() / np.sqrt(programmed.size)


def _programmed_by_op(
    device: DeviceModel,
    weight: np.ndarray,
    *,
    bodies: bool,
    copies: Copies = SINGLE,
    perm: list[int] | None = None,
) -> np.ndarray:
    """What AnalogMatMul computes with, as stored, read out by multiplying the unit matrix."""
    attributes: dict[str, Any] = {"device": device.name, **device.attributes()}
    attributes |= {"seed": _CHIP["seed"], "stream": _CHIP["stream"]}
    attributes |= copies.attributes()
    attributes |= {} if perm is None else {ops.WEIGHT_PERM: perm}
    node = helper.make_node(
        ops.ANALOG_MATMUL, ["x", "w", ops.CHIP_INPUT], ["y"], domain=ops.DOMAIN, **attributes
    )
    model = _model([node], weight)
    if bodies:
        model.functions.extend(function_bodies([node], BITWISE_OPSET))
    rows = weight.shape[0 if perm is None else perm[0]]
    effective = Session(model).run(np.eye(rows, dtype=np.float32), chip=_CHIP["chip"])[0]
    return effective if perm is None else effective.transpose(perm)


def _programmed_upstream(device: DeviceModel, weight: np.ndarray, *, copies: int) -> np.ndarray:
    """The same through a node that programs the weight in front of an analog node."""
    where = {"seed": _CHIP["seed"], "stream": _CHIP["stream"], "copies": copies}
    program = program_node(device, "w", ops.CHIP_INPUT, "programmed", **where)
    inputs = ["x", program.output[0], ops.CHIP_INPUT]
    node = helper.make_node(ops.ANALOG_MATMUL, inputs, ["y"], domain=ops.DOMAIN, device=ops.PROGRAMMED)
    model = _model([program, node], weight)
    model.opset_import.append(helper.make_opsetid(PROGRAM_DOMAIN, 1))
    model.functions.append(program_function(type(device), BITWISE_OPSET))
    model.functions.extend(function_bodies([node], BITWISE_OPSET))
    return Session(model).run(np.eye(len(weight), dtype=np.float32), chip=_CHIP["chip"])[0]


def _model(nodes: list[NodeProto], weight: np.ndarray) -> ModelProto:
    """A model of analog nodes from `x` to `y` with the weight `w`."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None]),
        helper.make_tensor_value_info(ops.CHIP_INPUT, TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(0), ops.CHIP_INPUT)]
    opsets = [helper.make_opsetid("", BITWISE_OPSET), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
    graph = helper.make_graph(nodes, "device", inputs, outputs, constants)
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, {ops.META_CHIP_INPUT: ops.CHIP_INPUT})
    return model
