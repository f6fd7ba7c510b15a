#include "kernels.h"

#include <cstdlib>
#include <string>

#include "ort_node.h"

namespace cnpass {

#define CNPASS_DECLARE(isa)               \
  namespace isa {                         \
  extern const RandomKernels kRandom;     \
  extern const PairKernels kPairs;        \
  extern const MatrixKernels kMatrix;     \
  extern const WinogradKernels kWinograd; \
  }

#if defined(CNPASS_X86)  // by the build, which then has these three levels

CNPASS_DECLARE(v1)
CNPASS_DECLARE(v3)
CNPASS_DECLARE(v4)

namespace {

// Exactly the features that the build turns on for each level (see CMakeLists.txt).
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

Kernels choose() {
  __builtin_cpu_init();
  const char* asked = std::getenv("CNPASS_ISA");
  const std::string level = asked != nullptr ? asked : "v4";
  if (level != "v1" && level != "v3" && level != "v4") {
    throw Error("environment variable CNPASS_ISA is \"" + level + "\", must be v1, v3 or v4");
  }
  if (level == "v4" && has_v4()) return {"v4", v4::kRandom, v4::kPairs, v4::kMatrix, v4::kWinograd};
  if (level != "v1" && has_v3()) return {"v3", v3::kRandom, v3::kPairs, v3::kMatrix, v3::kWinograd};
  return {"v1", v1::kRandom, v1::kPairs, v1::kMatrix, v1::kWinograd};
}

}  // namespace

#else

CNPASS_DECLARE(generic)

namespace {
Kernels choose() {
  return {"generic", generic::kRandom, generic::kPairs, generic::kMatrix, generic::kWinograd};
}
}  // namespace

#endif
#undef CNPASS_DECLARE

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace cnpass
