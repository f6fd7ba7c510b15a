#include "winograd.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace cnpass {

namespace {

constexpr int64_t kTaps = 9;       // of a kernel
constexpr int64_t kElements = 16;  // of a transformed kernel or square

// Work of one task: what is multiplied and what comes of it stay in the second-level cache where there are
// few channels and filters; where there are many, weights come from further away for as many squares.
constexpr int64_t kSquareBlock = 64;
constexpr int64_t kRowBlock = 516;    // a multiple of tile_rows of every instruction set
constexpr int64_t kChannelChunk = 8;  // transformed at once, in the first-level cache

// What transforming a channel or a filter of a square costs, in multiply-accumulates.
constexpr double kTransformWork = 150.0;

// Inputs and weights up to this magnitude overflow nowhere: over 2^24 channels, sums stay below
// 81 * 2^24 * 2^96 (4 inputs make an element of B^T d B, 9/4 weights one of G g G^T, 9 products an output).
constexpr float kLargest = 281474976710656.0f;  // 2^48
constexpr int64_t kMaxChannels = int64_t{1} << 24;

bool fits(const ConvGeometry& g) {
  const auto one = [](const Axes& axes) { return axes[1] == 1 && axes[2] == 1; };
  return g.padded[0] == 1 && g.kernel == Axes{1, 3, 3} && one(g.stride) && one(g.dilation) &&
         g.channels / g.groups <= kMaxChannels;
}

// Most rows are short ones of one of these lengths.
inline void copy_row(const float* source, int64_t count, float* target) {
  const auto copy = [&](auto size) { std::memcpy(target, source, decltype(size)::value * sizeof(float)); };
  switch (count) {
    case 2:
      return copy(std::integral_constant<size_t, 2>{});
    case 4:
      return copy(std::integral_constant<size_t, 4>{});
    case 8:
      return copy(std::integral_constant<size_t, 8>{});
    case 16:
      return copy(std::integral_constant<size_t, 16>{});
    default:
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  }
}

ConvGeometry squares_of(const ConvGeometry& g) {
  ConvGeometry squares = g;
  squares.kernel = {1, 4, 4};
  squares.stride = {1, 2, 2};
  for (size_t axis : {1, 2}) {
    squares.output[axis] = divide_up(g.output[axis], 2);
    squares.padded[axis] = 2 * squares.output[axis] + 2;
  }
  return squares;
}

}  // namespace

Winograd::Winograd(const ConvGeometry& geometry, const Reading& reading)
    : g_(geometry),
      reading_(reading),
      squares_(squares_of(geometry)),
      layout_(squares_),
      channels_(geometry.channels / geometry.groups),
      filters_(geometry.filters / geometry.groups) {
  pays_ = fits(g_) && work() < static_cast<double>(g_.output[1] * g_.output[2]) *
                                   static_cast<double>(kTaps * channels_ * filters_);
  if (!pays_) return;
  add_blocks();
  taps_.reserve(static_cast<size_t>(channels_ * kElements));
  for (int64_t channel = 0; channel < channels_; ++channel) {
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t j = 0; j < 4; ++j) {
        taps_.push_back(channel * layout_.channel + i * layout_.row + layout_.in_row(j));
      }
    }
  }
}

// Of one image and group, in multiply-accumulates.
double Winograd::work() const {
  const auto tiles = static_cast<double>(divide_up(kTaps * channels_, reading_.tile()));
  const double channels = static_cast<double>(channels_) + tiles - 1;  // some take part in two tiles
  const auto filters = static_cast<double>(filters_);
  return static_cast<double>(squares_.output[1] * squares_.output[2]) *
         (kElements * channels * filters + kTransformWork * (channels + tiles * filters));
}

