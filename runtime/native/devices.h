// Device models: how a stored weight comes out on a given chip. The formulas are those of runtime/devices.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "ort_node.h"

namespace cnpass {

// Purposes of random numbers; the list of all of them is in runtime/ops.py.
constexpr uint32_t kProgramming = 0;
constexpr uint32_t kFaults = 1;
constexpr uint32_t kDriftExponent = 2;
constexpr uint32_t kSecondDevice = 3;
constexpr uint32_t kSlowNoise = 4;
constexpr uint32_t kSecondFaults = 5;
constexpr uint32_t kSecondDriftExponent = 6;
constexpr uint32_t kSecondSlowNoise = 7;
constexpr uint32_t kReadNoise = 8;

// Consecutive elements of a weight tensor.
struct Piece {
  uint64_t first;
  size_t count;  // at most kPiece
  const float* weight;
  const float* scale;  // full scale of each element; null unless the model is scaled or there are faults
};

constexpr size_t kPiece = 1024;  // what a model has in hand at a time stays in the first-level cache

// Rates of stuck devices, in 2^-32: how many values of a random word mean so.
struct Faults {
  uint64_t low = 0;
  uint64_t high = 0;

  bool any() const { return low + high > 0; }

  // For each element of the piece -1 if its device is stuck low, 1 if it is stuck high, else 0.
  void states(const Draws& draws, uint32_t purpose, const Piece& piece, int8_t* out) const;
};

class DeviceModel {
 public:
  virtual ~DeviceModel() = default;

  // Whether the formula needs the full scale, and the least one of a column relative to that of the tensor.
  virtual bool scaled() const { return false; }
  virtual float scale_floor() const { return 1.0f; }

  // Whether `respond` puts in the faults itself.
  virtual bool handles_faults() const { return false; }

  // One device, or pair of devices, per weight; `draws` holds all but the purpose.
  virtual void respond(const Draws& draws, const Piece& piece, const Faults& faults, float* out) const = 0;
};

// The attribute `name`, of which `low` and `high` are the bounds.
float parameter(const NodeInfo& node, const char* name, float low, float high);

// The standard normals of a piece.
void draw(Draws draws, uint32_t purpose, const Piece& piece, float* out);

// Models in which a weight is a pair of devices.
std::unique_ptr<DeviceModel> make_conductance(const NodeInfo& node);
std::unique_ptr<DeviceModel> make_pcm(const NodeInfo& node);
std::unique_ptr<DeviceModel> make_reram(const NodeInfo& node);

// The largest absolute weight of the tensor or, where that is more than `floor` of it, of the column.
class FullScale {
 public:
  FullScale() = default;
  // Columns are counted along `axis` of the stored weight.
  FullScale(const float* weight, const Dims& dims, size_t axis, float floor);

  float at(uint64_t element) const {
    return values_.size() == 1 ? values_[0] : values_[element / stride_ % values_.size()];
  }

 private:
  std::vector<float> values_{0.0f};
  uint64_t stride_ = 1;
};

// How many devices hold a weight: `count`, and one more in the first `extra` of every `depth` rows.
struct Copies {
  // Reads the attributes copies and extra_copies.
  explicit Copies(const NodeInfo& node);

  // Rows of the matrix in a tile of `tile_rows` rows; throws Error if they do not fit.
  int64_t held(int64_t tile_rows) const;

  int64_t count;
  int64_t extra = 0;
  int64_t depth = 0;
};

// A device model with faults, and with any number of devices per weight: everything between a stored weight
// and the one that a chip holds.
class Programmer {
 public:
  // Reads the attributes device (and its parameters), stuck_low, stuck_high, copies and extra_copies.
  explicit Programmer(const NodeInfo& node);

  // Whether weights come as they are, programmed upstream.
  bool transparent() const { return model_ == nullptr; }

  bool scaled() const { return model_ != nullptr && (model_->scaled() || faults_.any()); }
  float scale_floor() const { return model_->scale_floor(); }

  const Copies& copies() const { return copies_; }

  // Programs `count` elements from `first` on; `draws` holds all but the purpose, with copy 0. `more` says of
  // each whether it has one device more than the others; null if none has.
  void program(const Draws& draws, uint64_t first, size_t count, const float* weight, const FullScale& scale,
               const uint8_t* more, float* out) const;

 private:
  void program_piece(const Draws& draws, const Piece& piece, float* out) const;

  std::unique_ptr<DeviceModel> model_;  // null: programmed upstream
  Faults faults_;
  Copies copies_;
};

}  // namespace cnpass
