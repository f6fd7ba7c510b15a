// Device models in which a weight is the difference of two conductances; the formulas, step by step, are
// those of runtime/devices/{pair,conductance,pcm,reram}.py. Compiled without contraction of a * b + c.
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

float at_least_zero(float x) {
  return x > 0.0f ? x : 0.0f;
}

float clamp(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}

// The largest integer that is not above x, for 0 <= x < 2^22; vectorises on every instruction set.
float floor_of(float x) {
  constexpr float kNoFraction = 8388608.0f;  // 2^23
  const float nearest = (x + kNoFraction) - kNoFraction;
  return nearest > x ? nearest - 1.0f : nearest;
}

float log_of(float x) {
  kernels().random.log(&x, 1, &x);
  return x;
}

float exp_of(float x) {
  kernels().random.exp(&x, 1, &x);
  return x;
}

template <size_t kCount>
float polynomial(float x, const float (&coefficients)[kCount]) {
  float value = coefficients[kCount - 1];
  for (size_t i = kCount - 1; i-- > 0;) value = value * x + coefficients[i];
  return value;
}

class PairModel : public DeviceModel {
 public:
  explicit PairModel(const NodeInfo& node)
      : g_max_(parameter(node, "g_max", 0.001f, 1e4f)),
        floor_(parameter(node, "scale_floor", 0.0f, 1.0f)),
        low_(g_max_ / parameter(node, "on_off", 1.1f, 1e6f)) {}

  bool scaled() const override { return true; }
  float scale_floor() const override { return floor_; }
  bool handles_faults() const override { return true; }

  void respond(const Draws& draws, const Piece& piece, const Faults& faults, float* out) const override {
    float ratio[kPiece];
    float idle[kPiece];
    for (size_t i = 0; i < piece.count; ++i) ratio[i] = 0.0f;
    program(draws, kSecond, piece, faults, ratio, idle);
    for (size_t i = 0; i < piece.count; ++i) {
      ratio[i] = std::fabs(piece.weight[i]) / (piece.scale[i] > 0.0f ? piece.scale[i] : 1.0f);
    }
    program(draws, kFirst, piece, faults, ratio, out);
    const float span = g_max_ - low_;
    for (size_t i = 0; i < piece.count; ++i) {
      const float size = (out[i] - idle[i]) * (piece.scale[i] / span * gain_);
      out[i] = piece.weight[i] < 0.0f ? -size : size;
    }
  }

 protected:
  // The conductances that devices hold whose targets lie at `ratio` between the lowest and the highest.
  virtual void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                           float* out) const = 0;

  float target(float ratio) const { return ratio * (g_max_ - low_) + low_; }

  float g_max_;
  float gain_ = 1.0f;  // of the digital side

 private:
  void program(const Draws& draws, const Device& device, const Piece& piece, const Faults& faults,
               const float* ratio, float* out) const {
    conductance(draws, device, piece, ratio, out);
    if (!faults.any()) return;
    int8_t states[kPiece];
    faults.states(draws, device.faults, piece, states);
    for (size_t i = 0; i < piece.count; ++i) out[i] = states[i] < 0 ? low_ : states[i] > 0 ? g_max_ : out[i];
  }

  float floor_;
  float low_;
};

class Conductance : public PairModel {
 public:
  explicit Conductance(const NodeInfo& node)
      : PairModel(node),
        steps_(parameter(node, "levels", 2.0f, 65536.0f) - 1.0f),
        noise_(parameter(node, "noise", 0.0f, 1e4f)) {
    if (steps_ != std::floor(steps_)) throw Error("attribute \"levels\" is not a whole number");
  }

 protected:
  void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                   float* out) const override {
    draw(draws, device.programming, piece, out);
    for (size_t i = 0; i < piece.count; ++i) {
      const float level = floor_of(ratio[i] * steps_ + 0.5f) / steps_;
      out[i] = at_least_zero(target(level) + out[i] * noise_);
    }
  }

 private:
  float steps_;
  float noise_;
};

