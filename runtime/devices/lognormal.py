"""Log-normal variation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices.base import DEVICE_CONFIG, DeviceModel, Draws
from cnpass.runtime.numerics import Array, Functions


@dataclass(frozen=True, config=DEVICE_CONFIG)
class LogNormal(DeviceModel):
    """Every programmed weight is off by a log-normal factor of median 1.

    w' = w exp(sigma n), n ~ N(0, 1), independent for every weight and chip. The mean factor is
    exp(sigma^2 / 2); zero weights stay zero and signs stay. The normals end at 5.77, which at the
    largest sigma allowed takes 8e-5 off the mean.
    """

    name: ClassVar[str] = "lognormal"
    formula: ClassVar[str] = "w' = w exp(sigma n), n ~ N(0, 1)"
    source: ClassVar[str] = "Eldebiky et al., CorrectNet, DATE 2023, arXiv 2211.14917"

    sigma: float = Field(
        default=0.5,
        ge=0.0,
        le=2.0,
        allow_inf_nan=False,
        description="standard deviation of the logarithm of a programmed weight",
        json_schema_extra={"unit": "1"},
    )

    @classmethod
    def respond(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """See `DeviceModel.respond`."""
        return weight * functions.exp(draws.normals() * parameters["sigma"])

    def moments(self, weight: np.ndarray, full_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `DeviceModel.moments`."""
        del full_scale
        variance = self.sigma**2
        return weight * math.exp(variance / 2), weight**2 * (math.expm1(variance) * math.exp(variance))
