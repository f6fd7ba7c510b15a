// Compiled without contraction of a * b + c, as all that decides on the bits of a programmed weight.
#include "devices.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

namespace cnpass {

namespace {

constexpr int64_t kMaxCopies = int64_t{1} << 16;
constexpr int64_t kMaxRows = int64_t{1} << 40;  // times copies it is a count still
constexpr double kWords = 4294967296.0;         // values of a random word
constexpr float kRounding = 1e-6f;              // two float32 rates may add up to this much more than 1

Draws for_purpose(Draws draws, uint32_t purpose) {
  draws.purpose = purpose;
  return draws;
}

// w exp(sigma n)
class LogNormal : public DeviceModel {
 public:
  // Normals stay below 5.8 in size, so that up to this sigma the exponential is a normal float32.
  static constexpr float kMaxSigma = 15.0f;

  explicit LogNormal(const NodeInfo& node) : sigma_(parameter(node, "sigma", 0.0f, kMaxSigma)) {}

  void respond(const Draws& draws, const Piece& piece, const Faults&, float* out) const override {
    kernels().random.lognormal(for_purpose(draws, kProgramming), piece.first, piece.count, sigma_,
                               piece.weight, out);
  }

 private:
  float sigma_;
};

// w + sigma F n
class Gaussian : public DeviceModel {
 public:
  explicit Gaussian(const NodeInfo& node)
      : sigma_(parameter(node, "sigma", 0.0f, 2.0f)), floor_(parameter(node, "scale_floor", 0.0f, 1.0f)) {}

  bool scaled() const override { return true; }
  float scale_floor() const override { return floor_; }

  void respond(const Draws& draws, const Piece& piece, const Faults&, float* out) const override {
    draw(draws, kProgramming, piece, out);
    for (size_t i = 0; i < piece.count; ++i) out[i] = piece.weight[i] + out[i] * (sigma_ * piece.scale[i]);
  }

 private:
  float sigma_;
  float floor_;
};

// w (1 + sigma n)
class Proportional : public DeviceModel {
 public:
  explicit Proportional(const NodeInfo& node) : sigma_(parameter(node, "sigma", 0.0f, 2.0f)) {}

  void respond(const Draws& draws, const Piece& piece, const Faults&, float* out) const override {
    draw(draws, kProgramming, piece, out);
    for (size_t i = 0; i < piece.count; ++i) out[i] = piece.weight[i] * (out[i] * sigma_ + 1.0f);
  }

