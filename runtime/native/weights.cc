#include "weights.h"

#include <algorithm>
#include <cstring>

#include "op.h"

namespace cnpass {

namespace {

constexpr int64_t kMaxStream = (int64_t{1} << 24) - 1;
constexpr int64_t kMaxChip = (int64_t{1} << 32) - 2;
constexpr int64_t kMaxElements = int64_t{1} << 50;  // 2^48 blocks of four random words
constexpr int64_t kProgrammedAtOnce = 1 << 14;      // elements per unit of parallel work
constexpr int64_t kKeptScratch = 1 << 24;           // elements whose room a thread keeps, as BufferPool does

// Calls visit(first, depth) for every block of the sums.
template <class Visit>
void for_depth_blocks(const WeightMatrix& matrix, const Reading& reading, const Visit& visit) {
  for (int64_t first = 0; first < matrix.depth; first += reading.block(first)) {
    visit(first, reading.block(first));
  }
}

// Strides of a tensor that lies together in memory.
Dims strides_of(const Dims& dims) {
  Dims strides(dims.size());
  int64_t stride = 1;
  for (size_t i = strides.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= dims[i];
  }
  return strides;
}

}  // namespace

bool lies_together(const std::vector<int64_t>& depth_offsets) {
  for (size_t k = 0; k < depth_offsets.size(); ++k) {
    if (depth_offsets[k] != static_cast<int64_t>(k)) return false;
  }
  return true;
}

void pack_left(const Call& call, const WeightMatrix& matrix, const Reading& reading, const float* weight,
               Buffer* packed) {
  const int64_t tile = kernels().matrix.tile_rows;
  const int64_t panels = divide_up(matrix.rows, tile);
  float* out = packed->reserve(matrix.groups * matrix.rows * matrix.depth);
  const bool together = lies_together(matrix.depth_offsets);
  call.parallel_for(matrix.groups * panels, [&](int64_t i) {
    const int64_t group = i / panels;
    const int64_t row = i % panels * tile;
    const int64_t height = std::min(tile, matrix.rows - row);
    const float* source = weight + group * matrix.group_stride + row * matrix.row_stride;
    for_depth_blocks(matrix, reading, [&](int64_t first, int64_t depth) {
      float* target = out + (group * matrix.depth + first) * matrix.rows + row * depth;
      if (together) {
        kernels().matrix.pack_rows(source + first, matrix.row_stride, height, depth, target);
        return;
      }
      for (int64_t k = 0; k < depth; ++k) {
        const float* values = source + matrix.depth_offsets[first + k];
        for (int64_t r = 0; r < height; ++r) *target++ = values[r * matrix.row_stride];
      }
    });
  });
}

void pack_right(const Call& call, const WeightMatrix& matrix, const Reading& reading, const float* weight,
                Buffer* packed) {
  const int64_t tile = kernels().matrix.tile_columns;
  const int64_t panels = divide_up(matrix.rows, tile);
  float* out = packed->reserve(checked_madd(panels * tile, matrix.depth, 0));
  call.parallel_for(panels, [&](int64_t panel) {
    const int64_t row = panel * tile;
    const int64_t width = std::min(tile, matrix.rows - row);
    const float* source = weight + row * matrix.row_stride;
    for_depth_blocks(matrix, reading, [&](int64_t first, int64_t depth) {
      float* target = out + first * panels * tile + row * depth;
      const int64_t* offsets = matrix.depth_offsets.data() + first;
      if (matrix.row_stride == 1) {
        for (int64_t k = 0; k < depth; ++k) {
          std::memcpy(target + k * tile, source + offsets[k], static_cast<size_t>(width) * sizeof(float));
        }
      } else {  // along the depth, which is then what lies together in memory
        for (int64_t r = 0; r < width; ++r) {
          const float* values = source + r * matrix.row_stride;
          for (int64_t k = 0; k < depth; ++k) target[k * tile + r] = values[offsets[k]];
        }
      }
      for (int64_t k = 0; k < depth; ++k) std::fill(target + k * tile + width, target + (k + 1) * tile, 0.0f);
    });
  });
}

void pack_plain(const Call& call, const WeightMatrix& matrix, const float* weight, Buffer* packed) {
  float* out = packed->reserve(matrix.groups * matrix.rows * matrix.depth);
  call.parallel_for(matrix.groups, [&](int64_t group) {
    float* target = out + group * matrix.rows * matrix.depth;
    for (int64_t row = 0; row < matrix.rows; ++row) {
      const float* source = weight + group * matrix.group_stride + row * matrix.row_stride;
      for (int64_t offset : matrix.depth_offsets) *target++ = source[offset];
    }
  });
}

Weights::Weights(const NodeInfo& node, size_t input, size_t column_axis)
    : programmer_(node), op_column_axis_(column_axis) {
  draws_.seed = static_cast<uint64_t>(node.integer("seed").value_or(0));
  const int64_t stream = node.integer("stream").value_or(0);
  if (stream < 0 || stream > kMaxStream) {
    throw Error("attribute \"stream\" is " + std::to_string(stream) + ", must be between 0 and " +
                std::to_string(kMaxStream));
  }
  draws_.stream = static_cast<uint32_t>(stream);
  perm_ = node.integers("weight_perm").value_or(Dims{});
  Dims sorted = perm_;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) {
    if (sorted[i] != static_cast<int64_t>(i)) {
      throw Error("attribute \"weight_perm\" is not a permutation of 0 to " +
                  std::to_string(sorted.size() - 1));
    }
  }
  column_axis_ = perm_.size() > column_axis ? static_cast<size_t>(perm_[column_axis]) : column_axis;
  if (const std::optional<Tensor> weight = node.constant_input(input)) {
    constant_dims_ = effective(weight->dims);
    constant_scale_ = full_scale(*weight);
    constant_more_ = more(weight->dims);
  }
}

