// Winograd's convolution F(2 x 2, 3 x 3): a square of 2 x 2 outputs is
//
//   A^T [(G g G^T) * (B^T d B)] A
//
// of the 3 x 3 kernel g and the 4 x 4 inputs d, * being the product of elements: 16 products for every
// channel and filter instead of 36. Over channels, filters and squares that is 16 matrix products, one per
// element. The matrices are those of A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2015, arXiv 1509.09308.
//
// A crossbar tile may end amid the nine rows of a channel. That channel then takes part in both tiles, in
// each with the weights of the other's rows zero, which is exact.
//
// A value that is no number, or so large that sums of it could overflow, would spread over its square, which
// it does not in the sums of the contract. What such values touch is to be computed otherwise.
#pragma once

#include <vector>

#include "conv_geometry.h"
#include "conv_input.h"
#include "op.h"
#include "weights.h"

namespace cnpass {

class Winograd {
 public:
  Winograd(const ConvGeometry& geometry, const Reading& reading);

  // Whether the convolution is one that can be computed so, in less time than otherwise. The same for every
  // batch.
  bool pays() const { return pays_; }

  // The squares as the outputs of a convolution with kernels of 4 x 4 and strides of 2.
  const ConvGeometry& squares() const { return squares_; }
  const InputLayout& layout() const { return layout_; }

  // Transforms weights that a chip holds.
  void pack(const Call& call, const WeightMatrix& matrix, const float* weight, Buffer* packed) const;

  // Whether a filter of packed weights, or values, are to be computed otherwise.
  bool wild_filter(const float* packed, int64_t filter) const;
  static bool wild(const float* values, int64_t count);

  // `packed` as `pack` left it, bias null if there is none.
  void multiply(const Call& call, const Images& images, const float* packed, const float* bias,
                float* y) const;

 private:
  // Channels whose products are added up before the sums so far are touched.
  struct Block {
    int64_t tile;
    bool first;  // of the sums that are read out, or of all
    bool last;
    int64_t channel;
    int64_t channels;
    int64_t row;       // of the weight matrix: the weights before it are zero
    int64_t end;       // and from here on
    int64_t position;  // channels of the blocks before
  };

  // Squares side by side, within one block of columns: their outputs, without those beyond the map.
  struct Run {
    int64_t column;
    int64_t image;
    int64_t y;
    int64_t x;
    int64_t rows;
    int64_t width;
  };

  int64_t positions() const { return g_.output[1] * g_.output[2]; }  // per image and filter
  void add_blocks();
  double work() const;
  void multiply_block(const Images& images, const float* packed, const float* bias, int64_t group,
                      int64_t row, int64_t column, int64_t width, float* y) const;
  void transform_input(const Patches& patches, const Block& block, int64_t column, int64_t width, float* out,
                       int64_t stride) const;
  std::vector<Run> runs_of(int64_t column, int64_t width) const;
  void draw_noise(int64_t tile, int64_t image, int64_t filter, int64_t height, const std::vector<Run>& runs,
                  float* noise, int64_t stride) const;
  void write(const float* sums, int64_t stride, float bias, const std::vector<Run>& runs, float* y) const;

  const ConvGeometry& g_;
  const Reading& reading_;
  const ConvGeometry squares_;
  const InputLayout layout_;
  const int64_t channels_;  // per group
  const int64_t filters_;   // per group
  bool pays_ = false;
  std::vector<Block> blocks_;
  int64_t depth_ = 0;  // channels of all blocks
  std::vector<int64_t> taps_;
};

}  // namespace cnpass
