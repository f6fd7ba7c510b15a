"""Weights as the difference of two conductances."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices.base import DEVICE_CONFIG, FULL_SCALE, Draws, ScaledModel
from cnpass.runtime.numerics import Array, Functions
from cnpass.runtime.ops import Purpose

Normals = Callable[[Purpose], Array]
"""Standard normals for a purpose, of one of the two devices."""

_SECOND = {
    Purpose.PROGRAMMING: Purpose.SECOND_DEVICE,
    Purpose.FAULTS: Purpose.SECOND_FAULTS,
    Purpose.DRIFT_EXPONENT: Purpose.SECOND_DRIFT_EXPONENT,
    Purpose.SLOW_NOISE: Purpose.SECOND_SLOW_NOISE,
}


@dataclass(frozen=True, config=DEVICE_CONFIG)
class PairModel(ScaledModel):
    """Base of models in which a weight is a pair of devices on two columns that are subtracted.

    One device, on the side of the weight's sign, is programmed to the conductance
    g_min + (g_max - g_min) |w| / F, the other to g_min, where F is the full scale. Each varies on its own,
    drifts without a sign, and can be stuck at g_min or g_max on its own.
    """

    handles_faults: ClassVar[bool] = True

    g_max: float = Field(
        default=25.0,
        kw_only=True,
        ge=0.001,
        le=1e4,
        allow_inf_nan=False,
        description="conductance of a weight of the full scale",
        json_schema_extra={"unit": "uS"},
    )
    on_off: float = Field(
        default=1e6,
        kw_only=True,
        ge=1.1,
        le=1e6,
        allow_inf_nan=False,
        description="ratio of the largest and the smallest conductance",
        json_schema_extra={"unit": "1"},
    )

    @classmethod
    @abstractmethod
    def conductance(
        cls, ratio: Array, normals: Normals, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """The conductance in uS that a device holds, at least 0.

        Args:
            ratio: where its target lies between g_min (0) and g_max (1); in the shape of the weight, or 0.0.
            normals: random numbers of this device.
            functions: see `DeviceModel.respond`.
            parameters: see `DeviceModel.respond`.
        """

    @abstractmethod
    def conductance_moments(self, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of `conductance` in closed form; arguments and results are float64."""

    @classmethod
    def gain(cls, functions: Functions, parameters: Mapping[str, Array]) -> Array:
        """What the digital side multiplies the tile's results by."""
        del functions, parameters
        return 1.0

    @classmethod
    def target(cls, ratio: Array, parameters: Mapping[str, Array]) -> Array:
        """The conductance asked for, in uS."""
        low = parameters["g_max"] / parameters["on_off"]
        return ratio * (parameters["g_max"] - low) + low

    @classmethod
    def respond(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """See `DeviceModel.respond`."""
        scale, high = parameters[FULL_SCALE], parameters["g_max"]
        low = high / parameters["on_off"]
        # The bits of abs, but with a gradient where a weight is 0, which could never leave it otherwise.
        magnitude = functions.where(weight < 0.0, 0.0 - weight, weight + 0.0)
        ratio = magnitude / functions.where(scale > 0.0, scale, 1.0)
        active = cls.conductance(ratio, draws.normals, functions, parameters)
        active = cls.stick(active, low, high, draws, functions, parameters)
        idle = cls.conductance(0.0, lambda purpose: draws.normals(_SECOND[purpose]), functions, parameters)
        idle = cls.stick(idle, low, high, draws, functions, parameters, _SECOND[Purpose.FAULTS])
        size = (active - idle) * (scale / (high - low) * cls.gain(functions, parameters))
        return functions.where(weight < 0.0, -size, size)

    def moments(self, weight: np.ndarray, full_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `DeviceModel.moments`; faults are included, since they are those of single devices."""
        low, high = np.array(self.g_max / self.on_off), np.array(self.g_max)
        ratio = np.abs(weight) / np.where(full_scale > 0, full_scale, 1.0)
        active, idle = (
            self._with_faults(*self.conductance_moments(where), low, high) for where in (ratio, np.zeros(()))
        )
        factor = np.where(weight < 0, -1.0, 1.0) * full_scale / (high - low) * self.nominal_gain()
        return factor * (active[0] - idle[0]), factor**2 * (active[1] + idle[1])

    def nominal_gain(self) -> float:
        """`gain` in float64."""
        return 1.0

    def nominal_target(self, ratio: np.ndarray) -> np.ndarray:
        """`target` in float64."""
        low = self.g_max / self.on_off
        return ratio * (self.g_max - low) + low


def at_least_zero(x: Array, functions: Functions) -> Array:
    """`x`, or 0 where that is below."""
    return functions.where(x > 0.0, x, 0.0)


def clamp(x: Array, low: float, high: float, functions: Functions) -> Array:
    """`x` within bounds."""
    return functions.where(x < low, low, functions.where(x > high, high, x))


def polynomial(x: Array, coefficients: tuple[Array, ...]) -> Array:
    """Horner's scheme; the constant comes first."""
    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def rectified_moments(mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square of max(0, N(mean, deviation^2))."""
    safe = np.where(deviation > 0, deviation, 1.0)
    z = np.where(deviation > 0, mean / safe, np.where(mean > 0, np.inf, -np.inf))
    above = normal_cdf(z)
    density = np.exp(-np.minimum(z**2, 1e4) / 2) / math.sqrt(2 * math.pi)
    first = mean * above + deviation * density
    return first, (mean**2 + deviation**2) * above + mean * deviation * density


def normal_cdf(z: np.ndarray) -> np.ndarray:
    """Distribution function of the standard normal."""
    values: np.ndarray = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), otypes=[np.float64])(z)
    return values
