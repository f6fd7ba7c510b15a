// Elementary functions in float32, for the files that are compiled once per instruction set: every step is
// one correctly rounded operation, as in runtime/numerics.py. The polynomials are those of the Cephes library
// (S. Moshier).
#pragma once

#include <stdint.h>
#include <string.h>

namespace cnpass {
namespace CNPASS_LEVEL {
namespace {

inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Natural logarithm of a positive, normal number.
inline __attribute__((always_inline)) float log_of(float u) {
  constexpr uint32_t kSqrtHalf =
      0x3f3504f3u;  // bits of sqrt(1/2): the mantissa is brought to [sqrt(1/2), sqrt(2))
  const uint32_t bits = as_bits(u) - kSqrtHalf;
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float x = as_float((bits & 0x007fffffu) + kSqrtHalf) - 1.0f;
  const float z = x * x;
  float p = 7.0376836292E-2f;
  p = p * x + -1.1514610310E-1f;
  p = p * x + 1.1676998740E-1f;
  p = p * x + -1.2420140846E-1f;
  p = p * x + 1.4249322787E-1f;
  p = p * x + -1.6668057665E-1f;
  p = p * x + 2.0000714765E-1f;
  p = p * x + -2.4999993993E-1f;
  p = p * x + 3.3333331174E-1f;
  float y = x * z * p;
  y = y + exponent * -2.12194440e-4f;
  y = y + -0.5f * z;
  return x + y + exponent * 0.693359375f;
}

// e to the power of x, for |x| below 87.
inline __attribute__((always_inline)) float exp_of(float x) {
  const float n = x * 1.44269504088896341f;
  const int32_t exponent = static_cast<int32_t>(n + (n >= 0.0f ? 0.5f : -0.5f));
  const float f = static_cast<float>(exponent);
  x = x - f * 0.693359375f;
  x = x - f * -2.12194440e-4f;
  const float z = x * x;
  float p = 1.9875691500E-4f;
  p = p * x + 1.3981999507E-3f;
  p = p * x + 8.3334519073E-3f;
  p = p * x + 4.1665795894E-2f;
  p = p * x + 1.6666665459E-1f;
  p = p * x + 5.0000001201E-1f;
  return (p * z + x + 1.0f) * as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

}  // namespace
}  // namespace CNPASS_LEVEL
}  // namespace cnpass