void Winograd::add_blocks() {
  const int64_t rows = kTaps * channels_;
  const bool active = reading_.active();  // else sums go on from tile to tile
  for (int64_t row = 0, tile = 0; row < rows; row += reading_.tile(), ++tile) {
    const int64_t end = std::min(rows, row + reading_.tile());
    const int64_t begin = row / kTaps;
    const int64_t last = divide_up(end, kTaps);
    for (int64_t channel = begin; channel < last; channel += kDepthBlock) {
      const int64_t channels = std::min(kDepthBlock, last - channel);
      const bool starts = channel == begin && (active || row == 0);
      const bool ends = channel + channels == last && (active || end == rows);
      blocks_.push_back({tile, starts, ends, channel, channels, row, end, depth_});
      depth_ += channels;
    }
  }
}

void Winograd::pack(const Call& call, const WeightMatrix& matrix, const float* weight, Buffer* packed) const {
  const int64_t tile = kernels().matrix.tile_rows;
  const int64_t panels = divide_up(filters_, tile);
  float* out = packed->reserve(checked_madd(g_.filters * kElements, depth_, g_.filters));
  float* marks = out + g_.filters * kElements * depth_;
  const bool together = lies_together(matrix.depth_offsets);
  call.parallel_for(g_.groups * panels, [&](int64_t i) {
    const int64_t group = i / panels;
    const int64_t row = i % panels * tile;
    const int64_t height = std::min(tile, filters_ - row);
    const float* rows = weight + group * matrix.group_stride + row * matrix.row_stride;
    int64_t row_stride = matrix.row_stride;
    thread_local Buffer rows_buffer;
    thread_local Buffer panel_buffer;
    if (!together) {
      float* gathered = rows_buffer.reserve(height * matrix.depth);
      for (int64_t r = 0; r < height; ++r) {
        for (int64_t k = 0; k < matrix.depth; ++k) {
          gathered[r * matrix.depth + k] = rows[r * row_stride + matrix.depth_offsets[k]];
        }
      }
      rows = gathered;
      row_stride = matrix.depth;
    }
    for (int64_t r = 0; r < height; ++r) {
      marks[group * filters_ + row + r] = wild(rows + r * row_stride, matrix.depth) ? 1.0f : 0.0f;
    }
    float* panel = panel_buffer.reserve(height * kChannelChunk * kTaps + kSlack);
    for (const Block& block : blocks_) {
      float* target = out + (group * depth_ + block.position) * kElements * filters_ + row * block.channels;
      for (int64_t done = 0; done < block.channels; done += kChannelChunk) {
        const int64_t channels = std::min(kChannelChunk, block.channels - done);
        const int64_t first = (block.channel + done) * kTaps;
        const int64_t depth = channels * kTaps;
        kernels().matrix.pack_rows(rows + first, row_stride, height, depth, panel);
        const int64_t begin = std::clamp<int64_t>(block.row - first, 0, depth);
        const int64_t end = std::clamp<int64_t>(block.end - first, 0, depth);
        std::fill(panel, panel + begin * height, 0.0f);
        std::fill(panel + end * height, panel + depth * height, 0.0f);
        kernels().winograd.transform_weights(panel, height, channels, block.channels - done,
                                             target + done * height, block.channels * filters_);
      }
    }
  });
}

bool Winograd::wild_filter(const float* packed, int64_t filter) const {
  return packed[g_.filters * kElements * depth_ + filter] != 0.0f;
}

bool Winograd::wild(const float* values, int64_t count) {
  return !kernels().winograd.within(values, count, kLargest);
}

void Winograd::multiply(const Call& call, const Images& images, const float* packed, const float* bias,
                        float* y) const {
  const int64_t columns = images.count * squares_.output[1] * squares_.output[2];
  const int64_t column_blocks = divide_up(columns, kSquareBlock);
  const int64_t row_blocks = divide_up(filters_, kRowBlock);
  const int64_t products = g_.filters * columns * kElements * depth_;
  parallel_if_worth(call, g_.groups * column_blocks * row_blocks, products, [&](int64_t i) {
    const int64_t column = i % column_blocks * kSquareBlock;
    const int64_t row = i / column_blocks % row_blocks * kRowBlock;
    multiply_block(images, packed, bias, i / column_blocks / row_blocks, row, column,
                   std::min(kSquareBlock, columns - column), y);
  });
}