FullScale Weights::full_scale(const Tensor& weight) const {
  if (!programmer_.scaled() || column_axis_ >= weight.dims.size()) return {};
  if (element_count(weight.dims) == 0) return {};
  return FullScale(weight.floats(), weight.dims, column_axis_, programmer_.scale_floor());
}

std::vector<uint8_t> Weights::more(const Dims& dims) const {
  const Copies& copies = programmer_.copies();
  if (programmer_.transparent() || copies.extra == 0 || op_column_axis_ >= dims.size()) return {};
  const Dims sizes = effective(dims);
  const Dims strides = effective(strides_of(dims));
  const size_t columns = op_column_axis_;
  std::vector<uint8_t> chosen(static_cast<size_t>(element_count(dims)));
  if (chosen.empty()) return chosen;
  // Rows are counted along all axes but that of the columns, the last one fastest.
  Dims at(dims.size(), 0);
  for (int64_t row = 0, offset = 0;; row = row + 1 == copies.depth ? 0 : row + 1) {
    if (row < copies.extra) {
      for (int64_t i = 0; i < sizes[columns]; ++i)
        chosen[static_cast<size_t>(offset + i * strides[columns])] = 1;
    }
    size_t axis = sizes.size();
    while (axis-- > 0) {
      if (axis == columns) continue;
      offset += strides[axis];
      if (++at[axis] < sizes[axis]) break;
      offset -= strides[axis] * sizes[axis];
      at[axis] = 0;
    }
    if (axis == static_cast<size_t>(-1)) return chosen;
  }
}

Dims Weights::effective(const Dims& dims) const {
  if (perm_.empty()) return dims;
  if (perm_.size() != dims.size()) {
    throw Error("attribute \"weight_perm\" has " + counted(perm_.size(), "value") + ", needs " +
                std::to_string(dims.size()));
  }
  Dims permuted;
  for (int64_t axis : perm_) permuted.push_back(dims[axis]);
  return permuted;
}

bool Weights::current(const Snapshot& snapshot, const Tensor& weight, int64_t chip, Packing packing) const {
  if (snapshot.packing != packing) return false;
  if (snapshot.chip != chip && !programmer_.transparent()) return false;
  if (constant_dims_) return true;
  return snapshot.dims == weight.dims &&
         std::memcmp(snapshot.stored.data(), weight.data, snapshot.stored.size() * sizeof(float)) == 0;
}

std::shared_ptr<const Buffer> Weights::packed(const Call& call, const Tensor& weight, int64_t chip,
                                              Packing packing, const Pack& pack) const {
  if (chip < kIdealChip || chip > kMaxChip) {
    throw Error("input \"chip\" is " + std::to_string(chip) + ", must be between -1 and " +
                std::to_string(kMaxChip));
  }
  std::shared_ptr<const Snapshot> kept;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept = snapshot_;
  }
  if (kept != nullptr && current(*kept, weight, chip, packing)) return kept->packed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (snapshot_ == kept) snapshot_.reset();
  }
  kept.reset();  // its memory is then free for the next one, unless another thread still multiplies with it

  // Without the lock: another thread may meanwhile program another chip, or this one, into a snapshot of its
  // own.
  const int64_t count = element_count(weight.dims);
  if (count > kMaxElements) throw Error("input \"W\" has too many elements");
  auto fresh = std::make_shared<Snapshot>();
  fresh->chip = chip;
  fresh->packing = packing;
  fresh->dims = weight.dims;
  const float* values = weight.floats();
  if (!constant_dims_) fresh->stored.assign(values, values + count);
  thread_local Buffer kept_scratch;
  Buffer scratch;
  if (!programmer_.transparent() && chip != kIdealChip) {
    const FullScale scale = constant_dims_ ? constant_scale_ : full_scale(weight);
    const std::vector<uint8_t> fresh_more = constant_dims_ ? std::vector<uint8_t>{} : more(weight.dims);
    const std::vector<uint8_t>& chosen = constant_dims_ ? constant_more_ : fresh_more;
    float* out = (count <= kKeptScratch ? kept_scratch : scratch).reserve(count);
    Draws draws = draws_;
    draws.chip = static_cast<uint32_t>(chip);
    call.parallel_for(divide_up(count, kProgrammedAtOnce), [&](int64_t i) {
      const int64_t first = i * kProgrammedAtOnce;
      const int64_t n = std::min(kProgrammedAtOnce, count - first);
      programmer_.program(draws, static_cast<uint64_t>(first), static_cast<size_t>(n), values + first, scale,
                          chosen.empty() ? nullptr : chosen.data() + first, out + first);
    });
    values = out;
  }
  const std::shared_ptr<Buffer> packed = pool_->take();
  pack(effective(weight.dims), effective(strides_of(weight.dims)), values, packed.get());
  fresh->packed = packed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    snapshot_ = fresh;
  }
  return packed;
}

}  // namespace cnpass