 private:
  float sigma_;
};

template <class Model>
std::unique_ptr<DeviceModel> make(const NodeInfo& node) {
  return std::make_unique<Model>(node);
}

struct Entry {
  const char* name;
  std::unique_ptr<DeviceModel> (*make)(const NodeInfo& node);
};

constexpr Entry kModels[] = {
    {"lognormal", make<LogNormal>},
    {"gaussian", make<Gaussian>},
    {"proportional", make<Proportional>},
    {"conductance", make_conductance},
    {"pcm", make_pcm},
    {"reram", make_reram},
};

std::unique_ptr<DeviceModel> make_device(const NodeInfo& node) {
  const std::optional<std::string> name = node.text("device");
  if (!name) throw Error("attribute \"device\" is missing");
  if (*name == "programmed") return nullptr;
  std::string known;
  for (const Entry& entry : kModels) {
    if (*name == entry.name) return entry.make(node);
    known += std::string(entry.name) + ", ";
  }
  throw Error("attribute \"device\" is \"" + *name + "\", must be one of " + known + "programmed");
}

float optional_rate(const NodeInfo& node, const char* name) {
  return node.real(name) ? parameter(node, name, 0.0f, 1.0f) : 0.0f;
}

}  // namespace

float parameter(const NodeInfo& node, const char* name, float low, float high) {
  const std::optional<float> value = node.real(name);
  if (!value) throw Error(std::string("attribute \"") + name + "\" is missing");
  if (!(*value >= low && *value <= high)) {  // written so that NaN fails
    char text[96];
    std::snprintf(text, sizeof text, "%g, must be between %g and %g", *value, low, high);
    throw Error(std::string("attribute \"") + name + "\" is " + text);
  }
  return *value;
}

void draw(Draws draws, uint32_t purpose, const Piece& piece, float* out) {
  draws.purpose = purpose;
  kernels().random.normals(draws, piece.first, piece.count, out);
}

void Faults::states(const Draws& draws, uint32_t purpose, const Piece& piece, int8_t* out) const {
  uint32_t words[kPiece];
  kernels().random.words(for_purpose(draws, purpose), piece.first, piece.count, words);
  for (size_t i = 0; i < piece.count; ++i) {
    out[i] = static_cast<int8_t>(words[i] < low ? -1 : words[i] < low + high ? 1 : 0);
  }
}

FullScale::FullScale(const float* weight, const Dims& dims, size_t axis, float floor) {
  for (size_t i = axis + 1; i < dims.size(); ++i) stride_ *= static_cast<uint64_t>(dims[i]);
  const uint64_t columns = static_cast<uint64_t>(dims[axis]);
  const uint64_t blocks = static_cast<uint64_t>(element_count(dims)) / columns / stride_;
  values_.assign(columns, 0.0f);
  float largest = 0.0f;
  for (uint64_t block = 0; block < blocks; ++block) {
    for (float& value : values_) {
      for (uint64_t i = 0; i < stride_; ++i) value = std::max(value, std::fabs(*weight++));
    }
  }
  for (float value : values_) largest = std::max(largest, value);
  if (floor == 1.0f) values_ = {largest};
  for (float& value : values_) value = std::max(value, largest * floor);
}

Copies::Copies(const NodeInfo& node) : count(node.integer("copies").value_or(1)) {
  if (count < 1 || count > kMaxCopies) {
    throw Error("attribute \"copies\" is " + std::to_string(count) + ", must be between 1 and " +
                std::to_string(kMaxCopies));
  }
  const std::optional<Dims> given = node.integers("extra_copies");
  if (!given) return;
  if (given->size() != 2) {
    throw Error("attribute \"extra_copies\" has " + counted(given->size(), "value") + ", needs 2");
  }
  extra = (*given)[0];
  depth = (*given)[1];
  if (extra == 0 && depth == 0) return;
  if (extra < 1 || extra >= depth || depth > kMaxRows || count == kMaxCopies) {
    throw Error("attribute \"extra_copies\" is " + std::to_string(extra) + ", " + std::to_string(depth) +
                ", must be some, but not all, of so many rows");
  }
}

int64_t Copies::held(int64_t tile_rows) const {
  if (extra == 0) return std::max<int64_t>(1, tile_rows / count);
  const int64_t needed = depth * count + extra;
  if (needed > tile_rows) {
    throw Error("attributes \"copies\" and \"extra_copies\" need " + std::to_string(needed) +
                " rows, but \"tile_rows\" is " + std::to_string(tile_rows));
  }
  return depth;
}

Programmer::Programmer(const NodeInfo& node) : model_(make_device(node)), copies_(node) {
  const float low = optional_rate(node, "stuck_low");
  const float high = optional_rate(node, "stuck_high");
  if (low + high > 1.0f + kRounding) {
    throw Error("attributes \"stuck_low\" and \"stuck_high\" are more than 1 together");
  }
  faults_ = {static_cast<uint64_t>(low * kWords), static_cast<uint64_t>(high * kWords)};
}

void Programmer::program(const Draws& draws, uint64_t first, size_t count, const float* weight,
                         const FullScale& scale, const uint8_t* more, float* out) const {
  float scales[kPiece];
  float one_more[kPiece];
  for (size_t done = 0; done < count; done += kPiece) {
    const size_t n = count - done < kPiece ? count - done : kPiece;
    if (scaled()) {
      for (size_t i = 0; i < n; ++i) scales[i] = scale.at(first + done + i);
    }
    const Piece piece{first + done, n, weight + done, scaled() ? scales : nullptr};
    program_piece(draws, piece, out + done);
    if (copies_.count == 1 && more == nullptr) continue;
    const uint32_t copies = static_cast<uint32_t>(copies_.count);
    Draws own = draws;
    for (own.copy = 1; own.copy < copies; ++own.copy) {
      program_piece(own, piece, one_more);
      for (size_t i = 0; i < n; ++i) out[done + i] += one_more[i];
    }
    if (more == nullptr) {
      for (size_t i = 0; i < n; ++i) out[done + i] /= static_cast<float>(copies);
      continue;
    }
    program_piece(own, piece, one_more);
    for (size_t i = 0; i < n; ++i) {
      const float one = more[done + i] != 0 ? 1.0f : 0.0f;
      const float sum = more[done + i] != 0 ? out[done + i] + one_more[i] : out[done + i];
      out[done + i] = sum / (static_cast<float>(copies) + one);
    }
  }
}

void Programmer::program_piece(const Draws& draws, const Piece& piece, float* out) const {
  model_->respond(draws, piece, faults_, out);
  if (!faults_.any() || model_->handles_faults()) return;
  int8_t states[kPiece];
  faults_.states(draws, kFaults, piece, states);
  for (size_t i = 0; i < piece.count; ++i) {
    const float high = piece.weight[i] < 0.0f ? -piece.scale[i] : piece.scale[i];
    out[i] = states[i] < 0 ? 0.0f : states[i] > 0 ? high : out[i];
  }
}

}  // namespace cnpass
