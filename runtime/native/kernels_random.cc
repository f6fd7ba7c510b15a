// Philox4x32-10, Box-Muller and log-normal weights. Compiled once per instruction set, with CNPASS_LEVEL
// naming it, and without contraction of a * b + c: every level, NumPy and torch give the same bits.
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "kernels_math.h"

namespace cnpass {
namespace CNPASS_LEVEL {
namespace {

constexpr int kLanes = 16;          // Philox blocks computed side by side
constexpr int kGroup = 4 * kLanes;  // normals made from them

// 64-bit lanes, as many as a vector of this instruction set has.
#if defined(__AVX512F__)
constexpr int kWide = 8;
#elif defined(__AVX2__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
typedef uint64_t Wide __attribute__((vector_size(8 * kWide)));
constexpr uint64_t kLow = 0xffffffffu;
constexpr uint64_t kEven[8] = {0, 2, 4, 6, 8, 10, 12, 14};

// The products of the low halves of the lanes: one instruction on x86, for which the compiler finds three.
inline __attribute__((always_inline)) Wide product_of_low(Wide a, uint64_t b) {
  const Wide factor = Wide{} + b;
#if defined(__AVX512F__)
  return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)factor);  // no mask: GCC 12 warns without
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#elif defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)factor);
#else
  return (a & kLow) * factor;
#endif
}

// One round on the four words of a block per lane, which lie in the low halves; the high ones are not
// defined.
inline __attribute__((always_inline)) void philox_round(Wide* x, Wide key0, Wide key1) {
  const Wide p0 = product_of_low(x[0], 0xD2511F53u);
  const Wide p1 = product_of_low(x[2], 0xCD9E8D57u);
  x[0] = (p1 >> 32) ^ x[1] ^ key0;
  x[2] = (p0 >> 32) ^ x[3] ^ key1;
  x[1] = p1;
  x[3] = p0;
}

// The four words of kBlocks blocks block, block + 1, ... (J. Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3"). Blocks with even and odd numbers are computed apart, and interleaved in the end; as many side
// by side as there are registers for, since every round waits for the one before.
template <int kBlocks>
inline __attribute__((always_inline)) void philox(const Draws& draws, uint64_t block, uint32_t* x0,
                                                  uint32_t* x1, uint32_t* x2, uint32_t* x3) {
  constexpr int kSets = kBlocks == 2 * kLanes && kWide == 8 ? 4 : 2;
  uint32_t* const out[4] = {x0, x1, x2, x3};
  for (int lane = 0; lane < kBlocks; lane += kSets * kWide) {
    Wide x[kSets][4];  // even, odd, even, odd
    for (int set = 0; set < kSets; ++set) {
      memcpy(&x[set][0], kEven, sizeof x[set][0]);
      x[set][0] += block + static_cast<uint64_t>(lane + set / 2 * 2 * kWide + set % 2);
      x[set][1] = (x[set][0] >> 32) | uint64_t{draws.copy << 16};
      x[set][2] = Wide{} + draws.chip;
      x[set][3] = Wide{} + (draws.purpose << 24 | draws.stream);
    }
    Wide key0 = Wide{} + draws.seed;
    Wide key1 = Wide{} + (draws.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int set = 0; set < kSets; ++set) philox_round(x[set], key0, key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    for (int set = 0; set < kSets; set += 2) {
      for (int word = 0; word < 4; ++word) {
        const Wide both = (x[set][word] & kLow) | (x[set + 1][word] << 32);  // the low half comes first
        memcpy(out[word] + lane + set * kWide, &both, sizeof both);
      }
    }
  }
}

// The radius of Box-Muller, from 23 bits at the middle of their interval: u lies in (0, 1), never on an end.
inline __attribute__((always_inline)) float radius_of(uint32_t word) {
  const float u =
      static_cast<float>(static_cast<int32_t>(word >> 9)) * 1.1920928955078125e-7f + 5.9604644775390625e-8f;
  return __builtin_sqrtf(-2.0f * log_of(u));
}

// Both coordinates of a point on a circle: two bits choose the quadrant, 24 the angle y in [-pi/4, pi/4)
// within it.
inline __attribute__((always_inline)) void point_on_circle(uint32_t word, float radius, float* first,
                                                           float* second) {
  const uint32_t quadrant = word >> 30;
  const float t =
      static_cast<float>(static_cast<int32_t>((word >> 6) & 0xffffffu)) * 5.9604644775390625e-8f - 0.5f;
  const float y = t * 1.5707963267948966f;
  const float z = y * y;
  const float sine = ((-1.9515295891E-4f * z + 8.3321608736E-3f) * z + -1.6666654611E-1f) * z * y + y;
  const float cosine =
      ((2.443315711809948E-5f * z + -1.388731625493765E-3f) * z + 4.166664568298827E-2f) * z * z + -0.5f * z +
      1.0f;
  const float s = (quadrant & 1u) != 0 ? cosine : sine;
  const float c = (quadrant & 1u) != 0 ? sine : cosine;
  *first = radius * as_float(as_bits(c) ^ ((quadrant + 1u) & 2u) << 30);
  *second = radius * as_float(as_bits(s) ^ (quadrant & 2u) << 30);
}

// The normals of elements kGroup * group, kGroup * group + 1, ..., of kGroups groups. Step by step for all of
// them, so that the steps of one are done while those of another wait.
template <int kGroups>
inline __attribute__((always_inline)) void fill_groups(const Draws& draws, uint64_t group,
                                                       float* __restrict out) {
  constexpr int kBlocks = kGroups * kLanes;
  alignas(64) uint32_t radius[2 * kBlocks];
  alignas(64) uint32_t angle[2 * kBlocks];
  alignas(64) float radii[2 * kBlocks];
  alignas(64) float first[2 * kBlocks];
  alignas(64) float second[2 * kBlocks];
  philox<kBlocks>(draws, group * kLanes, radius, angle, radius + kBlocks, angle + kBlocks);
  for (int i = 0; i < 2 * kBlocks; ++i) radii[i] = radius_of(radius[i]);
  for (int i = 0; i < 2 * kBlocks; ++i) point_on_circle(angle[i], radii[i], &first[i], &second[i]);
  for (int part = 0; part < 2 * kGroups; ++part) {
    const int from = part / 2 * kLanes + part % 2 * kBlocks;
    memcpy(out + 2 * part * kLanes, first + from, kLanes * sizeof *out);
    memcpy(out + (2 * part + 1) * kLanes, second + from, kLanes * sizeof *out);
  }
}

// Calls use(normals, i, n) for consecutive pieces of n <= kGroup elements, element `first` being at i = 0.
template <class Use>
inline __attribute__((always_inline)) void for_groups(const Draws& draws, uint64_t first, size_t count,
                                                      const Use& use) {
  alignas(64) float groups[2 * kGroup];
  for (size_t i = 0; i < count;) {
    const uint64_t group = (first + i) / kGroup;
    const size_t skip = (first + i) % kGroup;
    const size_t left = count - i;
    if (skip == 0 && left >= 2 * kGroup) {
      fill_groups<2>(draws, group, groups);
      use(groups, i, kGroup);
      use(groups + kGroup, i + kGroup, kGroup);
      i += 2 * kGroup;
    } else {
      const size_t n = left < kGroup - skip ? left : kGroup - skip;
      fill_groups<1>(draws, group, groups);
      use(groups + skip, i, n);
      i += n;
    }
  }
}

void words(const Draws& draws, uint64_t first, size_t count, uint32_t* out) {
  alignas(64) uint32_t group[kGroup];  // word p of every block goes to part p of the group
  for (size_t i = 0; i < count;) {
    const size_t skip = (first + i) % kGroup;
    const size_t left = count - i;
    const size_t n = left < kGroup - skip ? left : kGroup - skip;
    philox<kLanes>(draws, (first + i) / kGroup * kLanes, group, group + kLanes, group + 2 * kLanes,
                   group + 3 * kLanes);
    memcpy(out + i, group + skip, n * sizeof *out);
    i += n;
  }
}

void normals(const Draws& draws, uint64_t first, size_t count, float* out) {
  for_groups(draws, first, count,
             [=](const float* normal, size_t i, size_t n) { memcpy(out + i, normal, n * sizeof *out); });
}

void log(const float* x, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = log_of(x[i]);
}

void exp(const float* x, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = exp_of(x[i]);
}

void lognormal(const Draws& draws, uint64_t first, size_t count, float sigma, const float* weight,
               float* out) {
  for_groups(draws, first, count, [=](const float* __restrict normal, size_t i, size_t n) {
    if (n == kGroup) {  // a constant number of elements, for the vectoriser
      for (size_t k = 0; k < kGroup; ++k) out[i + k] = weight[i + k] * exp_of(sigma * normal[k]);
    } else {
      for (size_t k = 0; k < n; ++k) out[i + k] = weight[i + k] * exp_of(sigma * normal[k]);
    }
  });
}

}  // namespace

extern const RandomKernels kRandom;
const RandomKernels kRandom = {words, normals, log, exp, lognormal};

}  // namespace CNPASS_LEVEL
}  // namespace cnpass
