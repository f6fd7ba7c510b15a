"""Additive variation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices.base import DEVICE_CONFIG, FULL_SCALE, Draws, ScaledModel
from cnpass.runtime.numerics import Array, Functions


@dataclass(frozen=True, config=DEVICE_CONFIG)
class Gaussian(ScaledModel):
    """Every programmed weight is off by a normal amount, whatever its size.

    w' = w + sigma F n, n ~ N(0, 1), independent for every weight and chip; F is the full scale, the largest
    absolute weight of the tensor or, with `scale_floor` below 1, of the weight's column. Zero weights vary
    like all others. CrossSim calls it state-independent error, aihwkit additive noise on the weights.
    """

    name: ClassVar[str] = "gaussian"
    formula: ClassVar[str] = "w' = w + sigma F n, n ~ N(0, 1), F = largest |w| of the tensor or the column"
    source: ClassVar[str] = (
        "Joshi et al., Nature Communications 11, 2473 (2020), whose training adds this noise to the weights"
    )

    sigma: float = Field(
        default=0.05,
        ge=0.0,
        le=2.0,
        allow_inf_nan=False,
        description="standard deviation of a programmed weight, as a fraction of the full scale",
        json_schema_extra={"unit": "1"},
    )

    @classmethod
    def respond(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """See `DeviceModel.respond`."""
        del functions
        return weight + draws.normals() * (parameters["sigma"] * parameters[FULL_SCALE])

    def moments(self, weight: np.ndarray, full_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `DeviceModel.moments`."""
        return weight, np.broadcast_to((self.sigma * full_scale) ** 2, weight.shape)
