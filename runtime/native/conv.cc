// AnalogConv: a convolution as a matrix product with implicit im2col, directly where a group has few filters,
// or Winograd's.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <numeric>

#include "conv_geometry.h"
#include "conv_input.h"
#include "op.h"
#include "weights.h"
#include "winograd.h"

namespace cnpass {

namespace {

// Work of one task, so that its columns and its sums stay in the second-level cache.
constexpr int64_t kColumnBlock = 256;
constexpr int64_t kRowBlock = 516;  // a multiple of tile_rows of every instruction set

// Up to this many filters in a group, copying the columns would cost more than what multiplies them.
constexpr int64_t kMaxDirectFilters = 2;
constexpr int64_t kDirectRun = 1024;  // positions computed in one go, unless a single row is longer

class AnalogConv : public Op {
 public:
  explicit AnalogConv(const NodeInfo& node)
      : attributes_(node), weights_(node, 1, 0), plain_weights_(node, 1, 0), periphery_(node) {
    if (weights_.constant_dims()) attributes_.check_weight(*weights_.constant_dims());
  }

  void compute(const Call& call) const override {
    const Tensor x = call.input(0);
    const Tensor w = call.input(1);
    const std::optional<Tensor> bias = call.optional_input(2);
    const int64_t chip = read_scalar(call.input(3), "chip");
    const ConvGeometry g = attributes_.geometry(x.dims, weights_.effective(w.dims));
    if (bias && (bias->dims.size() != 1 || bias->dims[0] != g.filters)) {
      throw Error("input \"B\" (" + to_string(bias->dims) + ") must have one value per filter of W (" +
                  std::to_string(g.filters) + ")");
    }
    const int64_t positions = g.output[0] * g.output[1] * g.output[2];
    const int64_t depth = g.channels / g.groups * g.kernel[0] * g.kernel[1] * g.kernel[2];
    const Reading reading(periphery_, weights_.draws(), chip, call.optional_input(4), g.images,
                          checked_madd(g.filters, positions, 0), depth);
    const Operands operands{x.floats(), w, bias ? bias->floats() : nullptr, chip, call.output(g.output_dims)};
    const Winograd winograd(g, reading);
    if (g.filters / g.groups <= kMaxDirectFilters) {
      correlate(call, g, reading, operands);
    } else if (winograd.pays()) {
      multiply_squares(call, g, reading, winograd, operands);
    } else {
      multiply(call, g, reading, operands);
    }
  }

 private:
  // Everything about a call that does not change from one portion of images to the next.
  class Plan {
   public:
    Plan(const ConvGeometry& geometry, const Reading& reading, const float* weights, const float* bias);
    void multiply(const Call& call, const Images& images, float* y) const;
    void correlate(const Call& call, const Images& images, const std::vector<int64_t>& filters,
                   float* y) const;

    const ConvGeometry& g;
    const InputLayout layout;
    const int64_t positions;  // per image and filter

   private:
    void multiply_block(const Images& images, int64_t group, int64_t row, int64_t column, int64_t width,
                        float* y) const;
    void draw_noise(int64_t tile, int64_t image, int64_t filter, int64_t height, int64_t column,
                    int64_t width, float* noise, int64_t stride) const;
    void correlate_filter(const float* input, int64_t image, int64_t filter, float* y) const;
    void read_tiles(const float* input, const float* weights, int64_t image, int64_t element, int64_t rows,
                    float* run, float* y) const;

    const Reading& reading_;
    const float* weights_;
    const float* bias_;
    int64_t group_filters_;
    int64_t group_stride_;
    Axes output_;      // g.output, neighbouring rows joined where they follow each other in memory
    int64_t step_[2];  // floats between neighbouring outputs along the first two axes
    std::vector<int64_t> taps_;
  };

  // What a call has, checked.
  struct Operands {
    const float* x;
    Tensor w;
    const float* bias;  // null: none
    int64_t chip;
    float* y;
  };

  static std::vector<int64_t> all_filters(const ConvGeometry& g) {
    std::vector<int64_t> filters(static_cast<size_t>(g.filters));
    std::iota(filters.begin(), filters.end(), 0);
    return filters;
  }

  std::shared_ptr<const Buffer> plain_weights(const Call& call, const Weights& weights,
                                              const Operands& operands) const {
    return weights.packed(call, operands.w, operands.chip, Packing::kRows,
                          [&](const Dims& dims, const Dims& strides, const float* weight, Buffer* target) {
                            pack_plain(call, weight_matrix(dims, strides), weight, target);
                          });
  }

