// Packing and multiplication. Compiled once per instruction set, with CNPASS_LEVEL naming it, CNPASS_VECTOR
// the floats of a vector and CNPASS_ROWS the rows of a tile; a * b + c is contracted where the machine can.
#include "kernels_vector.h"

namespace cnpass {
namespace CNPASS_LEVEL {
namespace {

constexpr int kRows = CNPASS_ROWS;

// Codes as floats; NaN stays NaN.
inline Vector to_codes(Vector value, const Converter& converter) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: floats of this size are whole numbers
  const Vector highest = Vector{} + converter.highest;
  value = value * converter.scale;
  value = value > highest ? highest : value;
  value = value < -highest ? -highest : value;
  return (value + kRound) - kRound;
}

template <class Load>
inline Vector read_vector(Vector value, const Readout& readout, int64_t offset, const Load& load) {
  if (readout.noise != nullptr) value = value + readout.deviation * load(readout.noise + offset);
  return readout.converter != nullptr ? to_codes(value, *readout.converter) : value;
}

// One tile of the product, its sums in registers.
template <int kTile>
void multiply_tile(int64_t depth, const float* a, const float* b, const float* before, const Readout* readout,
                   int64_t offset, bool accumulate, float* c, int64_t c_stride) {
  Vector sums[kTile][2];
  for (int i = 0; i < kTile; ++i) sums[i][0] = sums[i][1] = Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector b0 = load(b);
    const Vector b1 = load(b + kVector);
    __builtin_prefetch(a +
                       kTile * kDepthBlock);  // of the next panel: streams of weights outrun the hardware's
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      sums[i][0] += a[i] * b0;
      sums[i][1] += a[i] * b1;
    }
    a += kTile;
    b += kColumns;
  }
  for (int i = 0; i < kTile; ++i) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = offset + i * c_stride + half * kVector;
      Vector value = sums[i][half];
      if (before != nullptr) value = load(before + at) + value;
      if (readout != nullptr) value = read_vector(value, *readout, at, load);
      store(c + at, accumulate ? load(c + at) + value : value);
    }
  }
}

using MultiplyTile = void (*)(int64_t, const float*, const float*, const float*, const Readout*, int64_t,
                              bool, float*, int64_t);

template <int kTile = kRows>
MultiplyTile tile_of(int64_t rows) {
  if constexpr (kTile == 1) {
    return multiply_tile<1>;
  } else {
    return rows == kTile ? multiply_tile<kTile> : tile_of<kTile - 1>(rows);
  }
}

void multiply(const float* a, const float* b, int64_t rows, int64_t columns, int64_t depth,
              const float* before, const Readout* readout, bool accumulate, float* c, int64_t c_stride) {
  for (int64_t column = 0; column < columns; column += kColumns) {
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t height = smaller(kRows, rows - row);
      const MultiplyTile tile = tile_of(height);
      tile(depth, a + row * depth, b + column * depth, before, readout, row * c_stride + column, accumulate,
           c, c_stride);
    }
  }
}

typedef float Four __attribute__((vector_size(16)));

// out[i * out_stride + j] = source[j * stride + i] for i and j below 4.
inline void transpose_four(const float* source, int64_t stride, float* out, int64_t out_stride) {
  typedef int Order __attribute__((vector_size(16)));
  Four row[4];
  for (int i = 0; i < 4; ++i) memcpy(&row[i], source + i * stride, sizeof row[i]);
  const Four low01 = __builtin_shuffle(row[0], row[1], Order{0, 4, 1, 5});
  const Four low23 = __builtin_shuffle(row[2], row[3], Order{0, 4, 1, 5});
  const Four high01 = __builtin_shuffle(row[0], row[1], Order{2, 6, 3, 7});
  const Four high23 = __builtin_shuffle(row[2], row[3], Order{2, 6, 3, 7});
  const Four columns[4] = {__builtin_shuffle(low01, low23, Order{0, 1, 4, 5}),
                           __builtin_shuffle(low01, low23, Order{2, 3, 6, 7}),
                           __builtin_shuffle(high01, high23, Order{0, 1, 4, 5}),
                           __builtin_shuffle(high01, high23, Order{2, 3, 6, 7})};
  for (int i = 0; i < 4; ++i) memcpy(out + i * out_stride, &columns[i], sizeof columns[i]);
}

void pack_rows(const float* source, int64_t stride, int64_t rows, int64_t depth, float* out) {
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t height = smaller(kRows, rows - row);
    int64_t i = 0;
    for (; i + 4 <= height; i += 4) {
      const float* from = source + (row + i) * stride;
      int64_t k = 0;
      for (; k + 4 <= depth; k += 4) transpose_four(from + k, stride, out + k * height + i, height);
      for (; k < depth; ++k) {
        for (int64_t j = 0; j < 4; ++j) out[k * height + i + j] = from[j * stride + k];
      }
    }
    for (; i < height; ++i) {
      const float* from = source + (row + i) * stride;
      for (int64_t k = 0; k < depth; ++k) out[k * height + i] = from[k];
    }
    out += height * depth;
  }
}

// Columns of one panel whose values follow each other in the input.
struct Run {
  int64_t source;  // offset of the first value at a tap of offset 0
  int64_t first;   // column in the panel
  int64_t length;
};

