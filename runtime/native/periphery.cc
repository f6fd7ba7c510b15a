#include "periphery.h"

#include "devices.h"
#include "op.h"
#include "weights.h"

namespace cnpass {

namespace {

constexpr int64_t kMaxBits = 16;
constexpr float kSmallestRange = 1e-30f;
constexpr float kLargestRange = 1e30f;
constexpr int64_t kMaxSample = (int64_t{1} << 32) - 1;
constexpr int64_t kMaxReadings = int64_t{1} << 34;  // of a sample: 2^32 blocks of four normals

int64_t read_count(const NodeInfo& node, const char* name, int64_t smallest) {
  const int64_t value = node.integer(name).value_or(smallest);
  if (value < smallest) {
    throw Error(std::string("attribute \"") + name + "\" is " + std::to_string(value) +
                ", must be at least " + std::to_string(smallest));
  }
  return value;
}

float read_fraction(const NodeInfo& node, const char* name) {
  return node.real(name) ? parameter(node, name, 0.0f, 1.0f) : 0.0f;
}

// 0 where the range is not set.
float read_range(const NodeInfo& node, const char* name) {
  const float value = node.real(name) ? parameter(node, name, 0.0f, kLargestRange) : 0.0f;
  if (value > 0.0f && value < kSmallestRange) {
    throw Error(std::string("attribute \"") + name + "\" is below 1e-30");
  }
  return value;
}

void need_range(float range, const char* name, const char* user) {
  if (range == 0.0f) {
    throw Error(std::string("attribute \"") + name + "\" is 0, but \"" + user +
                "\" needs a range; the pass calibrate-ranges sets it");
  }
}

std::optional<Converter> read_converter(const NodeInfo& node, const char* bits_name, const char* range_name) {
  const int64_t bits = read_count(node, bits_name, 0);
  const float range = read_range(node, range_name);
  if (bits == 0) return std::nullopt;
  if (bits < 2 || bits > kMaxBits) {
    throw Error(std::string("attribute \"") + bits_name + "\" is " + std::to_string(bits) +
                ", must be 0 or between 2 and " + std::to_string(kMaxBits));
  }
  need_range(range, range_name, bits_name);
  const double highest = static_cast<double>((int64_t{1} << (bits - 1)) - 1);
  return Converter{static_cast<float>(highest / static_cast<double>(range)),
                   static_cast<float>(static_cast<double>(range) / highest), static_cast<float>(highest)};
}

}  // namespace

Periphery::Periphery(const NodeInfo& node)
    : sample_rows(read_count(node, "sample_rows", 1)),
      dac(read_converter(node, "dac_bits", "input_range")),
      adc(read_converter(node, "adc_bits", "output_range")) {
  const int64_t tile_rows = read_count(node, "tile_rows", 0);
  read_count(node, "tile_cols", 0);
  // Every copy of a weight has a row of its own, which is driven by the same input.
  if (tile_rows > 0) tile_depth = Copies(node).held(tile_rows);
  const float noise = read_fraction(node, "read_noise");
  if (noise > 0.0f) {
    const float range = read_range(node, "output_range");
    need_range(range, "output_range", "read_noise");
    deviation = noise * range;
  }
}

Reading::Reading(const Periphery& periphery, Draws draws, int64_t chip,
                 const std::optional<Tensor>& first_sample, int64_t samples, int64_t elements, int64_t depth)
    : adc_(periphery.adc ? &*periphery.adc : nullptr),
      deviation_(chip == kIdealChip ? 0.0f : periphery.deviation),
      depth_(depth),
      tile_(periphery.tells_tiles() ? std::min(depth, periphery.tile_depth) : depth),
      elements_(elements),
      draws_(draws) {
  if (first_sample) first_sample_ = read_scalar(*first_sample, "first_sample");
  if (!noisy() || samples == 0) return;
  if (first_sample_ < 0 || first_sample_ > kMaxSample - (samples - 1)) {
    throw Error("input \"first_sample\" is " + std::to_string(first_sample_) + ", must be between 0 and " +
                std::to_string(kMaxSample - (samples - 1)) + " for " + counted(samples, "sample"));
  }
  if (checked_madd(elements, divide_up(depth, tile_), 0) > kMaxReadings) {
    throw Error("a sample has too many readings for read noise");
  }
  draws_.chip = static_cast<uint32_t>(chip);
  draws_.purpose = kReadNoise;
}

void Reading::draw(int64_t tile, int64_t sample, int64_t first, int64_t count, float* out) const {
  // The sample takes the place of the counter's word copy << 16 | block >> 32; a block is four elements.
  const uint64_t number = static_cast<uint64_t>(first_sample_ + sample);
  Draws draws = draws_;
  draws.copy = static_cast<uint32_t>(number >> 16);
  const uint64_t element = static_cast<uint64_t>(tile * elements_ + first);
  kernels().random.normals(draws, (number & 0xffff) << 34 | element, static_cast<size_t>(count), out);
}

void Reading::multiply(const float* a, const float* b, int64_t rows, int64_t columns, int64_t first,
                       const float* noise, float* partial, float* sums, int64_t stride) const {
  const MatrixKernels& kernel = kernels().matrix;
  const int64_t depth = block(first);
  if (!active()) {
    kernel.multiply(a, b, rows, columns, depth, nullptr, nullptr, first > 0, sums, stride);
  } else if (!completes(first)) {
    kernel.multiply(a, b, rows, columns, depth, nullptr, nullptr, first % tile_ > 0, partial, stride);
  } else {
    const Readout how = readout(noise);
    const float* before = first % tile_ > 0 ? partial : nullptr;
    kernel.multiply(a, b, rows, columns, depth, before, &how, first >= tile_, sums, stride);
  }
}

}  // namespace cnpass
