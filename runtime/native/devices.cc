#include "devices.h"

#include <cstdio>
#include <string>

namespace cnpass {

namespace {

// Purposes of random numbers; the list of all of them is in runtime/ops.py.
constexpr uint32_t kProgramming = 0;

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

// w exp(sigma n)
class LogNormal : public DeviceModel {
 public:
  // Normals stay below 5.8 in size, so that up to this sigma the exponential is a normal float32.
  static constexpr float kMaxSigma = 15.0f;

  explicit LogNormal(const NodeInfo& node) : sigma_(parameter(node, "sigma", 0.0f, kMaxSigma)) {}

  void program(const Draws& draws, uint64_t first, size_t count, const float* weight,
               float* out) const override {
    Draws own = draws;
    own.purpose = kProgramming;
    kernels().random.lognormal(own, first, count, sigma_, weight, out);
  }

 private:
  float sigma_;
};

}  // namespace

std::unique_ptr<DeviceModel> make_device(const NodeInfo& node) {
  const std::optional<std::string> name = node.text("device");
  if (!name) throw Error("attribute \"device\" is missing");
  if (*name == "programmed") return nullptr;
  if (*name == "lognormal") return std::make_unique<LogNormal>(node);
  throw Error("attribute \"device\" is \"" + *name + "\", must be lognormal or programmed");
}

}  // namespace cnpass
