// AnalogMatMul: Y[..., n] = sum over k of X[..., k] W[k, n].
#include <algorithm>

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
  explicit AnalogMatMul(const NodeInfo& node) : weights_(node, 1, 1), periphery_(node) {
    if (weights_.constant_dims()) check_weight(*weights_.constant_dims());
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Tensor w = call.input(1);
    const int64_t chip = read_scalar(call.input(2), "chip");
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
    const int64_t samples = count_samples(x.dims);
    const int64_t sample_rows = samples > 0 ? rows / samples : 1;
    const Reading reading(periphery_, weights_.draws(), chip, call.optional_input(3), samples,
                          checked_madd(sample_rows, columns, 0), depth);
    const auto packed =
        weights_.packed(call, w, chip, Packing::kPanels,
                        [&](const Dims&, const Dims& strides, const float* weight, Buffer* target) {
                          WeightMatrix matrix{1, columns, depth, 0, strides[1], std::vector<int64_t>(depth)};
                          for (int64_t k = 0; k < depth; ++k) matrix.depth_offsets[k] = k * strides[0];
                          pack_right(call, matrix, reading, weight, target);
                        });
    float* y = call.output(y_dims);

    Buffer converted;
    const float* values = x.floats();
    if (periphery_.dac) values = convert(call, *periphery_.dac, values, rows, depth, &converted);
    const int64_t row_blocks = divide_up(rows, kRowBlock);
    const int64_t column_blocks = divide_up(columns, kColumnBlock);
    parallel_if_worth(call, row_blocks * column_blocks, rows * columns * depth, [&](int64_t i) {
      const int64_t row = i / column_blocks * kRowBlock;
      const int64_t column = i % column_blocks * kColumnBlock;
      multiply_block(reading, values, packed->data(), row, std::min(kRowBlock, rows - row), column,
                     std::min(kColumnBlock, columns - column), depth, columns, sample_rows,
                     y + row * columns + column);
    });
  }

 private:
  static void check_weight(const Dims& dims) {
    if (dims.size() != 2) {
      throw Error("input \"W\" has " + counted(dims.size(), "dimension") + ", needs 2");
    }
    if (dims[0] == 0 || dims[1] == 0) throw Error("input \"W\" (" + to_string(dims) + ") is empty");
  }

  int64_t count_samples(const Dims& x) const {
    if (x.size() < 2) return 1;
    if (x[0] % periphery_.sample_rows != 0) {
      throw Error("attribute \"sample_rows\" is " + std::to_string(periphery_.sample_rows) +
                  ", must divide the " + std::to_string(x[0]) + " entries of X along its first axis");
    }
    return x[0] / periphery_.sample_rows;
  }

  // X as it comes out of the DAC.
  static const float* convert(const Call& call, const Converter& dac, const float* x, int64_t rows,
                              int64_t depth, Buffer* converted) {
    float* out = converted->reserve(rows * depth);
    parallel_if_worth(call, rows, rows * depth, [&](int64_t row) {
      kernels().matrix.quantise(x + row * depth, depth, dac, out + row * depth);
    });
    return out;
  }

  // One block of Y, whose rows lie `columns` floats apart.
  static void multiply_block(const Reading& reading, const float* x, const float* packed, int64_t row,
                             int64_t height, int64_t column, int64_t width, int64_t depth, int64_t columns,
                             int64_t sample_rows, float* y) {
    const MatrixKernels& kernel = kernels().matrix;
    const int64_t packed_columns = divide_up(columns, kernel.tile_columns) * kernel.tile_columns;
    const int64_t stride = divide_up(width, kernel.tile_columns) * kernel.tile_columns;
    thread_local Buffer left_buffer;
    thread_local Buffer sums_buffer;
    thread_local Buffer partial_buffer;
    thread_local Buffer noise_buffer;
    float* left = left_buffer.reserve(height * std::min(depth, kDepthBlock));
    float* sums = sums_buffer.reserve(height * stride);
    float* partial = reading.tile() > kDepthBlock ? partial_buffer.reserve(height * stride) : nullptr;
    float* noise = reading.noisy() ? noise_buffer.reserve(height * stride) : nullptr;
    for (int64_t first = 0, block = 0; first < depth; first += block) {
      block = reading.block(first);
      kernel.pack_rows(x + row * depth + first, depth, height, block, left);
      if (noise != nullptr && reading.completes(first)) {
        for (int64_t i = 0; i < height; ++i) {
          const int64_t element = (row + i) % sample_rows * columns + column;
          reading.draw(first / reading.tile(), (row + i) / sample_rows, element, width, noise + i * stride);
        }
      }
      reading.multiply(left, packed + first * packed_columns + column * block, height, width, first, noise,
                       partial, sums, stride);
    }
    const float step = reading.step();
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j) y[i * columns + j] = step * sums[i * stride + j];
    }
  }

  Weights weights_;
  Periphery periphery_;
};

}  // namespace

std::unique_ptr<Op> make_analog_matmul(const NodeInfo& node) {
  return std::make_unique<AnalogMatMul>(node);
}

}  // namespace cnpass
