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

// Calls use(load, store, i) for vectors of values from i on; the last one may be shorter, and is then filled
// up with zeros when loaded.
template <class Use>
inline void for_vectors(int64_t count, const Use& use) {
  int64_t i = 0;
  for (; i + kVector <= count; i += kVector) use(load, store, i);
  if (i == count) return;
  const size_t bytes = static_cast<size_t>(count - i) * sizeof(float);
  const auto load_part = [bytes](const float* source) {
    Vector value{};
    memcpy(&value, source, bytes);
    return value;
  };
  const auto store_part = [bytes](float* target, Vector value) { memcpy(target, &value, bytes); };
  use(load_part, store_part, i);
}

}  // namespace
}  // namespace CNPASS_LEVEL
}  // namespace cnpass
