"""What stands around a crossbar: tiles, converters, read noise (docs/ops.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from cnpass.errors import ModelError
from cnpass.runtime import ops
from cnpass.runtime.copies import Copies
from cnpass.runtime.philox import read_normals

MAX_BITS = 16
SMALLEST_RANGE = 1e-30
LARGEST_RANGE = float(np.float32(1e30))  # as an attribute, which is float32 and lies a little above


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Quantiser:
    """A symmetric converter of `2^bits - 1` codes.

    Attributes:
        bits: 2 to 16.
        range: largest magnitude, of the highest code.
    """

    bits: int
    range: float

    @property
    def highest(self) -> int:
        """The highest code; the lowest is its negative."""
        return (1 << (self.bits - 1)) - 1

    @property
    def scale(self) -> np.float32:
        """Codes per unit."""
        return np.float32(self.highest / float(np.float32(self.range)))

    @property
    def step(self) -> np.float32:
        """Units per code."""
        return np.float32(float(np.float32(self.range)) / self.highest)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The codes of values, as floats of the same shape.

        Args:
            values: any float type; they are rounded to float32 before.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = values.astype(np.float32) * self.scale
        codes: np.ndarray = np.rint(np.clip(scaled, -self.highest, self.highest))
        return codes

    def quantise(self, values: np.ndarray) -> np.ndarray:
        """The values that the codes stand for: float32, same shape."""
        quantised: np.ndarray = self.codes(values) * self.step
        return quantised


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Periphery:
    """The periphery of one analog node; each field is the op's attribute of that name.

    Attributes:
        tile_rows: rows of a tile; 0: one tile holds everything.
        tile_cols: columns of a tile; 0: as above. Changes no result.
        dac_bits: bits of the converter in front; 0: none.
        adc_bits: bits of the converter behind every tile; 0: none.
        input_range: largest magnitude at the DAC, in units of X; 0: not set.
        output_range: largest magnitude at the ADC, in units of Y; 0: not set.
        read_noise: deviation of the noise of a reading over `output_range`.
        sample_rows: entries along the first axis of AnalogMatMul's X that belong to one sample.
    """

    tile_rows: int = Field(default=0, ge=0)
    tile_cols: int = Field(default=0, ge=0)
    dac_bits: int = Field(default=0, ge=0, le=MAX_BITS)
    adc_bits: int = Field(default=0, ge=0, le=MAX_BITS)
    input_range: float = Field(default=0.0, ge=0, le=LARGEST_RANGE, allow_inf_nan=False)
    output_range: float = Field(default=0.0, ge=0, le=LARGEST_RANGE, allow_inf_nan=False)
    read_noise: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    sample_rows: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in (ops.DAC_BITS, ops.ADC_BITS):
            if getattr(self, name) == 1:
                raise ValueError(f"attribute {name!r} is 1; a converter has 2 to {MAX_BITS} bits, 0 is none")
        for name in (ops.INPUT_RANGE, ops.OUTPUT_RANGE):
            if 0 < getattr(self, name) < SMALLEST_RANGE:
                raise ValueError(f"attribute {name!r} is below {SMALLEST_RANGE:g}")
        return self

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """The periphery that an analog node's attributes describe.

        Args:
            attributes: by name, as Python values; others than the periphery's are ignored.

        Raises:
            ModelError: a value is out of range; the text names the attribute.
        """
        try:
            return cls(**{name: attributes[name] for name in PERIPHERY if name in attributes})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            said = first["msg"].removeprefix("Value error, ")
            where = f"attribute {first['loc'][0]!r}: " if first["loc"] else ""
            raise ModelError(f"{where}{said}") from None

    @property
    def missing(self) -> str | None:
        """The range that is needed and not set, with what needs it; None if all is set."""
        needs = ((ops.INPUT_RANGE, ops.DAC_BITS), (ops.OUTPUT_RANGE, ops.ADC_BITS))
        for name, user in (*needs, (ops.OUTPUT_RANGE, ops.READ_NOISE)):
            if getattr(self, user) > 0 and getattr(self, name) == 0:
                return (
                    f"attribute {name!r} is 0, but {user!r} needs a range; the pass calibrate-ranges sets it"
                )
        return None

    def check(self) -> None:
        """Raise ModelError if a range is missing."""
        if self.missing is not None:
            raise ModelError(self.missing)

    @property
    def dac(self) -> Quantiser | None:
        """The converter in front of the crossbar."""
        return Quantiser(self.dac_bits, self.input_range) if self.dac_bits else None

    @property
    def adc(self) -> Quantiser | None:
        """The converter behind every tile."""
        return Quantiser(self.adc_bits, self.output_range) if self.adc_bits else None

    def deviation(self, chip: int) -> np.float32:
        """Standard deviation of the read noise on a chip, in units of Y."""
        if chip == ops.IDEAL_CHIP:
            return np.float32(0)
        return np.float32(np.float32(self.read_noise) * np.float32(self.output_range))

    def tiles(self, rows: int, copies: Copies) -> list[slice]:
        """The rows of the weight matrix that each tile holds.

        Raises:
            ModelError: a tile has no room for the copies.
        """
        copies.check(self.tile_rows)
        depth = copies.held(self.tile_rows) if self.tile_rows else max(1, rows)
        return [slice(first, min(first + depth, rows)) for first in range(0, rows, depth)]


PERIPHERY = tuple(Periphery.__dataclass_fields__)
"""Names of the attributes."""

NO_PERIPHERY = Periphery()


def read_out(
    partial_sums: Iterator[np.ndarray],
    periphery: Periphery,
    *,
    chip: int,
    seed: int,
    stream: int,
    first_sample: int,
) -> np.ndarray:
    """The digital sum of what the tiles' converters give.

    Args:
        partial_sums: of one tile after the other, float64 [samples, ...], the axes of a sample in the order
            of Y.
        periphery: converters and noise.
        chip: number of the chip; -1 has no read noise.
        seed: names the family of chips.
        stream: names the weight.
        first_sample: number of the first sample.

    Returns:
        float64, shaped as one partial sum.

    Raises:
        ModelError: a range is missing, or samples have no number.
    """
    periphery.check()
    adc, deviation = periphery.adc, periphery.deviation(chip)
    total: np.ndarray | None = None
    for number, exact in enumerate(partial_sums):
        value = exact
        samples, elements = len(value), math.prod(value.shape[1:])
        if deviation > 0 and samples:
            check_samples(first_sample, samples)
            numbers = np.arange(first_sample, first_sample + samples)
            drawn = read_normals(numbers, number * elements, elements, seed=seed, chip=chip, stream=stream)
            value = value + np.float64(deviation) * drawn.reshape(value.shape)
        if adc is not None:
            value = adc.codes(value).astype(np.float64)
        total = value if total is None else total + value
    assert total is not None  # noqa: S101 (a weight has at least one row)
    return total if adc is None else total * np.float64(adc.step)


def check_samples(first_sample: int, samples: int) -> None:
    """Raise ModelError unless every sample of a batch has a number."""
    if first_sample < 0 or first_sample + samples - 1 > ops.MAX_SAMPLE:
        raise ModelError(
            f"first_sample is {first_sample}; samples have numbers between 0 and {ops.MAX_SAMPLE}"
        )
