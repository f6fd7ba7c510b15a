"""Variation in proportion to the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices.base import DEVICE_CONFIG, DeviceModel, Draws
from cnpass.runtime.numerics import Array, Functions


@dataclass(frozen=True, config=DEVICE_CONFIG)
class Proportional(DeviceModel):
    """Every programmed weight is off by a normal factor of mean 1.

    w' = w (1 + sigma n), n ~ N(0, 1), independent for every weight and chip. Zero weights stay zero; a factor
    below 0 turns the sign, as it does in CrossSim's state-proportional error on a pair of devices.
    """

    name: ClassVar[str] = "proportional"
    formula: ClassVar[str] = "w' = w (1 + sigma n), n ~ N(0, 1)"
    source: ClassVar[str] = "Xiao et al., IEEE Circuits and Systems Magazine 22(4), 2022 (CrossSim)"

    sigma: float = Field(
        default=0.1,
        ge=0.0,
        le=2.0,
        allow_inf_nan=False,
        description="standard deviation of a programmed weight, as a fraction of that weight",
        json_schema_extra={"unit": "1"},
    )

    @classmethod
    def respond(
        cls, weight: Array, draws: Draws, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """See `DeviceModel.respond`."""
        del functions
        return weight * (draws.normals() * parameters["sigma"] + 1.0)

    def moments(self, weight: np.ndarray, full_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `DeviceModel.moments`."""
        del full_scale
        return weight, (self.sigma * weight) ** 2
