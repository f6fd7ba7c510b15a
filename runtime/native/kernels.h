// The inner loops, compiled once per instruction set and chosen at run time.
//
// The files that implement these tables see only plain pointers and sizes: a template or inline function of
// the standard library in them could be emitted for AVX-512 and then be picked by the linker for everyone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cnpass {

// What random numbers depend on besides the element's index: the words of Philox' key and counter.
struct Draws {
  uint64_t seed;
  uint32_t chip;
  uint32_t stream;   // < 2^24
  uint32_t purpose;  // < 2^8
  uint32_t copy;     // < 2^16
};

// The same bits on every instruction set, and as runtime/philox.py and runtime/devices.
struct RandomKernels {
  // Random words and standard normals of elements first, first + 1, ...
  void (*words)(const Draws& draws, uint64_t first, size_t count, uint32_t* out);
  void (*normals)(const Draws& draws, uint64_t first, size_t count, float* out);
  // The functions of runtime/numerics.py, for positive, normal values and for values between -87 and 88.
  void (*log)(const float* x, size_t count, float* out);
  void (*exp)(const float* x, size_t count, float* out);
  // out = weight * exp(sigma * normal), for elements first, first + 1, ...
  void (*lognormal)(const Draws& draws, uint64_t first, size_t count, float sigma, const float* weight,
                    float* out);
};

// Lowest and highest conductance in uS.
struct Span {
  float low;
  float high;
};

// Constants of the formulas of runtime/devices/{conductance,pcm,reram}.py.
struct LevelsFormula {
  Span span;
  float steps;
  float noise;
};

struct PcmFormula {
  Span span;
  float coefficients[4];
  float noise;
  float drift;
  float log_time;
  float read;
};

struct ReramFormula {
  Span span;
  float coefficients[5];
  float noise;
  float shift;
  float relaxation;
};

// The same bits on every instruction set. The first three give the conductances of devices whose targets lie
// at `ratio` between the lowest and the highest, all at the lowest if it is null; the other arrays are
// standard normals.
struct PairKernels {
  void (*levels)(const LevelsFormula& formula, const float* ratio, const float* programming, size_t count,
                 float* out);
  void (*pcm)(const PcmFormula& formula, const float* ratio, const float* programming, const float* drift,
              const float* slow, size_t count, float* out);
  void (*reram)(const ReramFormula& formula, const float* ratio, const float* programming,
                const float* relaxation, size_t count, float* out);
  // Where the targets of weights lie; `scale` is the full scale of each.
  void (*ratios)(const float* weight, const float* scale, size_t count, float* out);
  // The weights that pairs hold, from the conductances of the devices on the side of their sign, in `out`,
  // and those of the others.
  void (*differences)(const float* weight, const float* scale, const float* idle, float range, float gain,
                      size_t count, float* out);
};

// Values of one sum that are added up before the sum so far is touched. Part of the numerics: an output is
// ((block 0) + block 1) + ..., whatever the batch, the threads or the instruction set.
constexpr int64_t kDepthBlock = 256;

// Columns of an implicit im2col matrix: column n is output position n, counted through all images; row k is
// tap k.
struct Patches {
  const float* input;    // what a tap of offset 0 reads for the first position
  int64_t readable;      // floats that may be read from `input` on
  const int64_t* taps;   // offsets of the taps
  int64_t image_stride;  // floats between images
  int64_t size[3];       // output positions along each axis
  int64_t step[2];       // floats between neighbouring positions along the first two axes; 1 along the last
};

// A symmetric quantiser: codes are value * scale, rounded to the nearest integer, halves to even, and kept
// between -highest and highest.
struct Converter {
  float scale;    // codes per unit
  float step;     // units per code
  float highest;  // at most 2^15 - 1
};

// How the sums of a tile are read out: (value + deviation * noise), as a code if there is a converter.
struct Readout {
  const Converter* converter;  // null: none
  const float* noise;          // standard normals, laid out as the values; null: none
  float deviation;
};

// The same bits for any split of rows or columns, not the same on every instruction set.
struct MatrixKernels {
  int64_t tile_rows;     // rows of a full panel of the left operand
  int64_t tile_columns;  // columns of a panel of the right operand; the last one is filled up

  // Panels of up to tile_rows rows, each [depth][rows of the panel], from rows of `stride` floats.
  void (*pack_rows)(const float* source, int64_t stride, int64_t rows, int64_t depth, float* out);
  // Panels of tile_columns columns, each [depth][tile_columns], from taps first_tap, first_tap + 1, ...
  // Leaves the columns that fill up the last panel as they are, or writes something into them; writes up to
  // tile_columns floats past it.
  void (*pack_patches)(const Patches& patches, int64_t column, int64_t columns, int64_t first_tap,
                       int64_t depth, float* out);
  // c (+)= a b for packed a and b; reads and writes whole panels of columns. To the product `before` is
  // added, laid out as c, if it is not null, and the sum is read out if `readout` is not null.
  void (*multiply)(const float* a, const float* b, int64_t rows, int64_t columns, int64_t depth,
                   const float* before, const Readout* readout, bool accumulate, float* c, int64_t c_stride);
  // out[i] = bias + sum over k of weights[k] * input[taps[k] + i], for i in [0, count). Reads and writes up
  // to kSlack values more.
  void (*correlate)(const float* input, const int64_t* taps, const float* weights, int64_t depth,
                    int64_t count, float bias, float* out);
  // out (+)= values, read out.
  void (*read_out)(const float* values, int64_t count, const Readout& readout, bool accumulate, float* out);
  // out = step * code; `out` may be `values`.
  void (*quantise)(const float* values, int64_t count, const Converter& converter, float* out);
};

constexpr int64_t kSlack = 64;  // at least tile_columns of every instruction set

// The transforms of Winograd's convolution (winograd.h). The 16 elements of a transformed square lie `stride`
// floats apart, row by row.
struct WinogradKernels {
  // G w G^T, [16][depth][rows], from [depth][9][rows]. Reads up to kSlack floats past the weights; writes up
  // to as many behind each element's, where it has room for `room` times `rows`.
  void (*transform_weights)(const float* weights, int64_t rows, int64_t depth, int64_t room, float* out,
                            int64_t stride);
  // B^T d B of one panel of columns, [16][depth][tile_columns], from [depth][16][tile_columns].
  void (*transform_input)(const float* patches, int64_t depth, float* out, int64_t stride);
  // A^T m A, two rows of 2 * count outputs, of [16][count]; `count` is one of whole vectors.
  void (*transform_output)(const float* products, int64_t stride, int64_t count, float* out);
  // factor * value + offset; `count` is one of whole vectors.
  void (*scale)(const float* values, int64_t count, float factor, float offset, float* out);
  // Whether all values lie between -bound and bound; NaN does not.
  bool (*within)(const float* values, int64_t count, float bound);
};

struct Kernels {
  const char* name;
  const RandomKernels& random;
  const PairKernels& pairs;
  const MatrixKernels& matrix;
  const WinogradKernels& winograd;
};

// The kernels for this machine, or for the lower instruction set that CNPASS_ISA (v1, v3, v4) asks for.
// Throws Error if that asks for something unknown.
const Kernels& kernels();

}  // namespace cnpass
