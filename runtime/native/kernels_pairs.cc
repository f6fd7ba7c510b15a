// Conductances of pairs of devices; the formulas, step by step, are those of
// runtime/devices/{pair,conductance, pcm,reram}.py. Compiled once per instruction set, with CNPASS_LEVEL
// naming it, and without contraction of a * b + c: every level, NumPy and torch give the same bits.
#include "kernels.h"
#include "kernels_math.h"

namespace cnpass {
namespace CNPASS_LEVEL {
namespace {

inline float at_least_zero(float x) {
  return x > 0.0f ? x : 0.0f;
}

inline float clamp(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}

// The largest integer that is not above x, for 0 <= x < 2^22; vectorises on every instruction set.
inline float floor_of(float x) {
  constexpr float kNoFraction = 8388608.0f;  // 2^23
  const float nearest = (x + kNoFraction) - kNoFraction;
  return nearest > x ? nearest - 1.0f : nearest;
}

template <int kCount>
inline float polynomial(float x, const float (&coefficients)[kCount]) {
  float value = coefficients[kCount - 1];
  for (int i = kCount - 2; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

inline float target(const Span& span, float ratio) {
  return ratio * (span.high - span.low) + span.low;
}

// Calls use(i, ratio) for every device; without ratios, what depends on the target alone is computed once.
template <class Use>
inline __attribute__((always_inline)) void for_ratios(const float* ratio, size_t count, const Use& use) {
  if (ratio == nullptr) {
    for (size_t i = 0; i < count; ++i) use(i, 0.0f);
  } else {
    for (size_t i = 0; i < count; ++i) use(i, ratio[i]);
  }
}

void levels(const LevelsFormula& formula, const float* ratio, const float* programming, size_t count,
            float* __restrict out) {
  const LevelsFormula f = formula;
  for_ratios(ratio, count, [=](size_t i, float at) {
    const float level = floor_of(at * f.steps + 0.5f) / f.steps;
    out[i] = at_least_zero(target(f.span, level) + programming[i] * f.noise);
  });
}

constexpr size_t kBlock = 64;  // devices whose intermediate values are kept

// What the formulas of pcm need that depends on nothing but the targets.
struct PcmTargets {
  float goal[kBlock];
  float sigma[kBlock];
  float mu[kBlock];
  float spread[kBlock];
  float read[kBlock];
};

// Several short loops, since one long one has more constants than there are registers.
void pcm_targets(const PcmFormula& f, const float* ratio, size_t count, PcmTargets* out) {
  constexpr float kLeast = 1e-3f;
  float log_x[kBlock];
  for (size_t i = 0; i < count; ++i) out->goal[i] = target(f.span, ratio[i]);
  for (size_t i = 0; i < count; ++i) {
    const float x = out->goal[i] / f.span.high;
    out->sigma[i] = polynomial(x, f.coefficients) * f.noise;
    log_x[i] = x > kLeast ? x : kLeast;
  }
  for (size_t i = 0; i < count; ++i) log_x[i] = log_of(log_x[i]);
  for (size_t i = 0; i < count; ++i) {
    out->mu[i] = clamp(log_x[i] * -0.0155f + 0.0244f, 0.049f, 0.1f);
    out->spread[i] = clamp(log_x[i] * -0.0125f + -0.0059f, 0.008f, 0.045f);
  }
  for (size_t i = 0; i < count; ++i) {
    const float scaled = exp_of(log_x[i] * -0.65f) * 0.0088f;
    out->read[i] = (scaled > 0.2f ? 0.2f : scaled) * f.read;
  }
}

void pcm(const PcmFormula& formula, const float* ratio, const float* programming, const float* drift,
         const float* slow, size_t count, float* __restrict out) {
  constexpr float kNothingLeft = 80.0f;
  constexpr float kIdle[kBlock] = {};
  const PcmFormula f = formula;
  PcmTargets targets;
  if (ratio == nullptr) pcm_targets(f, kIdle, kBlock, &targets);
  for (size_t first = 0; first < count; first += kBlock) {
    const size_t n = count - first < kBlock ? count - first : kBlock;
    if (ratio != nullptr) pcm_targets(f, ratio + first, n, &targets);
    for (size_t i = 0; i < n; ++i) {
      const float held = at_least_zero(targets.goal[i] + programming[first + i] * targets.sigma[i]);
      const float nu = __builtin_fabsf(drift[first + i] * targets.spread[i] + targets.mu[i]);
      const float power = nu * f.drift * f.log_time;
      const float decay = exp_of(-(power < kNothingLeft ? power : kNothingLeft));
      out[first + i] = held * decay * at_least_zero(slow[first + i] * targets.read[i] + 1.0f);
    }
  }
}

void reram(const ReramFormula& formula, const float* ratio, const float* programming, const float* relaxation,
           size_t count, float* __restrict out) {
  const ReramFormula f = formula;
  for_ratios(ratio, count, [=](size_t i, float at) {
    const float goal = target(f.span, at);
    const float held = goal + programming[i] * (polynomial(goal / f.span.high, f.coefficients) * f.noise);
    out[i] = at_least_zero(held + (relaxation[i] * f.relaxation + f.shift));
  });
}

void ratios(const float* weight, const float* scale, size_t count, float* __restrict out) {
  for (size_t i = 0; i < count; ++i) {
    out[i] = __builtin_fabsf(weight[i]) / (scale[i] > 0.0f ? scale[i] : 1.0f);
  }
}

void differences(const float* weight, const float* scale, const float* __restrict idle, float range,
                 float gain, size_t count, float* __restrict out) {
  for (size_t i = 0; i < count; ++i) {
    const float size = (out[i] - idle[i]) * (scale[i] / range * gain);
    out[i] = weight[i] < 0.0f ? -size : size;
  }
}

}  // namespace

extern const PairKernels kPairs;
const PairKernels kPairs = {levels, pcm, reram, ratios, differences};

}  // namespace CNPASS_LEVEL
}  // namespace cnpass
