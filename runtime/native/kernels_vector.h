// Vectors for the files that are compiled once per instruction set, with CNPASS_LEVEL naming it and
// CNPASS_VECTOR the floats of a vector.
#pragma once

#include <string.h>

#include "kernels.h"

namespace cnpass {
namespace CNPASS_LEVEL {
namespace {

constexpr int kVector = CNPASS_VECTOR;
constexpr int kColumns = 2 * kVector;  // of a panel
static_assert(kColumns <= kSlack, "kSlack is too small");

typedef float Vector __attribute__((vector_size(4 * kVector)));

inline Vector load(const float* source) {
  Vector value;
  memcpy(&value, source, sizeof value);
  return value;
}

inline void store(float* target, Vector value) {
  memcpy(target, &value, sizeof value);
}

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

}  // namespace
}  // namespace CNPASS_LEVEL
}  // namespace cnpass