void Winograd::multiply_block(const Images& images, const float* packed, const float* bias, int64_t group,
                              int64_t row, int64_t column, int64_t width, float* y) const {
  const MatrixKernels& kernel = kernels().matrix;
  const int64_t height = std::min(kRowBlock, filters_ - row);
  const int64_t stride = divide_up(width, kernel.tile_columns) * kernel.tile_columns;
  const int64_t deepest = std::min(channels_, kDepthBlock);
  // Not powers of two apart, lest all elements share the sets of a cache.
  const int64_t input_stride = stride * deepest + kSlack;
  const int64_t product_stride = stride * height + kSlack;
  thread_local Buffer input_buffer;
  thread_local Buffer products_buffer;
  thread_local Buffer outputs_buffer;
  thread_local Buffer sums_buffer;
  thread_local Buffer noise_buffer;
  float* input = input_buffer.reserve(kElements * input_stride);
  float* products = products_buffer.reserve(kElements * product_stride);
  float* outputs = outputs_buffer.reserve(4 * stride);
  float* sums = reading_.active() ? sums_buffer.reserve(height * 4 * stride) : nullptr;
  float* noise = reading_.noisy() ? noise_buffer.reserve(height * 4 * stride) : nullptr;
  const int64_t offset = group * channels_ * layout_.channel;
  const Patches patches{images.data + offset,
                        images.readable - offset,
                        taps_.data(),
                        layout_.image,
                        {1, squares_.output[1], squares_.output[2]},
                        {0, 2 * layout_.row}};
  const std::vector<Run> runs = runs_of(column, width);
  const int64_t first_filter = group * filters_ + row;
  for (const Block& block : blocks_) {
    transform_input(patches, block, column, width, input, input_stride);
    const float* weights =
        packed + (group * depth_ + block.position) * kElements * filters_ + row * block.channels;
    for (int64_t element = 0; element < kElements; ++element) {
      kernel.multiply(weights + element * block.channels * filters_, input + element * input_stride, height,
                      width, block.channels, nullptr, nullptr, !block.first,
                      products + element * product_stride, stride);
    }
    if (!block.last) continue;
    if (noise != nullptr) draw_noise(block.tile, images.first, first_filter, height, runs, noise, stride);
    for (int64_t i = 0; i < height; ++i) {
      kernels().winograd.transform_output(products + i * stride, product_stride, stride, outputs);
      const float* total = outputs;
      if (sums != nullptr) {
        const Readout readout = reading_.readout(noise != nullptr ? noise + i * 4 * stride : nullptr);
        kernel.read_out(outputs, 4 * stride, readout, block.tile > 0, sums + i * 4 * stride);
        total = sums + i * 4 * stride;
      }
      if (&block != &blocks_.back()) continue;
      const int64_t filter = first_filter + i;
      write(total, stride, bias != nullptr ? bias[filter] : 0.0f, runs, y + filter * positions());
    }
  }
}

void Winograd::transform_input(const Patches& patches, const Block& block, int64_t column, int64_t width,
                               float* out, int64_t stride) const {
  const MatrixKernels& kernel = kernels().matrix;
  thread_local Buffer patches_buffer;
  float* copied = patches_buffer.reserve(kChannelChunk * kElements * kernel.tile_columns + kSlack);
  for (int64_t done = 0; done < width; done += kernel.tile_columns) {
    const int64_t columns = std::min(kernel.tile_columns, width - done);
    for (int64_t channel = 0; channel < block.channels; channel += kChannelChunk) {
      const int64_t channels = std::min(kChannelChunk, block.channels - channel);
      kernel.pack_patches(patches, column + done, columns, (block.channel + channel) * kElements,
                          channels * kElements, copied);
      kernels().winograd.transform_input(copied, channels,
                                         out + done * block.channels + channel * kernel.tile_columns, stride);
    }
  }
}

