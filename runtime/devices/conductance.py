"""Pairs of devices with few levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices.base import DEVICE_CONFIG
from cnpass.runtime.devices.pair import Normals, PairModel, at_least_zero, rectified_moments
from cnpass.runtime.numerics import Array, Functions
from cnpass.runtime.ops import Purpose


@dataclass(frozen=True, config=DEVICE_CONFIG)
class Conductance(PairModel):
    """Pairs of devices with a limited number of levels and the same programming noise at each.

    Every device is programmed to the nearest of `levels` conductances from g_min = g_max / on_off to g_max in
    equal steps, and ends up g = max(0, g_level + noise n), n ~ N(0, 1). A weight is the difference of its two
    devices: w' = sign(w) F (g_active - g_idle) / (g_max - g_min), F being the full scale. CrossSim calls the
    noise state-independent error, and clips it at 0 as well.
    """

    name: ClassVar[str] = "conductance"
    formula: ClassVar[str] = (
        "w' = sign(w) F (g1 - g2) / (g_max - g_min), g = max(0, nearest level + noise n), n ~ N(0, 1)"
    )
    source: ClassVar[str] = "Xiao et al., IEEE Circuits and Systems Magazine 22(4), 2022 (CrossSim)"

    on_off: float = Field(
        default=100.0,
        kw_only=True,
        ge=1.1,
        le=1e6,
        allow_inf_nan=False,
        description="ratio of the largest and the smallest conductance",
        json_schema_extra={"unit": "1"},
    )
    levels: float = Field(
        default=16.0,
        kw_only=True,
        ge=2.0,
        le=65536.0,
        multiple_of=1.0,
        description="conductances that a device can be programmed to, a whole number",
        json_schema_extra={"unit": "1"},
    )
    noise: float = Field(
        default=0.5,
        kw_only=True,
        ge=0.0,
        le=1e4,
        allow_inf_nan=False,
        description="standard deviation of a programmed conductance",
        json_schema_extra={"unit": "uS"},
    )

    @classmethod
    def conductance(
        cls, ratio: Array, normals: Normals, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """See `PairModel.conductance`."""
        steps = parameters["levels"] - 1.0
        level = functions.floor(ratio * steps + 0.5) / steps
        if getattr(ratio, "requires_grad", False):  # steps have no slope: train through the straight line
            level = ratio + (level - ratio).detach()
        noise = normals(Purpose.PROGRAMMING) * parameters["noise"]
        return at_least_zero(cls.target(level, parameters) + noise, functions)

    def conductance_moments(self, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `PairModel.conductance_moments`."""
        # In float32, as the formula: between two levels the last bit decides.
        steps = np.float32(self.levels - 1)
        level = np.floor(ratio.astype(np.float32) * steps + np.float32(0.5)).astype(np.float64) / steps
        first, second = rectified_moments(self.nominal_target(level), np.array(self.noise))
        return first, second - first**2
