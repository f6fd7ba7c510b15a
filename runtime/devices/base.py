"""What a device model is: one formula, its parameters with units, its source, its closed-form moments."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as validated

from cnpass.errors import UsageError
from cnpass.runtime.numerics import Array, Functions
from cnpass.runtime.ops import STUCK_HIGH, STUCK_LOW, Purpose

DEVICE_CONFIG = ConfigDict(extra="forbid")

FULL_SCALE = "full_scale"
"""Name under which a formula finds the full scale among its parameters."""

SCALE_FLOOR = "scale_floor"
"""The field of `ScaledModel`."""

_FAULTS = (STUCK_LOW, STUCK_HIGH)
_ROUNDING = 1e-6  # two float32 rates may add up to this much more than 1


class Draws(Protocol):
    """Source of the random numbers of one weight."""

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:
        """Standard normals, one per element of the weight; another purpose gives independent ones."""


@runtime_checkable
class FaultDraws(Draws, Protocol):
    """Source of random numbers that can say which devices are faulty, too."""

    def stuck(self, low: Array, high: Array, purpose: int = Purpose.FAULTS) -> tuple[Array, Array]:
        """Which devices are stuck low and which are stuck high, at these rates; never both."""


@dataclass(frozen=True)
class FieldDescription:
    """One parameter of a device model; a bound is None where there is none."""

    name: str
    default: float
    minimum: float | None
    maximum: float | None
    unit: str
    help: str


@dataclass(frozen=True)
class Preset:
    """A published set of parameters; those not named keep their default."""

    parameters: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class DeviceDescription:
    """What `cnpass devices show` prints."""

    name: str
    summary: str
    formula: str
    source: str
    fields: tuple[FieldDescription, ...]
    presets: Mapping[str, Preset] = field(default_factory=dict)


@validated(frozen=True, config=DEVICE_CONFIG)
class DeviceModel(ABC):
    """Statistics of programming one weight into one device (or into one pair of devices).

    Subclasses are frozen pydantic dataclasses; their fields are float parameters, each declared with
    `Field(description=..., json_schema_extra={"unit": ...})` and its range. They are the op's attributes.
    `cnpass.runtime.testing.DeviceContract` is the suite that each must pass.

    Faults go with every model: a device that is stuck low holds weight 0 and one that is stuck high holds the
    full scale with the sign of the weight, whatever the formula says. Both kinds are drawn once per chip,
    from the same integer, so that they exclude each other and their rates are exact.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    presets: ClassVar[Mapping[str, Preset]] = {}

    scaled: ClassVar[bool] = False
    """Whether the formula needs the full scale: the largest absolute weight, of the tensor or of a column."""

    handles_faults: ClassVar[bool] = False
    """Whether the formula itself puts in faults; only those of single devices within it need that."""

    stuck_low: float = Field(
        default=0.0,
        kw_only=True,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="rate of devices stuck at their lowest conductance",
        json_schema_extra={"unit": "1"},
    )
    stuck_high: float = Field(
        default=0.0,
        kw_only=True,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="rate of devices stuck at their highest conductance",
        json_schema_extra={"unit": "1"},
    )

    @model_validator(mode="after")
    def _rates_exclude_each_other(self) -> Self:
        if self.stuck_low + self.stuck_high > 1 + _ROUNDING:
            raise ValueError("stuck_low and stuck_high are more than 1 together")
        return self

    @classmethod
    @abstractmethod
    def respond(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """The formula: the weight that a chip holds when `weight` is asked for.

        It is written once and runs on NumPy arrays, torch tensors and traced ONNX values, so it uses
        operators and `functions` only, and no branch on a value. To give the same bits everywhere it divides
        by arrays only, never by a number.

        Args:
            weight: float32, any shape.
            draws: random numbers in the shape of `weight`, maybe with an axis of copies in front.
            functions: elementary functions for this kind of array.
            parameters: value of each field, as an array with one element; if the class is `scaled`, also
                `full_scale`, which broadcasts with `weight`.
        """

    @abstractmethod
    def moments(self, weight: np.ndarray, full_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the programmed weight in closed form, without faults.

        Args:
            weight: float64, any shape.
            full_scale: float64, broadcasts with `weight`.
        """

    def mean(self, weight: Array, full_scale: Array | None = None) -> np.ndarray:
        """Expected programmed weight, float64, in closed form.

        Args:
            weight: any shape.
            full_scale: broadcasts with `weight`; None takes the largest absolute weight given.
        """
        return self._statistics(weight, full_scale)[0]

    def std(self, weight: Array, full_scale: Array | None = None) -> np.ndarray:
        """Standard deviation of the programmed weight, float64, in closed form; arguments as for `mean`."""
        deviation: np.ndarray = np.sqrt(self._statistics(weight, full_scale)[1])
        return deviation

    def _statistics(self, weight: Array, full_scale: Array | None) -> tuple[np.ndarray, np.ndarray]:
        w = np.asarray(weight, np.float64)
        scale = np.abs(w).max(initial=0.0) if full_scale is None else full_scale
        scale = np.asarray(scale, np.float64)
        mean, variance = self.moments(w, scale)
        if self.handles_faults or not self.has_faults:
            return mean, variance
        return self._with_faults(mean, variance, np.zeros(()), np.where(w < 0, -scale, scale))

    def _with_faults(
        self, mean: np.ndarray, variance: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moments of a mixture of what is programmed and the two stuck values."""
        healthy = 1 - self.stuck_low - self.stuck_high
        mixed = healthy * mean + self.stuck_low * low + self.stuck_high * high
        squares = healthy * (variance + mean**2) + self.stuck_low * low**2 + self.stuck_high * high**2
        return mixed, squares - mixed**2

    @property
    def has_faults(self) -> bool:
        """Whether any device can be stuck."""
        return bool(self.stuck_low or self.stuck_high)

    @classmethod
    def parameter_names(cls) -> list[str]:
        """The parameters that every analog node with this model carries, the model's own first."""
        names = [item.name for item in fields(cls) if item.name not in _FAULTS]
        own = inspect.get_annotations(cls)
        return sorted(names, key=lambda name: name not in own)

    def attributes(self) -> dict[str, float]:
        """The parameters, by field name; with `device`, they are the attributes of an analog node.

        The rates of faults are among them only where there are faults.
        """
        names = [*self.parameter_names(), *(_FAULTS if self.has_faults else ())]
        return {name: getattr(self, name) for name in names}

    def program(
        self, weight: Array, draws: Draws, functions: Functions, column_axis: int | None = None
    ) -> Array:
        """Programmed weight.

        Args:
            weight: floating type, any shape with at least one element.
            draws: random numbers in the shape of `weight`.
            functions: elementary functions for this kind of array.
            column_axis: axis of `weight` along which crossbar columns are counted.

        Returns:
            Same shape, type and kind of array as `weight`.

        Raises:
            UsageError: the model gives every column a full scale of its own, and no axis is given.
        """
        parameters = {name: _one(value, weight) for name, value in self.attributes().items()}
        if self.scaled or self.has_faults:
            parameters[FULL_SCALE] = self._full_scale(weight, functions, column_axis, parameters)
        return self.assemble(weight, draws, functions, parameters)

    @classmethod
    def assemble(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """The formula, and faults where `parameters` hold their rates; arguments as for `respond`."""
        programmed = cls.respond(weight, draws, functions, parameters)
        if cls.handles_faults or STUCK_LOW not in parameters:
            return programmed
        scale = parameters[FULL_SCALE]
        high = functions.where(weight < 0.0, -scale, scale)
        return cls.stick(programmed, 0.0, high, draws, functions, parameters)

    @staticmethod
    def stick(
        healthy: Array,
        low: Array,
        high: Array,
        draws: Draws,
        functions: Functions,
        parameters: Mapping[str, Array],
        purpose: int = Purpose.FAULTS,
    ) -> Array:
        """`healthy`, but for the devices that are stuck at `low` or `high`; itself without fault rates.

        Raises:
            UsageError: `draws` cannot say which devices are faulty.
        """
        if STUCK_LOW not in parameters:
            return healthy
        if not isinstance(draws, FaultDraws):
            raise UsageError("stuck_low and stuck_high cannot be simulated here; leave them out")
        is_low, is_high = draws.stuck(parameters[STUCK_LOW], parameters[STUCK_HIGH], purpose)
        return functions.where(is_low, low, functions.where(is_high, high, healthy))

    def _full_scale(
        self, weight: Array, functions: Functions, axis: int | None, parameters: Mapping[str, Array]
    ) -> Array:
        magnitude = functions.abs(weight)
        largest = _largest(magnitude.reshape(1, -1))
        floor = getattr(self, SCALE_FLOOR, 1.0)
        if floor == 1:
            return largest
        if axis is None:
            raise UsageError(
                f"device {self.name!r} with scale_floor {floor:g} needs to know the crossbar's columns, "
                "which is not the case here; use scale_floor 1"
            )
        shape = [1] * weight.ndim
        shape[axis] = weight.shape[axis]
        columns = _largest(magnitude.swapaxes(0, axis).reshape(shape[axis], -1)).reshape(shape)
        least = largest * parameters[SCALE_FLOOR]
        return functions.where(columns > least, columns, least)

    @classmethod
    def describe(cls) -> DeviceDescription:
        """Name, one-line summary, formula, source, parameters and presets."""
        properties = TypeAdapter(cls).json_schema()["properties"]
        described = tuple(
            FieldDescription(
                name=name,
                default=properties[name]["default"],
                minimum=properties[name].get("minimum", properties[name].get("exclusiveMinimum")),
                maximum=properties[name].get("maximum", properties[name].get("exclusiveMaximum")),
                unit=properties[name]["unit"],
                help=properties[name]["description"],
            )
            for name in (*cls.parameter_names(), *_FAULTS)
        )
        summary = (cls.__doc__ or "").partition("\n")[0]
        return DeviceDescription(cls.name, summary, cls.formula, cls.source, described, cls.presets)


@validated(frozen=True, config=DEVICE_CONFIG)
class ScaledModel(DeviceModel):
    """Base of models whose formula is relative to the full scale, the weight of the largest conductance."""

    scaled: ClassVar[bool] = True

    scale_floor: float = Field(
        default=1.0,
        kw_only=True,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="least full scale of a column, as a fraction of the tensor's: with 1 all columns have the"
        " tensor's largest absolute weight, with 0 each its own",
        json_schema_extra={"unit": "1"},
    )


@dataclass(frozen=True)
class TorchDraws:
    """Random numbers for training: repeatable through the generator, not tied to a chip.

    Attributes:
        weight: torch.Tensor to draw for.
        generator: torch.Generator.
        copies: devices per weight; if several, what is drawn has an axis of them in front.
    """

    weight: Any
    generator: Any
    copies: int = 1

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:  # noqa: ARG002 (any two calls are independent)
        """Standard normals of torch."""
        import torch

        return self._drawn(torch.randn)

    def stuck(self, low: Array, high: Array, purpose: int = Purpose.FAULTS) -> tuple[Array, Array]:  # noqa: ARG002
        """Which devices are stuck, by uniform numbers of torch."""
        import torch

        uniform = self._drawn(torch.rand)
        return uniform < low, uniform >= 1.0 - high

    def _drawn(self, draw: Any) -> Any:
        place, dtype = self.generator.device, self.weight.dtype
        shape = (self.copies, *self.weight.shape) if self.copies > 1 else self.weight.shape
        drawn = draw(shape, generator=self.generator, device=place, dtype=dtype)
        return drawn.to(self.weight.device)


def _one(value: float, like: Array) -> Array:
    """An array with one element, of the type of `like` and where that is.

    Numbers would be float64 in NumPy and in what is derived from them, and float32 in the other runtimes.
    """
    if hasattr(like, "new_tensor"):
        return like.new_tensor([value])
    return np.array([value], like.dtype)


def _largest(rows: Array) -> Array:
    """The largest value of each row."""
    return rows.amax(1) if hasattr(rows, "amax") else rows.max(1)
