// AnalogMatMul: Y[..., n] = sum over k of X[..., k] W[k, n].
#include <algorithm>
#include <cstring>

#include "op.h"
#include "weights.h"

namespace cnpass {

namespace {

// Work of one task: small enough for its sums to stay in the second-level cache, large enough for rows of X
// to be packed once for many columns.
constexpr int64_t kRowBlock = 96;
constexpr int64_t kColumnBlock = 512;

class AnalogMatMul : public Op {
 public:
  explicit AnalogMatMul(const NodeInfo& node) : weights_(node, 1, 1) {
    if (weights_.constant_dims()) check_weight(*weights_.constant_dims());
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Tensor w = call.input(1);
    const int64_t chip = read_chip(call.input(2));
    const Dims dims = weights_.effective(w.dims);
    check_weight(dims);
    const int64_t depth = dims[0];
    const int64_t columns = dims[1];
    if (x.dims.empty() || x.dims.back() != depth) {
      throw Error("input \"X\" (" + to_string(x.dims) + ") must have " + std::to_string(depth) +
                  " values along its last axis, as W has rows");
    }
    const int64_t rows = element_count(x.dims) / depth;
    Dims y_dims = x.dims;
    y_dims.back() = columns;
    element_count(y_dims);
    const auto packed = weights_.packed(
        call, w, chip, [&](const Dims&, const Dims& strides, const float* weight, Buffer* target) {
          WeightMatrix matrix{1, columns, depth, 0, strides[1], std::vector<int64_t>(depth)};
          for (int64_t k = 0; k < depth; ++k) matrix.depth_offsets[k] = k * strides[0];
          pack_right(call, matrix, weight, target);
        });
    float* y = call.output(y_dims);

    const int64_t row_blocks = divide_up(rows, kRowBlock);
    const int64_t column_blocks = divide_up(columns, kColumnBlock);
    parallel_if_worth(call, row_blocks * column_blocks, rows * columns * depth, [&](int64_t i) {
      const int64_t row = i / column_blocks * kRowBlock;
      const int64_t column = i % column_blocks * kColumnBlock;
      multiply_block(x.floats() + row * depth, packed->data(), std::min(kRowBlock, rows - row), column,
                     std::min(kColumnBlock, columns - column), depth, columns, y + row * columns + column);
    });
  }

 private:
  static void check_weight(const Dims& dims) {
    if (dims.size() != 2) {
      throw Error("input \"W\" has " + counted(dims.size(), "dimension") + ", needs 2");
    }
    if (dims[0] == 0 || dims[1] == 0) throw Error("input \"W\" (" + to_string(dims) + ") is empty");
  }

  // One block of Y, whose rows lie `columns` floats apart.
  static void multiply_block(const float* x, const float* packed, int64_t height, int64_t column,
                             int64_t width, int64_t depth, int64_t columns, float* y) {
    const MatrixKernels& kernel = kernels().matrix;
    const int64_t packed_columns = divide_up(columns, kernel.tile_columns) * kernel.tile_columns;
    const int64_t stride = divide_up(width, kernel.tile_columns) * kernel.tile_columns;
    thread_local Buffer left_buffer;
    thread_local Buffer sums_buffer;
    float* left = left_buffer.reserve(height * std::min(depth, kDepthBlock));
    float* sums = sums_buffer.reserve(height * stride);
    for (int64_t first = 0; first < depth; first += kDepthBlock) {
      const int64_t block = std::min(kDepthBlock, depth - first);
      kernel.pack_rows(x + first, depth, height, block, left);
      kernel.multiply(left, packed + first * packed_columns + column * block, height, width, block, first > 0,
                      sums, stride);
    }
    for (int64_t row = 0; row < height; ++row) {
      std::memcpy(y + row * columns, sums + row * stride, static_cast<size_t>(width) * sizeof(float));
    }
  }

  Weights weights_;
};

}  // namespace

std::unique_ptr<Op> make_analog_matmul(const NodeInfo& node) {
  return std::make_unique<AnalogMatMul>(node);
}

}  // namespace cnpass
