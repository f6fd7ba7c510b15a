"""Phase-change memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.runtime.devices.base import DEVICE_CONFIG, Preset
from cnpass.runtime.devices.pair import (
    Normals,
    PairModel,
    at_least_zero,
    clamp,
    normal_cdf,
    polynomial,
    rectified_moments,
)
from cnpass.runtime.numerics import Array, Functions
from cnpass.runtime.ops import Purpose

_LEAST = 1e-3  # of g_max; every clamp below has taken hold there
_MU = (-0.0155, 0.0244, 0.049, 0.1)  # slope in ln x, value at x = 1, least and largest
_SPREAD = (-0.0125, -0.0059, 0.008, 0.045)
_Q = 0.0088
_Q_POWER = -0.65
_Q_LARGEST = 0.2
_NOTHING_LEFT = 80.0  # exp(-80) of a conductance; the exact exponential ends at 87


def _coefficient(power: int, default: float) -> float:
    return Field(
        default=default,
        kw_only=True,
        ge=-1e4,
        le=1e4,
        allow_inf_nan=False,
        description=f"programming noise: coefficient of (g / g_max)^{power}",
        json_schema_extra={"unit": "uS"},
    )


def _factor(what: str) -> float:
    return Field(
        default=1.0,
        kw_only=True,
        ge=0.0,
        le=10.0,
        allow_inf_nan=False,
        description=f"factor on {what}; 0 switches it off",
        json_schema_extra={"unit": "1"},
    )


@dataclass(frozen=True, config=DEVICE_CONFIG)
class Pcm(PairModel):
    """Pairs of phase-change devices: programming noise, drift, and noise of low frequency.

    With x = g_target / g_max, independent normals n1, n2, n3 per device, and T = t + t0:

        programming  g_p = max(0, g_target + program_scale (c0 + c1 x + c2 x^2 + c3 x^3) g_max / g_ref n1)
        drift        g_d = g_p (T / t0)^-nu, nu = drift_scale |mu + s n2|,
                     mu = -0.0155 ln x + 0.0244 within 0.049 .. 0.1,
                     s = -0.0125 ln x - 0.0059 within 0.008 .. 0.045
        1/f noise    g = max(0, g_d (1 + read_scale Q sqrt(ln((T + t_read) / (2 t_read))) n3)),
                     Q = min(0.0088 x^-0.65, 0.2)

    The 1/f noise is one draw for the life of a chip, as in aihwkit: it stands for the slow part, which no
    average over samples removes. Q follows the paper in taking x of the target; aihwkit takes that of g_p.
    Time is counted from the first reading t0 after programming, so t = 0 means that reading. The digital side
    multiplies by (T / t0)^compensated_nu: a drift compensation that needs no measurement.
    """

    name: ClassVar[str] = "pcm"
    formula: ClassVar[str] = (
        "w' = sign(w) F (g1 - g2) / (g_max - g_min),"
        " g = max(0, g_target + noise(x) n1) (T / t0)^-nu(x, n2) (1 + q(x, T) n3)"
    )
    source: ClassVar[str] = (
        "Joshi et al., Nature Communications 11, 2473 (2020); Nandakumar et al., ICECS 2019; as in aihwkit"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "joshi": Preset({}, "Joshi et al., Nature Communications 11, 2473 (2020), as in aihwkit"),
        "crosssim": Preset(
            {"on_off": 100.0, "c0": 0.28638599, "c1": 1.896431, "c2": -1.11729375}
            | {"drift_scale": 0.0, "read_scale": 0.0},
            "Joshi et al. 2020, programming noise only, in CrossSim's fit of the same figure",
        ),
        "hermes-1": Preset(
            {"g_max": 10.35, "g_ref": 10.35, "t0": 200.0, "t_read": 512e-9}
            | {"c0": 0.15781817, "c1": 2.32443916, "c2": -2.16310839, "c3": 0.68841818}
            | {"drift_scale": 0.0, "read_scale": 0.0},
            "Le Gallo et al., Nature Electronics 6, 680 (2023), one device a side, programming noise only",
        ),
        "hermes-2": Preset(
            {"g_max": 20.7, "g_ref": 20.7, "t0": 300.0, "t_read": 512e-9}
            | {"c0": 0.16603222, "c1": 4.71806468, "c2": -8.48101252, "c3": 4.68961419}
            | {"drift_scale": 0.0, "read_scale": 0.0},
            "Le Gallo et al., Nature Electronics 6, 680 (2023), two devices a side, programming noise only",
        ),
    }

    t: float = Field(
        default=0.0,
        kw_only=True,
        ge=0.0,
        le=1e10,
        allow_inf_nan=False,
        description="time since the first reading",
        json_schema_extra={"unit": "s"},
    )
    t0: float = Field(
        default=20.0,
        kw_only=True,
        ge=1e-3,
        le=1e6,
        allow_inf_nan=False,
        description="time from programming to the first reading",
        json_schema_extra={"unit": "s"},
    )
    t_read: float = Field(
        default=250e-9,
        kw_only=True,
        ge=1e-10,
        le=1e-4,
        allow_inf_nan=False,
        description="duration of a reading",
        json_schema_extra={"unit": "s"},
    )
    g_ref: float = Field(
        default=25.0,
        kw_only=True,
        ge=0.001,
        le=1e4,
        allow_inf_nan=False,
        description="largest conductance of the devices that the coefficients were measured on",
        json_schema_extra={"unit": "uS"},
    )
    c0: float = _coefficient(0, 0.26348)
    c1: float = _coefficient(1, 1.9650)
    c2: float = _coefficient(2, -1.1731)
    c3: float = _coefficient(3, 0.0)
    program_scale: float = _factor("the programming noise")
    drift_scale: float = _factor("the drift exponents")
    read_scale: float = _factor("the 1/f noise")
    compensated_nu: float = Field(
        default=0.0,
        kw_only=True,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="drift exponent that the digital side makes up for",
        json_schema_extra={"unit": "1"},
    )

    @classmethod
    def conductance(
        cls, ratio: Array, normals: Normals, functions: Functions, parameters: Mapping[str, Array]
    ) -> Array:
        """See `PairModel.conductance`."""
        target = cls.target(ratio, parameters)
        x = target / parameters["g_max"]
        sigma = polynomial(x, tuple(parameters[f"c{power}"] for power in range(4)))
        sigma = sigma * (parameters["program_scale"] * parameters["g_max"] / parameters["g_ref"])
        programmed = at_least_zero(target + normals(Purpose.PROGRAMMING) * sigma, functions)

        log_x = functions.log(functions.where(x > _LEAST, x, _LEAST))
        mu, spread = (
            clamp(log_x * slope + at_one, least, largest, functions)
            for slope, at_one, least, largest in (_MU, _SPREAD)
        )
        nu = functions.abs(normals(Purpose.DRIFT_EXPONENT) * spread + mu) * parameters["drift_scale"]
        decay = nu * cls._log_time(functions, parameters)
        drifted = programmed * functions.exp(-functions.where(decay < _NOTHING_LEFT, decay, _NOTHING_LEFT))

        q = functions.exp(log_x * _Q_POWER) * _Q
        q = functions.where(q > _Q_LARGEST, _Q_LARGEST, q)
        reading = parameters["t_read"]
        span = (parameters["t"] + parameters["t0"] + reading) / (reading + reading)
        read = q * (functions.sqrt(functions.log(span)) * parameters["read_scale"])
        return drifted * at_least_zero(normals(Purpose.SLOW_NOISE) * read + 1.0, functions)

    @classmethod
    def _log_time(cls, functions: Functions, parameters: Mapping[str, Array]) -> Array:
        return functions.log((parameters["t"] + parameters["t0"]) / parameters["t0"])

    @classmethod
    def gain(cls, functions: Functions, parameters: Mapping[str, Array]) -> Array:
        """See `PairModel.gain`."""
        return functions.exp(cls._log_time(functions, parameters) * parameters["compensated_nu"])

    def nominal_gain(self) -> float:
        """See `PairModel.nominal_gain`."""
        return math.exp(self.compensated_nu * math.log((self.t + self.t0) / self.t0))

    def conductance_moments(self, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `PairModel.conductance_moments`; the three factors are independent."""
        target = self.nominal_target(ratio)
        x = target / self.g_max
        sigma = np.abs(polynomial(x, tuple(np.asarray(c) for c in (self.c0, self.c1, self.c2, self.c3))))
        sigma = sigma * self.program_scale * self.g_max / self.g_ref
        programmed = rectified_moments(target, sigma)

        log_x = np.log(np.maximum(x, _LEAST))
        mu, spread = (
            np.clip(slope * log_x + at_one, least, largest)
            for slope, at_one, least, largest in (_MU, _SPREAD)
        )
        decay = self.drift_scale * math.log((self.t + self.t0) / self.t0)
        drift = [
            sum(
                np.exp(-sign * power * decay * mu + (power * decay * spread) ** 2 / 2)
                * normal_cdf(sign * mu / spread - power * decay * spread)
                for sign in (1, -1)
            )
            for power in (1, 2)
        ]
        q = np.minimum(_Q * np.exp(_Q_POWER * log_x), _Q_LARGEST)
        slow = math.log((self.t + self.t0 + self.t_read) / (2 * self.t_read))
        read = rectified_moments(np.array(1.0), q * math.sqrt(slow) * self.read_scale)
        first, second = (programmed[i] * drift[i] * read[i] for i in (0, 1))
        return first, second - first**2