int split_into_runs(const Patches& p, int64_t column, int64_t columns, Run* runs) {
  const int64_t row = p.size[2];
  const int64_t plane = p.size[1] * row;
  const int64_t image = p.size[0] * plane;
  int count = 0;
  for (int64_t done = 0; done < columns; ++count) {
    const int64_t position = (column + done) % image;
    const int64_t x = position % row;
    runs[count].source = (column + done) / image * p.image_stride + position / plane * p.step[0] +
                         position % plane / row * p.step[1] + x;
    runs[count].first = done;
    runs[count].length = smaller(row - x, columns - done);
    done += runs[count].length;
  }
  return count;
}

// Copies kWidth floats per run, which is at least its length, left to right: what one run writes too much is
// overwritten by the next one, or by the next row.
template <int64_t kWidth>
void copy_runs(const Patches& p, const Run* runs, int count, const int64_t* taps, int64_t depth, float* out) {
  for (int64_t k = 0; k < depth; ++k, out += kColumns) {
    const float* source = p.input + taps[k];
    for (int i = 0; i < count; ++i) {
      memcpy(out + runs[i].first, source + runs[i].source, kWidth * sizeof(float));
    }
  }
}

// The same without reading past a run.
void copy_runs_exactly(const Patches& p, const Run* runs, int count, const int64_t* taps, int64_t depth,
                       float* out) {
  for (int64_t k = 0; k < depth; ++k, out += kColumns) {
    for (int i = 0; i < count; ++i) {
      const float* source = p.input + taps[k] + runs[i].source;
      for (int64_t j = 0; j < runs[i].length; ++j) out[runs[i].first + j] = source[j];
    }
  }
}

void pack_patches(const Patches& p, int64_t column, int64_t columns, int64_t first_tap, int64_t depth,
                  float* out) {
  const int64_t* taps = p.taps + first_tap;
  int64_t reach = 0;
  for (int64_t k = 0; k < depth; ++k) reach = taps[k] > reach ? taps[k] : reach;
  for (int64_t done = 0; done < columns; done += kColumns, out += kColumns * depth) {
    Run runs[kColumns];
    const int64_t width = smaller(kColumns, columns - done);
    const int count = split_into_runs(p, column + done, width, runs);
    int64_t longest = 0;
    int64_t end = 0;
    for (int i = 0; i < count; ++i) {
      longest = runs[i].length > longest ? runs[i].length : longest;
      end = runs[i].source + reach > end ? runs[i].source + reach : end;
    }
    if (end + kColumns > p.readable) {
      copy_runs_exactly(p, runs, count, taps, depth, out);
    } else if (longest <= 4) {
      copy_runs<4>(p, runs, count, taps, depth, out);
    } else if (longest <= 8 || kColumns == 8) {
      copy_runs<8>(p, runs, count, taps, depth, out);
    } else if (longest <= 16 || kColumns == 16) {
      copy_runs<16>(p, runs, count, taps, depth, out);
    } else {
      copy_runs<32>(p, runs, count, taps, depth, out);
    }
  }
}

// kWidth vectors of sums at once.
template <int kWidth>
void correlate_vectors(const float* input, const int64_t* taps, const float* weights, int64_t depth,
                       float bias, float* out) {
  Vector total[kWidth];
  for (int i = 0; i < kWidth; ++i) total[i] = Vector{};
  for (int64_t k0 = 0; k0 < depth; k0 += kDepthBlock) {
    Vector sums[kWidth];
    for (int i = 0; i < kWidth; ++i) sums[i] = Vector{};
    const int64_t end = smaller(depth, k0 + kDepthBlock);
    for (int64_t k = k0; k < end; ++k) {
      const float* source = input + taps[k];
      for (int i = 0; i < kWidth; ++i) sums[i] += weights[k] * load(source + i * kVector);
    }
    for (int i = 0; i < kWidth; ++i) total[i] += sums[i];
  }
  for (int i = 0; i < kWidth; ++i) store(out + i * kVector, total[i] + bias);
}

void correlate(const float* input, const int64_t* taps, const float* weights, int64_t depth, int64_t count,
               float bias, float* out) {
  int64_t i = 0;
  for (; i + 3 * kVector < count; i += 4 * kVector) {
    correlate_vectors<4>(input + i, taps, weights, depth, bias, out + i);
  }
  for (; i < count; i += kVector) correlate_vectors<1>(input + i, taps, weights, depth, bias, out + i);
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

void read_out(const float* values, int64_t count, const Readout& readout, bool accumulate, float* out) {
  for_vectors(count, [&](const auto& load, const auto& store, int64_t i) {
    const Vector value = read_vector(load(values + i), readout, i, load);
    store(out + i, accumulate ? load(out + i) + value : value);
  });
}

void quantise(const float* values, int64_t count, const Converter& converter, float* out) {
  for_vectors(count, [&](const auto& load, const auto& store, int64_t i) {
    store(out + i, to_codes(load(values + i), converter) * converter.step);
  });
}

}  // namespace

extern const MatrixKernels kMatrix;
const MatrixKernels kMatrix = {kRows,    kColumns,  pack_rows, pack_patches,
                               multiply, correlate, read_out,  quantise};

}  // namespace CNPASS_LEVEL
}  // namespace cnpass
