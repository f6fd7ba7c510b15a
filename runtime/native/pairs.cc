// Device models in which a weight is the difference of two conductances: their attributes, and the random
// numbers of both devices. The formulas are in kernels_pairs.cc. Compiled without contraction of a * b + c.
#include <cmath>
#include <string>

#include "devices.h"

namespace cnpass {

namespace {

// Which random numbers one of the two devices takes.
struct Device {
  uint32_t programming;
  uint32_t faults;
  uint32_t drift_exponent;
  uint32_t slow_noise;
};

constexpr Device kFirst{kProgramming, kFaults, kDriftExponent, kSlowNoise};
constexpr Device kSecond{kSecondDevice, kSecondFaults, kSecondDriftExponent, kSecondSlowNoise};

float log_of(float x) {
  kernels().random.log(&x, 1, &x);
  return x;
}

float exp_of(float x) {
  kernels().random.exp(&x, 1, &x);
  return x;
}

class PairModel : public DeviceModel {
 public:
  explicit PairModel(const NodeInfo& node)
      : span_(span_of(node)), floor_(parameter(node, "scale_floor", 0.0f, 1.0f)) {}

  bool scaled() const override { return true; }
  float scale_floor() const override { return floor_; }
  bool handles_faults() const override { return true; }

  void respond(const Draws& draws, const Piece& piece, const Faults& faults, float* out) const override {
    const PairKernels& pairs = kernels().pairs;
    float ratio[kPiece];
    float idle[kPiece];
    program(draws, kSecond, piece, faults, nullptr, idle);
    pairs.ratios(piece.weight, piece.scale, piece.count, ratio);
    program(draws, kFirst, piece, faults, ratio, out);
    pairs.differences(piece.weight, piece.scale, idle, span_.high - span_.low, gain_, piece.count, out);
  }

 protected:
  // The conductances that devices hold whose targets lie at `ratio` between the lowest and the highest, or
  // all at the lowest if it is null.
  virtual void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                           float* out) const = 0;

  Span span_;
  float gain_ = 1.0f;  // of the digital side

 private:
  static Span span_of(const NodeInfo& node) {
    const float high = parameter(node, "g_max", 0.001f, 1e4f);
    return {high / parameter(node, "on_off", 1.1f, 1e6f), high};
  }

  void program(const Draws& draws, const Device& device, const Piece& piece, const Faults& faults,
               const float* ratio, float* out) const {
    conductance(draws, device, piece, ratio, out);
    if (!faults.any()) return;
    int8_t states[kPiece];
    faults.states(draws, device.faults, piece, states);
    for (size_t i = 0; i < piece.count; ++i) {
      out[i] = states[i] < 0 ? span_.low : states[i] > 0 ? span_.high : out[i];
    }
  }

  float floor_;
};

class Conductance : public PairModel {
 public:
  explicit Conductance(const NodeInfo& node)
      : PairModel(node),
        formula_{span_, parameter(node, "levels", 2.0f, 65536.0f) - 1.0f,
                 parameter(node, "noise", 0.0f, 1e4f)} {
    if (formula_.steps != std::floor(formula_.steps))
      throw Error("attribute \"levels\" is not a whole number");
  }

 protected:
  void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                   float* out) const override {
    float programming[kPiece];
    draw(draws, device.programming, piece, programming);
    kernels().pairs.levels(formula_, ratio, programming, piece.count, out);
  }

 private:
  LevelsFormula formula_;
};

class Pcm : public PairModel {
 public:
  explicit Pcm(const NodeInfo& node) : PairModel(node) {
    const float t = parameter(node, "t", 0.0f, 1e10f);
    const float t0 = parameter(node, "t0", 1e-3f, 1e6f);
    const float reading = parameter(node, "t_read", 1e-10f, 1e-4f);
    const char* const names[] = {"c0", "c1", "c2", "c3"};
    formula_.span = span_;
    for (size_t i = 0; i < 4; ++i) formula_.coefficients[i] = parameter(node, names[i], -1e4f, 1e4f);
    formula_.noise =
        parameter(node, "program_scale", 0.0f, 10.0f) * span_.high / parameter(node, "g_ref", 0.001f, 1e4f);
    formula_.drift = parameter(node, "drift_scale", 0.0f, 10.0f);
    formula_.log_time = log_of((t + t0) / t0);
    formula_.read = std::sqrt(log_of((t + t0 + reading) / (reading + reading))) *
                    parameter(node, "read_scale", 0.0f, 10.0f);
    gain_ = exp_of(formula_.log_time * parameter(node, "compensated_nu", 0.0f, 1.0f));
  }

 protected:
  void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                   float* out) const override {
    float programming[kPiece];
    float drift[kPiece];
    float slow[kPiece];
    draw(draws, device.programming, piece, programming);
    draw(draws, device.drift_exponent, piece, drift);
    draw(draws, device.slow_noise, piece, slow);
    kernels().pairs.pcm(formula_, ratio, programming, drift, slow, piece.count, out);
  }

 private:
  PcmFormula formula_;
};

class Reram : public PairModel {
 public:
  explicit Reram(const NodeInfo& node) : PairModel(node) {
    const char* const names[] = {"c0", "c1", "c2", "c3", "c4"};
    formula_.span = span_;
    for (size_t i = 0; i < 5; ++i) formula_.coefficients[i] = parameter(node, names[i], -1e4f, 1e4f);
    formula_.noise = span_.high / parameter(node, "g_ref", 0.001f, 1e4f);
    const float log_t = log_of(parameter(node, "t", 1.0f, 1e10f));
    formula_.shift = log_t * parameter(node, "shift", -100.0f, 100.0f);
    formula_.relaxation = log_t * parameter(node, "relaxation_rate", -100.0f, 100.0f) +
                          parameter(node, "relaxation", -100.0f, 100.0f);
  }

 protected:
  void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                   float* out) const override {
    float programming[kPiece];
    float relaxation[kPiece];
    draw(draws, device.programming, piece, programming);
    draw(draws, device.drift_exponent, piece, relaxation);
    kernels().pairs.reram(formula_, ratio, programming, relaxation, piece.count, out);
  }

 private:
  ReramFormula formula_;
};

}  // namespace

std::unique_ptr<DeviceModel> make_conductance(const NodeInfo& node) {
  return std::make_unique<Conductance>(node);
}

std::unique_ptr<DeviceModel> make_pcm(const NodeInfo& node) {
  return std::make_unique<Pcm>(node);
}

std::unique_ptr<DeviceModel> make_reram(const NodeInfo& node) {
  return std::make_unique<Reram>(node);
}

}  // namespace cnpass
