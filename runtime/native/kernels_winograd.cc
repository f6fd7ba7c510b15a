// The transforms of Winograd's convolution (winograd.h). Compiled once per instruction set, as
// kernels_matrix.cc is. Those of inputs and weights round the same on all of them.
#include "kernels_vector.h"

namespace cnpass {
namespace CNPASS_LEVEL {
namespace {

constexpr int kSide = 4;  // of a transformed square

void transform_weights(const float* weights, int64_t rows, int64_t depth, int64_t room, float* out,
                       int64_t stride) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t row = 0; row < rows; row += kVector) {
      Vector along[3][kSide];
      for (int i = 0; i < 3; ++i) {
        const float* from = weights + (9 * k + 3 * i) * rows + row;
        const Vector g0 = load(from);
        const Vector half = load(from + rows) * 0.5f;
        const Vector g2 = load(from + 2 * rows);
        const Vector mean = (g0 + g2) * 0.5f;
        along[i][0] = g0;
        along[i][1] = mean + half;
        along[i][2] = mean - half;
        along[i][3] = g2;
      }
      // Vectors reach into the next rows, which are written later.
      const int64_t left = (room - k) * rows - row;
      const size_t bytes = static_cast<size_t>(smaller(left, kVector)) * sizeof(float);
      float* to = out + k * rows + row;
      for (int j = 0; j < kSide; ++j) {
        const Vector half = along[1][j] * 0.5f;
        const Vector mean = (along[0][j] + along[2][j]) * 0.5f;
        const Vector column[kSide] = {along[0][j], mean + half, mean - half, along[2][j]};
        for (int i = 0; i < kSide; ++i) {
          float* target = to + (kSide * i + j) * stride;
          if (left >= kVector) {
            store(target, column[i]);
          } else {
            memcpy(target, &column[i], bytes);
          }
        }
      }
    }
  }
}

void transform_input(const float* patches, int64_t depth, float* out, int64_t stride) {
  for (int64_t k = 0; k < depth; ++k, patches += kSide * kSide * kColumns, out += kColumns) {
    for (int half = 0; half < kColumns; half += kVector) {
      Vector down[kSide][kSide];
      for (int j = 0; j < kSide; ++j) {
        Vector d[kSide];
        for (int i = 0; i < kSide; ++i) d[i] = load(patches + (kSide * i + j) * kColumns + half);
        down[0][j] = d[0] - d[2];
        down[1][j] = d[1] + d[2];
        down[2][j] = d[2] - d[1];
        down[3][j] = d[1] - d[3];
      }
      for (int i = 0; i < kSide; ++i) {
        float* to = out + kSide * i * stride + half;
        store(to, down[i][0] - down[i][2]);
        store(to + stride, down[i][1] + down[i][2]);
        store(to + 2 * stride, down[i][2] - down[i][1]);
        store(to + 3 * stride, down[i][1] - down[i][3]);
      }
    }
  }
}

// The values of two vectors in turn, those of the first or of the second halves: where a shuffle takes them.
typedef int Order __attribute__((vector_size(4 * kVector)));

inline Order in_turn(int half) {
  Order order;
  for (int i = 0; i < kVector; ++i) order[i] = (half * kVector + i) / 2 + i % 2 * kVector;
  return order;
}

void transform_output(const float* products, int64_t stride, int64_t count, float* out) {
  const Order orders[2] = {in_turn(0), in_turn(1)};
  for (int64_t column = 0; column < count; column += kVector, products += kVector, out += 2 * kVector) {
    Vector down[2][kSide];
    for (int j = 0; j < kSide; ++j) {
      Vector m[kSide];
      for (int i = 0; i < kSide; ++i) m[i] = load(products + (kSide * i + j) * stride);
      down[0][j] = m[0] + m[1] + m[2];
      down[1][j] = m[1] - m[2] - m[3];
    }
    for (int i = 0; i < 2; ++i) {
      const Vector even = down[i][0] + down[i][1] + down[i][2];
      const Vector odd = down[i][1] - down[i][2] - down[i][3];
      for (int half = 0; half < 2; ++half) {
        store(out + 2 * i * count + half * kVector, __builtin_shuffle(even, odd, orders[half]));
      }
    }
  }
}

void scale(const float* values, int64_t count, float factor, float offset, float* out) {
  for (int64_t i = 0; i < count; i += kVector) store(out + i, factor * load(values + i) + offset);
}

bool within(const float* values, int64_t count, float bound) {
  typedef int Mask __attribute__((vector_size(4 * kVector)));
  Mask inside = ~Mask{};
  int64_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    const Vector value = load(values + i);
    inside &= (value <= bound) & (value >= -bound);
  }
  int all = -1;
  for (int lane = 0; lane < kVector; ++lane) all &= inside[lane];
  for (; i < count; ++i) all &= values[i] <= bound && values[i] >= -bound ? -1 : 0;
  return all != 0;
}

}  // namespace

extern const WinogradKernels kWinograd;
const WinogradKernels kWinograd = {transform_weights, transform_input, transform_output, scale, within};

}  // namespace CNPASS_LEVEL
}  // namespace cnpass
