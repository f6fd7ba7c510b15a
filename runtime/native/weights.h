// The weight of an analog node: programmed for a chip, packed for multiplication, kept until the chip
// changes.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "devices.h"
#include "kernels.h"
#include "ort_node.h"
#include "periphery.h"

namespace cnpass {

constexpr int64_t kIdealChip = -1;

// A weight tensor read as one matrix per group; `depth` is what the products are summed over.
struct WeightMatrix {
  int64_t groups;
  int64_t rows;
  int64_t depth;
  int64_t group_stride;
  int64_t row_stride;
  std::vector<int64_t> depth_offsets;
};

// Whether the values of a row follow each other in memory.
bool lies_together(const std::vector<int64_t>& depth_offsets);

// Weights in the order in which they are multiplied. The blocks of `reading` come one after another (within a
// group); a block holds panels.
//
// Left operand: panels of tile_rows rows, the last one narrower, each [depth][row].
void pack_left(const Call& call, const WeightMatrix& matrix, const Reading& reading, const float* weight,
               Buffer* packed);
// Right operand: panels of tile_columns rows of the matrix, filled up with zeros, each [depth][row].
void pack_right(const Call& call, const WeightMatrix& matrix, const Reading& reading, const float* weight,
                Buffer* packed);
// Rows as they are, for kernels that read them one by one.
void pack_plain(const Call& call, const WeightMatrix& matrix, const float* weight, Buffer* packed);

// What `Pack` below makes of a weight; the same node may need one for inputs of one shape, and another for
// others.
enum class Packing { kPanels, kRows, kSquares };

class Weights {
 public:
  using Pack =
      std::function<void(const Dims& dims, const Dims& strides, const float* programmed, Buffer* packed)>;

  // Reads the attributes of the device, seed, stream and weight_perm, for the weight at `input`, as the op
  // uses it with crossbar columns along `column_axis`.
  Weights(const NodeInfo& node, size_t input, size_t column_axis);

  // Dimensions of the constant weight as the op uses it; without a value if it is not a constant.
  std::optional<Dims> constant_dims() const { return constant_dims_; }

  // Seed and stream; the rest is for the caller to set.
  const Draws& draws() const { return draws_; }

  // Dimensions as the op uses them, of a weight stored with `dims`.
  Dims effective(const Dims& dims) const;

  // The weight for `chip`, as `pack` leaves it, which does what `packing` says; it gets the effective
  // dimensions and strides. The result stays valid while other threads ask for other chips.
  std::shared_ptr<const Buffer> packed(const Call& call, const Tensor& weight, int64_t chip, Packing packing,
                                       const Pack& pack) const;

 private:
  struct Snapshot {
    int64_t chip;
    Packing packing;
    Dims dims;                  // of the stored weight
    std::vector<float> stored;  // the stored weight, unless it is a constant
    std::shared_ptr<const Buffer> packed;
  };

  bool current(const Snapshot& snapshot, const Tensor& weight, int64_t chip, Packing packing) const;

  FullScale full_scale(const Tensor& weight) const;

  // Of every element of a weight stored with `dims` whether it has one device more; empty if none has.
  std::vector<uint8_t> more(const Dims& dims) const;

  Programmer programmer_;
  Draws draws_{};
  Dims perm_;           // empty: identity
  size_t column_axis_;  // of the stored weight
  size_t op_column_axis_;
  std::optional<Dims> constant_dims_;
  FullScale constant_scale_;
  std::vector<uint8_t> constant_more_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Snapshot> snapshot_;
  std::shared_ptr<BufferPool> pool_ = std::make_shared<BufferPool>();
};

}  // namespace cnpass