std::vector<Winograd::Run> Winograd::runs_of(int64_t column, int64_t width) const {
  const int64_t across = squares_.output[2];
  const int64_t per_image = squares_.output[1] * across;
  std::vector<Run> runs;
  for (int64_t done = 0; done < width;) {
    const int64_t square = (column + done) % per_image;
    const int64_t x = square % across;
    const int64_t y = square / across;
    const int64_t count = std::min(across - x, width - done);
    runs.push_back({done, (column + done) / per_image, 2 * y, 2 * x,
                    std::min<int64_t>(2, g_.output[1] - 2 * y), std::min(2 * count, g_.output[2] - 2 * x)});
    done += count;
  }
  return runs;
}

// Standard normals for `height` filters, as the sums lie; images are counted from `image` on.
void Winograd::draw_noise(int64_t tile, int64_t image, int64_t filter, int64_t height,
                          const std::vector<Run>& runs, float* noise, int64_t stride) const {
  constexpr int64_t kLong = 64;  // as many normals are drawn at once
  const int64_t across = g_.output[2];
  thread_local Buffer drawn_buffer;
  for (size_t begin = 0, end = 0; begin < runs.size(); begin = end) {
    const Run& run = runs[begin];
    const int64_t sample = image + run.image;
    if (across >= kLong) {  // where they are used
      end = begin + 1;
      for (int64_t i = 0; i < height; ++i) {
        const int64_t first = (filter + i) * positions() + run.y * across + run.x;
        float* target = noise + i * 4 * stride + 2 * run.column;
        for (int64_t row = 0; row < run.rows; ++row) {
          reading_.draw(tile, sample, first + row * across, run.width, target + row * 2 * stride);
        }
      }
      continue;
    }
    // All rows of the image that runs are in, or its whole maps, which follow each other.
    while (end < runs.size() && runs[end].image == run.image) ++end;
    const int64_t first = run.y * across;
    const int64_t count = (runs[end - 1].y + runs[end - 1].rows) * across - first;
    float* drawn = drawn_buffer.reserve(height * count);
    if (count == positions()) {
      reading_.draw(tile, sample, filter * count, height * count, drawn);
    } else {
      for (int64_t i = 0; i < height; ++i) {
        reading_.draw(tile, sample, (filter + i) * positions() + first, count, drawn + i * count);
      }
    }
    for (int64_t i = 0; i < height; ++i, drawn += count) {
      for (size_t r = begin; r < end; ++r) {
        const float* from = drawn + runs[r].y * across + runs[r].x - first;
        float* target = noise + i * 4 * stride + 2 * runs[r].column;
        for (int64_t row = 0; row < runs[r].rows; ++row) {
          copy_row(from + row * across, runs[r].width, target + row * 2 * stride);
        }
      }
    }
  }
}

// One filter's sums, two rows of 2 * stride outputs, into its maps, of which y is the first.
void Winograd::write(const float* sums, int64_t stride, float bias, const std::vector<Run>& runs,
                     float* y) const {
  const int64_t image = g_.filters * positions();
  const int64_t across = g_.output[2];
  thread_local Buffer rows_buffer;
  float* rows = rows_buffer.reserve(4 * stride);
  kernels().winograd.scale(sums, 4 * stride, reading_.step(), bias, rows);
  for (const Run& run : runs) {
    float* target = y + run.image * image + run.y * across + run.x;
    for (int64_t row = 0; row < run.rows; ++row) {
      copy_row(rows + row * 2 * stride + 2 * run.column, run.width, target + row * across);
    }
  }
}

}  // namespace cnpass