class Pcm : public PairModel {
 public:
  explicit Pcm(const NodeInfo& node) : PairModel(node) {
    const float t = parameter(node, "t", 0.0f, 1e10f);
    const float t0 = parameter(node, "t0", 1e-3f, 1e6f);
    const float reading = parameter(node, "t_read", 1e-10f, 1e-4f);
    const char* const names[] = {"c0", "c1", "c2", "c3"};
    for (size_t i = 0; i < 4; ++i) coefficients_[i] = parameter(node, names[i], -1e4f, 1e4f);
    noise_ = parameter(node, "program_scale", 0.0f, 10.0f) * g_max_ / parameter(node, "g_ref", 0.001f, 1e4f);
    drift_ = parameter(node, "drift_scale", 0.0f, 10.0f);
    log_time_ = log_of((t + t0) / t0);
    read_ = std::sqrt(log_of((t + t0 + reading) / (reading + reading))) *
            parameter(node, "read_scale", 0.0f, 10.0f);
    gain_ = exp_of(log_time_ * parameter(node, "compensated_nu", 0.0f, 1.0f));
  }

 protected:
  void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                   float* out) const override {
    constexpr float kLeast = 1e-3f;
    constexpr float kNothingLeft = 80.0f;
    const size_t count = piece.count;
    float log_x[kPiece];
    float decay[kPiece];
    float normal[kPiece];
    draw(draws, device.programming, piece, normal);
    for (size_t i = 0; i < count; ++i) {
      const float goal = target(ratio[i]);
      const float x = goal / g_max_;
      out[i] = at_least_zero(goal + normal[i] * (polynomial(x, coefficients_) * noise_));
      log_x[i] = x > kLeast ? x : kLeast;
    }
    kernels().random.log(log_x, count, log_x);

    draw(draws, device.drift_exponent, piece, normal);
    for (size_t i = 0; i < count; ++i) {
      const float mu = clamp(log_x[i] * -0.0155f + 0.0244f, 0.049f, 0.1f);
      const float spread = clamp(log_x[i] * -0.0125f + -0.0059f, 0.008f, 0.045f);
      const float power = std::fabs(normal[i] * spread + mu) * drift_ * log_time_;
      decay[i] = -(power < kNothingLeft ? power : kNothingLeft);
      log_x[i] = log_x[i] * -0.65f;
    }
    kernels().random.exp(decay, count, decay);
    kernels().random.exp(log_x, count, log_x);

    draw(draws, device.slow_noise, piece, normal);
    for (size_t i = 0; i < count; ++i) {
      const float scaled = log_x[i] * 0.0088f;
      const float q = scaled > 0.2f ? 0.2f : scaled;
      out[i] = out[i] * decay[i] * at_least_zero(normal[i] * (q * read_) + 1.0f);
    }
  }

 private:
  float coefficients_[4];
  float noise_;
  float drift_;
  float log_time_;
  float read_;
};

class Reram : public PairModel {
 public:
  explicit Reram(const NodeInfo& node) : PairModel(node) {
    const char* const names[] = {"c0", "c1", "c2", "c3", "c4"};
    for (size_t i = 0; i < 5; ++i) coefficients_[i] = parameter(node, names[i], -1e4f, 1e4f);
    noise_ = g_max_ / parameter(node, "g_ref", 0.001f, 1e4f);
    const float log_t = log_of(parameter(node, "t", 1.0f, 1e10f));
    shift_ = log_t * parameter(node, "shift", -100.0f, 100.0f);
    relaxation_ = log_t * parameter(node, "relaxation_rate", -100.0f, 100.0f) +
                  parameter(node, "relaxation", -100.0f, 100.0f);
  }

 protected:
  void conductance(const Draws& draws, const Device& device, const Piece& piece, const float* ratio,
                   float* out) const override {
    float normal[kPiece];
    draw(draws, device.drift_exponent, piece, out);
    draw(draws, device.programming, piece, normal);
    for (size_t i = 0; i < piece.count; ++i) {
      const float goal = target(ratio[i]);
      const float programmed = goal + normal[i] * (polynomial(goal / g_max_, coefficients_) * noise_);
      out[i] = at_least_zero(programmed + (out[i] * relaxation_ + shift_));
    }
  }

 private:
  float coefficients_[5];
  float noise_;
  float shift_;
  float relaxation_;
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
