"""Elementary functions in float32 with the same bits in NumPy, torch and the native library.

Every step below is one correctly rounded float32 operation: no fused multiply-add, no library
logarithm or exponential, whose last bits differ between machines. The polynomials are those of the
Cephes library's single-precision functions (logf, expf, sinf, cosf; S. L. Moshier).
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
"""A numpy.ndarray, a torch.Tensor or a traced value: they share operators, but no static type."""

LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
EXP = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
)  # fmt: skip
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

LOG2_E = 1.44269504088896341
LN2_HIGH = 0.693359375  # the first nine bits of ln 2, so that its product with an exponent is exact
LN2_LOW = -2.12194440e-4
HALF_PI = 1.5707963267948966
SQRT_HALF_BITS = 0x3F3504F3
MANTISSA_MASK = 0x007FFFFF
MANTISSA_BITS = 23
EXPONENT_BIAS = 127


class Functions(Protocol):
    """The functions that a device model's formula may call: `ExactMath`, a `Tracer` or `torch` itself."""

    def abs(self, x: Array, /) -> Array:
        """Absolute value, elementwise."""

    def exp(self, x: Array, /) -> Array:
        """Exponential, elementwise."""

    def floor(self, x: Array, /) -> Array:
        """Largest integer that is not above, elementwise."""

    def log(self, x: Array, /) -> Array:
        """Natural logarithm, elementwise."""

    def sqrt(self, x: Array, /) -> Array:
        """Square root, elementwise."""

    def where(self, condition: Array, yes: Array, no: Array, /) -> Array:
        """One or the other, elementwise; at most one of the two is a number."""


class RandomMath(Functions, Protocol):
    """The functions that Box-Muller needs on top."""

    def float32(self, x: Array, /) -> Array:
        """Non-negative integers below 2^24, as float32."""

    def cos_sin(self, quadrant: Array, turn: Array, /) -> tuple[Array, Array]:
        """Cosine and sine of (quadrant + turn) * pi / 2."""


class ExactMath:
    """float32 functions over one array module.

    Args:
        xp: the module `numpy` or `torch`.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def cast(self, x: Array, dtype: Any) -> Array:
        """The values of `x` as `dtype`."""
        return x.to(dtype) if hasattr(x, "to") else x.astype(dtype)

    def float32(self, x: Array) -> Array:
        """Integers as float32; exact up to 2^24."""
        return self.cast(x, self.xp.float32)

    def abs(self, x: Array) -> Array:
        """Absolute value."""
        return self.xp.abs(x)

    def floor(self, x: Array) -> Array:
        """Largest integer that is not above."""
        return self.xp.floor(x)

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """One or the other."""
        return self.xp.where(condition, yes, no)

    def sqrt(self, x: Array) -> Array:
        """Square root, correctly rounded.

        torch's float32 root may be off in the last bit. One in float64, even if off by its own last bit,
        is never near enough to the middle of two float32 numbers to be rounded to the wrong one.
        """
        return self.float32(self.xp.sqrt(self.cast(x, self.xp.float64)))

    def log(self, x: Array) -> Array:
        """Natural logarithm of positive, normal float32."""
        bits = x.view(self.xp.int32) - SQRT_HALF_BITS
        exponent = self.float32(bits >> MANTISSA_BITS)
        mantissa = ((bits & MANTISSA_MASK) + SQRT_HALF_BITS).view(self.xp.float32)
        x = mantissa - 1.0  # in [sqrt(1/2) - 1, sqrt(2) - 1)
        square = x * x
        y = x * square * _polynomial(x, LOG)
        y = y + exponent * LN2_LOW
        y = y + -0.5 * square
        return x + y + exponent * LN2_HIGH

    def exp(self, x: Array) -> Array:
        """Exponential of float32 between -87 and 88."""
        scaled = x * LOG2_E
        half = self.float32(scaled >= 0.0) - 0.5
        power = self.cast(scaled + half, self.xp.int32)
        multiple = self.float32(power)
        x = x - multiple * LN2_HIGH
        x = x - multiple * LN2_LOW
        y = _polynomial(x, EXP) * (x * x) + x + 1.0
        return y * ((power + EXPONENT_BIAS) << MANTISSA_BITS).view(self.xp.float32)

    def cos_sin(self, quadrant: Array, turn: Array) -> tuple[Array, Array]:
        """Cosine and sine of (quadrant + turn) * pi / 2.

        Args:
            quadrant: integers 0 to 3.
            turn: float32 in [-1/2, 1/2).

        Returns:
            Two float32 arrays.
        """
        angle = turn * HALF_PI
        square = angle * angle
        sine = _polynomial(square, SIN) * square * angle + angle
        cosine = _polynomial(square, COS) * square * square + -0.5 * square + 1.0
        odd = (quadrant & 1) == 1
        where = self.xp.where
        # A quadrant swaps the two and flips signs; a product with 1 or -1 is exact.
        return (
            where(odd, sine, cosine) * self.float32(1 - ((quadrant + 1) & 2)),
            where(odd, cosine, sine) * self.float32(1 - (quadrant & 2)),
        )


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Horner's scheme, highest power first."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value
