"""What a device model is: one formula, its parameters with units, its source, its closed-form moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from cnpass.runtime.numerics import Array, Functions
from cnpass.runtime.ops import Purpose

DEVICE_CONFIG = ConfigDict(extra="forbid")


class Draws(Protocol):
    """Source of the random numbers of one weight."""

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:
        """Standard normals, one per element of the weight; another purpose gives independent ones."""


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
class DeviceDescription:
    """What `cnpass devices show` prints."""

    name: str
    summary: str
    formula: str
    source: str
    fields: tuple[FieldDescription, ...]


class DeviceModel(ABC):
    """Statistics of programming one weight into one device (or into one pair of devices).

    Subclasses are frozen pydantic dataclasses; their fields are float parameters, each declared with
    `Field(description=..., json_schema_extra={"unit": ...})` and its range. They are the op's attributes.
    `cnpass.runtime.testing.DeviceContract` is the suite that each must pass.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]

    @classmethod
    @abstractmethod
    def respond(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """The formula: the weight that a chip holds when `weight` is asked for.

        It is written once and runs on NumPy arrays, torch tensors and traced ONNX values, so it uses
        operators and `functions` only, and no branch on a value.

        Args:
            weight: float32, any shape.
            draws: random numbers in the shape of `weight`.
            functions: elementary functions for this kind of array.
            parameters: value of each field.
        """

    @abstractmethod
    def mean(self, weight: Array) -> np.ndarray:
        """Expected programmed weight, float64, in closed form."""

    @abstractmethod
    def std(self, weight: Array) -> np.ndarray:
        """Standard deviation of the programmed weight, float64, in closed form."""

    def attributes(self) -> dict[str, float]:
        """The parameters, by field name; with `device`, they are the attributes of an analog node."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def program(self, weight: Array, draws: Draws, functions: Functions) -> Array:
        """Programmed weight; same shape, type and kind of array as `weight`."""
        return self.respond(weight, draws, functions, self.attributes())

    def perturb(self, weight: Any, generator: Any) -> Any:
        """Programmed weight for training: the same formula on torch's own random numbers, differentiable.

        Args:
            weight: torch.Tensor of any floating type, on any device.
            generator: torch.Generator; the numbers are drawn where it lives and moved to the weight.

        Returns:
            torch.Tensor like `weight`.
        """
        import torch

        return self.program(weight, _TorchDraws(weight, generator), cast(Functions, torch))

    @classmethod
    def describe(cls) -> DeviceDescription:
        """Name, one-line summary, formula, source and parameters."""
        schema = TypeAdapter(cls).json_schema()
        fields = tuple(
            FieldDescription(
                name=name,
                default=field["default"],
                minimum=field.get("minimum", field.get("exclusiveMinimum")),
                maximum=field.get("maximum", field.get("exclusiveMaximum")),
                unit=field["unit"],
                help=field["description"],
            )
            for name, field in schema["properties"].items()
        )
        summary = (cls.__doc__ or "").partition("\n")[0]
        return DeviceDescription(cls.name, summary, cls.formula, cls.source, fields)


@dataclass(frozen=True)
class _TorchDraws:
    """Random numbers for training: repeatable through the generator, not tied to a chip."""

    weight: Any
    generator: Any

    def normals(self, purpose: int = Purpose.PROGRAMMING) -> Array:  # noqa: ARG002 (any two calls are independent)
        import torch

        drawn = torch.randn(
            self.weight.shape, generator=self.generator, device=self.generator.device, dtype=self.weight.dtype
        )
        return drawn.to(self.weight.device)