  void correlate(const Call& call, const ConvGeometry& g, const Reading& reading,
                 const Operands& operands) const {
    const auto weights = plain_weights(call, weights_, operands);
    const Plan plan(g, reading, weights->data(), operands.bias);
    const std::vector<int64_t> filters = all_filters(g);
    for_images(
        call, g, plan.layout, operands.x, periphery_.dac, true, kNoInspection, [&](const Images& images) {
          plan.correlate(call, images, filters, operands.y + images.first * g.filters * plan.positions);
        });
  }

  void multiply(const Call& call, const ConvGeometry& g, const Reading& reading,
                const Operands& operands) const {
    const auto weights =
        weights_.packed(call, operands.w, operands.chip, Packing::kPanels,
                        [&](const Dims& dims, const Dims& strides, const float* weight, Buffer* target) {
                          pack_left(call, weight_matrix(dims, strides), reading, weight, target);
                        });
    const Plan plan(g, reading, weights->data(), operands.bias);
    for_images(call, g, plan.layout, operands.x, periphery_.dac, false, kNoInspection,
               [&](const Images& images) {
                 plan.multiply(call, images, operands.y + images.first * g.filters * plan.positions);
               });
  }

  void multiply_squares(const Call& call, const ConvGeometry& g, const Reading& reading,
                        const Winograd& winograd, const Operands& operands) const {
    const auto weights =
        weights_.packed(call, operands.w, operands.chip, Packing::kSquares,
                        [&](const Dims& dims, const Dims& strides, const float* weight, Buffer* target) {
                          winograd.pack(call, weight_matrix(dims, strides), weight, target);
                        });
    const int64_t outputs = g.filters * g.output[1] * g.output[2];  // of an image
    std::vector<std::atomic<bool>> wild(static_cast<size_t>(g.images));
    const auto inspect = [&](int64_t image, const float* channel) {
      if (Winograd::wild(channel, winograd.layout().channel)) wild[static_cast<size_t>(image)] = true;
    };
    for_images(call, winograd.squares(), winograd.layout(), operands.x, periphery_.dac, false, inspect,
               [&](const Images& images) {
                 winograd.multiply(call, images, weights->data(), operands.bias,
                                   operands.y + images.first * outputs);
               });
    repair(call, g, reading, winograd, weights->data(), wild, operands);
  }

  // Computes again, each output by itself, what numbers that are none or too large have touched.
  void repair(const Call& call, const ConvGeometry& g, const Reading& reading, const Winograd& winograd,
              const float* transformed, const std::vector<std::atomic<bool>>& wild_images,
              const Operands& operands) const {
    const std::vector<int64_t> all = all_filters(g);
    std::vector<int64_t> wild;
    std::copy_if(all.begin(), all.end(), std::back_inserter(wild),
                 [&](int64_t filter) { return winograd.wild_filter(transformed, filter); });
    const auto is_set = [](bool value) { return value; };
    if (wild.empty() && std::none_of(wild_images.begin(), wild_images.end(), is_set)) return;
    const auto weights = plain_weights(call, plain_weights_, operands);
    const Plan plan(g, reading, weights->data(), operands.bias);
    ConvGeometry single = g;
    single.images = 1;
    for (int64_t image = 0; image < g.images; ++image) {
      const std::vector<int64_t>& filters = wild_images[static_cast<size_t>(image)] ? all : wild;
      if (filters.empty()) continue;
      const float* x = operands.x + image * g.channels * g.input[1] * g.input[2];
      for_images(call, single, plan.layout, x, periphery_.dac, true, kNoInspection, [&](Images images) {
        images.first = image;
        plan.correlate(call, images, filters, operands.y + image * g.filters * plan.positions);
      });
    }
  }

  WeightMatrix weight_matrix(const Dims& dims, const Dims& strides) const {
    const int64_t rows = dims[0] / attributes_.groups();
    WeightMatrix matrix{attributes_.groups(), rows, 1, rows * strides[0], strides[0], {0}};
    for (size_t axis = 1; axis < dims.size(); ++axis) {
      std::vector<int64_t> offsets;
      offsets.reserve(static_cast<size_t>(matrix.depth * dims[axis]));
      for (int64_t offset : matrix.depth_offsets) {
        for (int64_t i = 0; i < dims[axis]; ++i) offsets.push_back(offset + i * strides[axis]);
      }
      matrix.depth *= dims[axis];
      matrix.depth_offsets = std::move(offsets);
    }
    return matrix;
  }

