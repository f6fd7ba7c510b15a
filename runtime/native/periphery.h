// What stands around a crossbar: tiles, converters and read noise (docs/ops.md).
#pragma once

#include <algorithm>
#include <optional>

#include "kernels.h"
#include "ort_node.h"

namespace cnpass {

// The attributes of a node, checked.
struct Periphery {
  // Throws Error where a value is out of range, or where what needs a range has none.
  explicit Periphery(const NodeInfo& node);

  // Whether it makes a difference which tile holds which row. The same on every chip, as is the order in
  // which weights are packed.
  bool tells_tiles() const { return tile_depth > 0 && (adc || deviation > 0.0f); }

  int64_t tile_depth = 0;  // rows of the weight matrix that a tile holds; 0: all of them
  int64_t sample_rows = 1;
  std::optional<Converter> dac;
  std::optional<Converter> adc;
  float deviation = 0.0f;  // of read noise, in units of the output
};

// The sums of one call: how deep the blocks are in which they are taken, and how tiles are read out.
class Reading {
 public:
  // `draws` names seed and stream; every one of `samples` samples has `elements` outputs. Throws Error where
  // a sample or an element has no number.
  Reading(const Periphery& periphery, Draws draws, int64_t chip, const std::optional<Tensor>& first_sample,
          int64_t samples, int64_t elements, int64_t depth);

  // Whether sums are touched at all before they are added up.
  bool active() const { return adc_ != nullptr || noisy(); }
  bool noisy() const { return deviation_ > 0.0f; }

  // Rows of a tile, or of all of them where tiles make no difference.
  int64_t tile() const { return tile_; }

  // What a sum of codes is multiplied by; 1 without ADC.
  float step() const { return adc_ != nullptr ? adc_->step : 1.0f; }

  // Rows of the block of the sums that begins with row `first`.
  int64_t block(int64_t first) const { return std::min(kDepthBlock, tile_end(first) - first); }

  // Whether the block that begins with row `first` is the last one of a tile that is read out.
  bool completes(int64_t first) const { return active() && first + block(first) == tile_end(first); }

  // How a tile is read out, with standard normals laid out as its sums, which are not read without noise.
  Readout readout(const float* noise) const { return {adc_, noisy() ? noise : nullptr, deviation_}; }

  // Standard normals of one tile: those of elements first, first + 1, ... of a sample of this call.
  void draw(int64_t tile, int64_t sample, int64_t first, int64_t count, float* out) const;

  // One block of the products: sums (+)= a b, through the converter where it completes a tile. `partial` has
  // room for as much as `sums`.
  void multiply(const float* a, const float* b, int64_t rows, int64_t columns, int64_t first,
                const float* noise, float* partial, float* sums, int64_t stride) const;

 private:
  int64_t tile_end(int64_t first) const { return std::min(depth_, (first / tile_ + 1) * tile_); }

  const Converter* adc_;
  float deviation_;
  int64_t depth_;
  int64_t tile_;
  int64_t elements_;
  int64_t first_sample_ = 0;
  Draws draws_;
};

}  // namespace cnpass