  ConvAttributes attributes_;
  Weights weights_;
  Weights plain_weights_;  // beside transformed ones, once they are needed
  Periphery periphery_;
};

AnalogConv::Plan::Plan(const ConvGeometry& geometry, const Reading& reading, const float* weights,
                       const float* bias)
    : g(geometry),
      layout(g),
      positions(g.output[0] * g.output[1] * g.output[2]),
      reading_(reading),
      weights_(weights),
      bias_(bias),
      group_filters_(g.filters / g.groups),
      group_stride_(g.channels / g.groups * layout.channel),
      output_(g.output),
      step_{g.stride[0] * layout.plane, g.stride[1] * layout.row} {
  const int64_t group_channels = g.channels / g.groups;
  taps_.reserve(static_cast<size_t>(group_channels * g.kernel[0] * g.kernel[1] * g.kernel[2]));
  for (int64_t c = 0; c < group_channels; ++c) {
    for (int64_t d = 0; d < g.kernel[0]; ++d) {
      for (int64_t h = 0; h < g.kernel[1]; ++h) {
        for (int64_t w = 0; w < g.kernel[2]; ++w) {
          taps_.push_back(c * layout.channel + d * g.dilation[0] * layout.plane +
                          h * g.dilation[1] * layout.row + layout.in_row(w * g.dilation[2]));
        }
      }
    }
  }
  if (step_[1] == output_[2]) output_ = {output_[0], 1, output_[1] * output_[2]};
  if (step_[0] == output_[2] && output_[1] == 1) output_ = {1, 1, output_[0] * output_[2]};
}

void AnalogConv::Plan::multiply(const Call& call, const Images& images, float* y) const {
  const int64_t columns = images.count * positions;
  const int64_t column_blocks = divide_up(columns, kColumnBlock);
  const int64_t row_blocks = divide_up(group_filters_, kRowBlock);
  const int64_t depth = static_cast<int64_t>(taps_.size());
  parallel_if_worth(call, g.groups * column_blocks * row_blocks, g.filters * columns * depth, [&](int64_t i) {
    const int64_t column = i % column_blocks * kColumnBlock;
    const int64_t row = i / column_blocks % row_blocks * kRowBlock;
    multiply_block(images, i / column_blocks / row_blocks, row, column,
                   std::min(kColumnBlock, columns - column), y);
  });
}

void AnalogConv::Plan::multiply_block(const Images& images, int64_t group, int64_t row, int64_t column,
                                      int64_t width, float* y) const {
  const MatrixKernels& kernel = kernels().matrix;
  const int64_t depth = static_cast<int64_t>(taps_.size());
  const int64_t height = std::min(kRowBlock, group_filters_ - row);
  const int64_t stride = divide_up(width, kernel.tile_columns) * kernel.tile_columns;
  thread_local Buffer patches_buffer;
  thread_local Buffer sums_buffer;
  thread_local Buffer partial_buffer;
  thread_local Buffer noise_buffer;
  float* columns = patches_buffer.reserve(stride * std::min(depth, kDepthBlock) + kSlack);
  float* sums = sums_buffer.reserve(height * stride);
  float* partial = reading_.tile() > kDepthBlock ? partial_buffer.reserve(height * stride) : nullptr;
  float* noise = reading_.noisy() ? noise_buffer.reserve(height * stride) : nullptr;
  const Patches patches{images.data + group * group_stride_,
                        images.readable - group * group_stride_,
                        taps_.data(),
                        layout.image,
                        {output_[0], output_[1], output_[2]},
                        {step_[0], step_[1]}};
  const float* weights = weights_ + group * group_filters_ * depth;
  const int64_t first_filter = group * group_filters_ + row;
  for (int64_t first = 0, block = 0; first < depth; first += block) {
    block = reading_.block(first);
    kernel.pack_patches(patches, column, width, first, block, columns);
    if (noise != nullptr && reading_.completes(first)) {
      draw_noise(first / reading_.tile(), images.first, first_filter, height, column, width, noise, stride);
    }
    reading_.multiply(weights + first * group_filters_ + row * block, columns, height, width, first, noise,
                      partial, sums, stride);
  }
  const float step = reading_.step();
  for (int64_t i = 0; i < height; ++i) {
    const int64_t filter = first_filter + i;
    const float bias = bias_ != nullptr ? bias_[filter] : 0.0f;
    const float* source = sums + i * stride;
    for (int64_t done = 0; done < width;) {
      const int64_t position = (column + done) % positions;
      const int64_t n = std::min(positions - position, width - done);
      float* target = y + ((column + done) / positions * g.filters + filter) * positions + position;
      for (int64_t j = 0; j < n; ++j) target[j] = step * source[done + j] + bias;
      done += n;
    }
  }
}

// Normals for `height` filters of some columns, counted from the first position of `image` on.
void AnalogConv::Plan::draw_noise(int64_t tile, int64_t image, int64_t filter, int64_t height, int64_t column,
                                  int64_t width, float* noise, int64_t stride) const {
  thread_local Buffer map_buffer;
  for (int64_t done = 0; done < width;) {
    const int64_t sample = image + (column + done) / positions;
    const int64_t position = (column + done) % positions;
    const int64_t n = std::min(positions - position, width - done);
    if (n == positions) {  // all of a map, whose elements follow those of the filter before
      float* maps = map_buffer.reserve(height * n);
      reading_.draw(tile, sample, filter * positions, height * n, maps);
      for (int64_t i = 0; i < height; ++i) std::copy_n(maps + i * n, n, noise + i * stride + done);
    } else {
      for (int64_t i = 0; i < height; ++i) {
        reading_.draw(tile, sample, (filter + i) * positions + position, n, noise + i * stride + done);
      }
    }
    done += n;
  }
}

void AnalogConv::Plan::correlate(const Call& call, const Images& images, const std::vector<int64_t>& filters,
                                 float* y) const {
  const auto count = static_cast<int64_t>(filters.size());
  const int64_t products = images.count * count * positions * static_cast<int64_t>(taps_.size());
  parallel_if_worth(call, images.count * count, products, [&](int64_t i) {
    const int64_t image = i / count;
    const int64_t filter = filters[static_cast<size_t>(i % count)];
    const float* input = images.data + image * layout.image + filter / group_filters_ * group_stride_;
    correlate_filter(input, images.first + image, filter, y + (image * g.filters + filter) * positions);
  });
}

void AnalogConv::Plan::correlate_filter(const float* input, int64_t image, int64_t filter, float* y) const {
  const int64_t depth = static_cast<int64_t>(taps_.size());
  const float* weights = weights_ + filter * depth;
  const float bias = bias_ != nullptr ? bias_[filter] : 0.0f;
  // Short rows are computed several in one go, together with the padding between them.
  const bool joined = step_[1] <= kDirectRun && g.stride[1] == 1;
  const int64_t rows_at_once = joined ? std::min(output_[1], std::max<int64_t>(1, kDirectRun / step_[1])) : 1;
  thread_local Buffer run_buffer;
  float* run = run_buffer.reserve(rows_at_once * std::max(step_[1], output_[2]) + kSlack);
  int64_t element = filter * positions;
  for (int64_t plane = 0; plane < output_[0]; ++plane) {
    for (int64_t row = 0; row < output_[1]; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, output_[1] - row);
      const float* source = input + plane * step_[0] + row * step_[1];
      if (reading_.active()) {
        read_tiles(source, weights, image, element, rows, run, y);
        for (int64_t i = 0; i < rows * output_[2]; ++i) y[i] = reading_.step() * y[i] + bias;
        y += rows * output_[2];
        element += rows * output_[2];
        continue;
      }
      kernels().matrix.correlate(source, taps_.data(), weights, depth, (rows - 1) * step_[1] + output_[2],
                                 bias, run);
      for (int64_t r = 0; r < rows; ++r, y += output_[2]) {
        std::memcpy(y, run + r * step_[1], static_cast<size_t>(output_[2]) * sizeof(float));
      }
    }
  }
}

// Some rows of one filter's map, read out tile by tile and added up; the first one is `element` of its
// sample.
void AnalogConv::Plan::read_tiles(const float* input, const float* weights, int64_t image, int64_t element,
                                  int64_t rows, float* run, float* y) const {
  const MatrixKernels& kernel = kernels().matrix;
  const int64_t depth = static_cast<int64_t>(taps_.size());
  const int64_t tile = reading_.tile();
  const int64_t count = rows * output_[2];
  thread_local Buffer noise_buffer;
  float* noise = reading_.noisy() ? noise_buffer.reserve(count) : nullptr;
  for (int64_t first = 0; first < depth; first += tile) {
    kernel.correlate(input, taps_.data() + first, weights + first, std::min(tile, depth - first),
                     (rows - 1) * step_[1] + output_[2], 0.0f, run);
    if (noise != nullptr) reading_.draw(first / tile, image, element, count, noise);
    for (int64_t r = 0; r < rows; ++r) {
      const Readout readout = reading_.readout(noise != nullptr ? noise + r * output_[2] : nullptr);
      kernel.read_out(run + r * step_[1], output_[2], readout, first > 0, y + r * output_[2]);
    }
  }
}

}  // namespace

std::unique_ptr<Op> make_analog_conv(const NodeInfo& node) {
  return std::make_unique<AnalogConv>(node);
}

}  // namespace cnpass
