// Drives the operators with random nodes, for builds with sanitizers: right
// results, whole outputs, the same bits on any number of threads, in any split
// of the batch and while threads share kernels on different chips; and no harm
// from nodes that are broken.
//
//   cnpass_harness [cases [seed]]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ort_stand_in.h"

extern "C" {
const char* cnpass_isa();
void cnpass_normals(uint64_t seed, uint32_t chip, uint32_t stream, uint32_t purpose, uint32_t copy,
                    uint64_t first, size_t n, float* out);
void cnpass_program_lognormal(uint64_t seed, uint32_t chip, uint32_t stream, uint64_t first, size_t n,
                              float sigma, const float* w, float* out);
}

namespace cnpass::harness {

namespace {

using ort::Value;

constexpr int64_t kIdealChip = -1;

class Random {
 public:
  Random(uint64_t seed, uint64_t number) {
    std::seed_seq sequence{seed, number};
    engine_.seed(sequence);
  }

  // Both ends included.
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  bool chance(double probability) { return std::bernoulli_distribution(probability)(engine_); }
  float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  template <class T>
  T of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(integer(0, static_cast<int64_t>(choices.size()) - 1))];
  }
  Value normals(Dims dims) {
    Value value = make_floats(std::move(dims));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size_of(value.dims); ++i) value.floats[i] = normal(engine_);
    return value;
  }
  Dims integers(size_t count, int64_t low, int64_t high) {
    Dims values(count);
    for (int64_t& value : values) value = integer(low, high);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

struct Case {
  std::string op;
  Attributes attributes;
  Value x;
  Value w;  // as stored
  std::optional<Value> bias;
  bool constant = false;      // whether W is a constant of the graph
  bool first_sample = false;  // whether the node has that input
  bool exact = true;          // no periphery
  size_t axes = 0;            // of a convolution

  bool conv() const { return op == "AnalogConv"; }
  const Value* constant_weight() const { return constant ? &w : nullptr; }
};

void fail(const std::string& what) {
  throw std::runtime_error(what);
}

void add_device(Random& random, Attributes& a) {
  const auto device = random.of<std::string>(
      {"lognormal", "gaussian", "proportional", "conductance", "pcm", "reram", "programmed"});
  const bool pair = device == "conductance" || device == "pcm" || device == "reram";
  const auto coefficients = [&](int count) {
    for (int i = 0; i < count; ++i) a["c" + std::to_string(i)] = random.real(-1, 2);
  };
  a["device"] = device;
  if (!pair) a["sigma"] = random.real(0, 2);
  if (pair || device == "gaussian") a["scale_floor"] = random.of<float>({0, 0.5f, 1});
  if (pair) {
    a["g_max"] = random.real(1, 40);
    a["on_off"] = random.real(2, 100);
    a["g_ref"] = random.real(1, 40);
    a["t"] = random.real(1, 1e6f);
  }
  if (device == "conductance") {
    a["levels"] = static_cast<float>(random.integer(2, 16));
    a["noise"] = random.real(0, 2);
  } else if (device == "pcm") {
    coefficients(4);
    a["t0"] = 20.0f;
    a["t_read"] = 250e-9f;
    for (const char* name : {"program_scale", "drift_scale", "read_scale"}) a[name] = random.real(0, 2);
    a["compensated_nu"] = random.real(0, 0.1f);
  } else if (device == "reram") {
    coefficients(5);
    for (const char* name : {"shift", "relaxation", "relaxation_rate"}) a[name] = random.real(-1, 1);
  }
  a["seed"] = random.integer(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  a["stream"] = random.integer(0, (1 << 24) - 1);
  if (random.chance(0.3)) a["copies"] = random.integer(1, 4);
  if (random.chance(0.3)) a["stuck_low"] = random.real(0, 0.4f);
  if (random.chance(0.3)) a["stuck_high"] = random.real(0, 0.4f);
}

void add_periphery(Random& random, Case& made) {
  Attributes& a = made.attributes;
  made.exact = !random.chance(0.5);
  made.first_sample = random.chance(0.5);
  if (made.exact) return;
  made.first_sample = true;
  if (random.chance(0.7)) a["tile_rows"] = random.integer(1, 300);
  if (random.chance(0.3)) a["tile_cols"] = random.integer(1, 300);
  if (random.chance(0.5)) a["dac_bits"] = random.integer(2, 16);
  if (random.chance(0.5)) a["adc_bits"] = random.integer(2, 16);
  a["input_range"] = random.real(0.1f, 4);
  a["output_range"] = random.real(0.1f, 40);
  if (random.chance(0.5)) a["read_noise"] = random.real(0, 0.2f);
}

// Stores the weight in another order than the op uses, for `weight_perm` to
// undo.
Dims stored_dims(Random& random, const Dims& dims, Attributes& a) {
  if (random.chance(0.7)) return dims;
  Dims perm(dims.size());
  for (size_t i = 0; i < perm.size(); ++i) perm[i] = static_cast<int64_t>(i);
  for (size_t i = perm.size(); i-- > 1;) {
    std::swap(perm[i], perm[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i)))]);
  }
  Dims stored(dims.size());
  for (size_t i = 0; i < perm.size(); ++i) stored[static_cast<size_t>(perm[i])] = dims[i];
  a["weight_perm"] = perm;
  return stored;
}

Case make_conv(Random& random) {
  Case made;
  made.op = "AnalogConv";
  Attributes& a = made.attributes;
  const bool squares = random.chance(0.2);  // what Winograd's convolution is for
  const bool depthwise = !squares && random.chance(0.3);
  made.axes = squares ? 2 : static_cast<size_t>(random.integer(1, 3));
  const int64_t group = squares ? random.integer(1, 2) : random.of<int64_t>({1, 1, 2, 3, 8});
  const int64_t channels = squares     ? random.of<int64_t>({16, 20, 33})
                           : depthwise ? 1
                                       : random.of<int64_t>({1, 3, 7, 40});
  const int64_t filters = squares ? random.integer(16, 40) : random.integer(1, depthwise ? 2 : 20);
  const Dims kernel = squares ? Dims{3, 3} : random.integers(made.axes, 1, 4);
  Dims dilations = random.integers(made.axes, 1, squares ? 1 : 3);
  a["group"] = group;
  a["kernel_shape"] = kernel;
  a["strides"] = random.integers(made.axes, 1, squares ? 1 : 3);
  a["dilations"] = dilations;
  if (random.chance(0.5)) {
    a["pads"] = random.integers(2 * made.axes, 0, 2);
  } else {
    a["auto_pad"] = random.of<std::string>({"VALID", "SAME_UPPER", "SAME_LOWER"});
  }
  for (const char* optional : {"kernel_shape", "strides", "dilations", "pads"}) {
    if (random.chance(0.2)) a.erase(optional);
  }
  Dims x{random.integer(1, 4), group * channels};
  Dims w{group * filters, channels};
  for (size_t i = 0; i < made.axes; ++i) {
    x.push_back((kernel[i] - 1) * dilations[i] + 1 + random.integer(0, made.axes < 3 ? 20 : 5));
    w.push_back(kernel[i]);
  }
  made.x = random.normals(x);
  made.w = random.normals(stored_dims(random, w, a));
  if (random.chance(0.5)) made.bias = random.normals({group * filters});
  return made;
}

Case make_matmul(Random& random) {
  Case made;
  made.op = "AnalogMatMul";
  const int64_t depth = random.of<int64_t>({1, 5, 64, 257, 600});
  const int64_t columns = random.of<int64_t>({1, 3, 17, 130, 600});
  Dims x = random.integers(static_cast<size_t>(random.integer(0, 3)), 1, 6);
  x.push_back(depth);
  made.x = random.normals(x);
  made.w = random.normals(stored_dims(random, {depth, columns}, made.attributes));
  return made;
}

Case make_case(Random& random) {
  Case made = random.chance(0.6) ? make_conv(random) : make_matmul(random);
  made.constant = random.chance(0.7);
  add_device(random, made.attributes);
  add_periphery(random, made);
  return made;
}

template <class T>
T get(const Attributes& attributes, const char* name, T absent) {
  const auto found = attributes.find(name);
  return found == attributes.end() ? absent : std::get<T>(found->second);
}

Outcome run(const Case& made, const Node& node, const Value& x, int64_t first, int64_t chip, int threads) {
  const Value chip_value = make_integer(chip);
  const Value first_value = make_integer(first);
  std::vector<const Value*> inputs{&x, &made.w};
  if (made.conv()) inputs.push_back(made.bias ? &*made.bias : nullptr);
  inputs.push_back(&chip_value);
  if (made.first_sample) inputs.push_back(&first_value);
  return node.run(inputs, threads);
}

Value output(const Case& made, const Node& node, int64_t chip, int threads) {
  Outcome outcome = run(made, node, made.x, 0, chip, threads);
  if (!outcome.output) fail("is refused: " + outcome.error);
  const Value& y = *outcome.output;
  for (int64_t i = 0; i < size_of(y.dims); ++i) {
    if (y.floats[i] == std::numeric_limits<float>::max()) fail("left a part of its output as it was");
  }
  return std::move(*outcome.output);
}

bool same(const Value& a, const Value& b) {
  return a.dims == b.dims && std::memcmp(a.floats.get(), b.floats.get(),
                                         static_cast<size_t>(size_of(a.dims)) * sizeof(float)) == 0;
}

// The weight as the op uses it, from the one that is stored.
Value effective_weight(const Case& made) {
  const Dims& dims = made.w.dims;
  Dims perm(dims.size());
  for (size_t i = 0; i < perm.size(); ++i) perm[i] = static_cast<int64_t>(i);
  perm = get(made.attributes, "weight_perm", perm);
  Dims strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  Dims permuted;
  for (int64_t axis : perm) permuted.push_back(dims[static_cast<size_t>(axis)]);
  Value w = make_floats(permuted);
  for (int64_t i = 0; i < size_of(permuted); ++i) {
    int64_t rest = i;
    int64_t offset = 0;
    for (size_t axis = perm.size(); axis-- > 0; rest /= permuted[axis]) {
      offset += rest % permuted[axis] * strides[static_cast<size_t>(perm[axis])];
    }
    w.floats[i] = made.w.floats[offset];
  }
  return w;
}

struct Sum {
  double value = 0;
  double magnitude = 0;

  void add(double product) {
    value += product;
    magnitude += std::fabs(product);
  }
};

Sum matmul_at(const Case& made, const Value& w, int64_t index) {
  const int64_t depth = w.dims[0];
  const int64_t columns = w.dims[1];
  Sum sum;
  for (int64_t k = 0; k < depth; ++k) {
    sum.add(double{made.x.floats[index / columns * depth + k]} * w.floats[k * columns + index % columns]);
  }
  return sum;
}

Sum conv_at(const Case& made, const Value& w, const Dims& y, int64_t index) {
  const size_t axes = made.axes;
  const Dims ones(axes, 1);
  const Dims strides = get(made.attributes, "strides", ones);
  const Dims dilations = get(made.attributes, "dilations", ones);
  const auto auto_pad = get<std::string>(made.attributes, "auto_pad", "NOTSET");
  Dims begin(axes, 0);
  if (auto_pad == "NOTSET") begin = get(made.attributes, "pads", begin);
  int64_t position[3];
  int64_t rest = index;
  for (size_t i = axes; i-- > 0; rest /= y[2 + i]) position[i] = rest % y[2 + i];
  const int64_t filter = rest % y[1];
  const int64_t group_channels = w.dims[1];
  const int64_t first_channel =
      filter / (w.dims[0] / get<int64_t>(made.attributes, "group", 1)) * group_channels;
  const int64_t image = (rest / y[1] * made.x.dims[1] + first_channel);
  int64_t taps = 1;
  for (size_t i = 0; i < axes; ++i) {
    taps *= w.dims[2 + i];
    if (auto_pad.rfind("SAME", 0) == 0) {
      const int64_t reach = (w.dims[2 + i] - 1) * dilations[i] + 1;
      const int64_t pad = std::max<int64_t>(0, (y[2 + i] - 1) * strides[i] + reach - made.x.dims[2 + i]);
      begin[i] = auto_pad == "SAME_LOWER" ? pad - pad / 2 : pad / 2;
    }
  }
  Sum sum;
  if (made.bias) sum.add(made.bias->floats[filter]);
  for (int64_t k = 0; k < group_channels * taps; ++k) {
    int64_t tap = k % taps;
    int64_t offset = 0;
    int64_t stride = 1;
    bool inside = true;
    for (size_t i = axes; i-- > 0; tap /= w.dims[2 + i]) {
      const int64_t at = position[i] * strides[i] + tap % w.dims[2 + i] * dilations[i] - begin[i];
      inside = inside && at >= 0 && at < made.x.dims[2 + i];
      offset += at * stride;
      stride *= made.x.dims[2 + i];
    }
    if (!inside) continue;
    const double x = made.x.floats[(image + k / taps) * stride + offset];
    sum.add(x * w.floats[filter * group_channels * taps + k]);
  }
  return sum;
}

// The ideal chip against sums in double precision.
void check_values(const Case& made, const Value& y) {
  const Value w = effective_weight(made);
  for (int64_t i = 0; i < size_of(y.dims); ++i) {
    const Sum sum = made.conv() ? conv_at(made, w, y.dims, i) : matmul_at(made, w, i);
    if (!(std::fabs(y.floats[i] - sum.value) <= 1e-5 * sum.magnitude)) {
      fail("element " + std::to_string(i) + " is " + std::to_string(y.floats[i]) + ", should be " +
           std::to_string(sum.value));
    }
  }
}

// Two parts of the batch against the whole.
void check_split(const Case& made, const Node& node, int64_t chip, int64_t cut, const Value& whole) {
  const int64_t count = made.x.dims[0];
  int64_t done = 0;
  for (const auto& [first, end] : {std::pair{int64_t{0}, cut}, std::pair{cut, count}}) {
    Dims dims = made.x.dims;
    dims[0] = end - first;
    Value part = make_floats(dims);
    const int64_t sample = size_of(made.x.dims) / count;
    std::copy_n(made.x.floats.get() + first * sample, (end - first) * sample, part.floats.get());
    const Outcome outcome = run(made, node, part, first, chip, 2);
    if (!outcome.output) fail("refuses a part of the batch: " + outcome.error);
    const Value& y = *outcome.output;
    if (std::memcmp(y.floats.get(), whole.floats.get() + done, static_cast<size_t>(size_of(y.dims)) * 4) !=
        0) {
      fail("gives other bits for a part of the batch");
    }
    done += size_of(y.dims);
  }
}

// Several threads, each on chips of its own choice, share one kernel.
void check_shared(const Case& made, const Node& node, uint64_t seed) {
  constexpr int64_t kChips = 3;
  constexpr int kThreads = 4;
  std::vector<Value> expected;
  for (int64_t chip = 0; chip < kChips; ++chip) expected.push_back(output(made, node, chip, 1));
  std::mutex mutex;
  std::string wrong;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      Random random(seed, static_cast<uint64_t>(i));
      try {
        for (int round = 0; round < 4; ++round) {
          const int64_t chip = random.integer(0, kChips - 1);
          if (!same(output(made, node, chip, 1 + i % 2), expected[static_cast<size_t>(chip)])) {
            fail("gives other bits while threads share it");
          }
        }
      } catch (const std::exception& error) {
        const std::lock_guard<std::mutex> lock(mutex);
        wrong = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (!wrong.empty()) fail(wrong);
}

// Breaks one thing. What follows may work or not; it must not hurt, and an
// error must name the node.
void check_broken(Random& random, Case made) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  std::vector<std::string> names;
  for (const auto& [name, value] : made.attributes) names.push_back(name);
  Attribute& attribute = made.attributes[random.of(names)];
  int64_t chip = random.integer(-1, 2);
  switch (random.integer(0, 6)) {
    case 0:
      attribute = random.of<int64_t>({0, -1, kHuge, std::numeric_limits<int64_t>::min()});
      break;
    case 1:
      attribute = random.of<float>({-1, 1e30f, INFINITY, NAN});
      break;
    case 2:
      attribute = Dims{kHuge, random.of<int64_t>({0, -1, kHuge})};
      break;
    case 3:
      attribute = random.of<std::string>({"", "lognormal", "SAME_UPPER"});
      break;
    case 4:
      attribute = std::vector<float>{1, 2};
      break;
    case 5:
      made.x = random.normals(random.integers(static_cast<size_t>(random.integer(0, 6)), 0, 4));
      break;
    default:
      chip = random.of<int64_t>({-2, kHuge, int64_t{1} << 32, -kHuge});
  }
  const Node node(made.op, made.attributes, made.constant_weight());
  const std::string error = node.error().empty() ? run(made, node, made.x, 0, chip, 2).error : node.error();
  if (!error.empty() && error.rfind(made.op + " node \"layer\": ", 0) != 0) fail("says \"" + error + "\"");
}

void check_case(uint64_t seed, uint64_t number) {
  Random random(seed, number);
  const Case made = make_case(random);
  const Node node(made.op, made.attributes, made.constant_weight());
  if (!node.error().empty()) fail("is refused: " + node.error());
  const Value ideal = output(made, node, kIdealChip, 1);
  if (made.exact) check_values(made, ideal);
  const int64_t chip = random.integer(0, 2);
  const Value y = output(made, node, chip, 1);
  if (!same(output(made, node, chip, 3), y)) fail("gives other bits on three threads");
  if (made.x.dims.size() > 1) check_split(made, node, chip, random.integer(0, made.x.dims[0]), y);
  if (number % 4 == 0) check_shared(made, node, seed);
  check_broken(random, make_case(random));
}

// The functions beside the operators, on blocks of exactly the size asked for. Returns a digest (FNV-1a) of
// what they programmed, which is the same on every machine.
uint64_t check_functions(uint64_t seed) {
  Random random(seed, std::numeric_limits<uint64_t>::max());
  uint64_t digest = 0xcbf29ce484222325u;
  for (int i = 0; i < 200; ++i) {
    const int64_t count = random.integer(0, 300);
    const auto first = static_cast<uint64_t>(random.integer(0, int64_t{1} << 40));
    const Value weight = make_floats({count});
    const Value normals = make_floats({count});
    const Value programmed = make_floats({count});
    cnpass_normals(seed, 1, 2, 1, 0, first, static_cast<size_t>(count), weight.floats.get());
    cnpass_normals(seed, 1, 2, 0, 0, first, static_cast<size_t>(count), normals.floats.get());
    cnpass_program_lognormal(seed, 1, 2, first, static_cast<size_t>(count), 0.5f, weight.floats.get(),
                             programmed.floats.get());
    for (int64_t k = 0; k < count; ++k) {
      const double expected = weight.floats[k] * std::exp(0.5 * normals.floats[k]);
      if (!(std::fabs(programmed.floats[k] - expected) <= 1e-5 * std::fabs(expected))) {
        fail("programmed weight " + std::to_string(k) + " is off");
      }
      uint32_t bits;
      std::memcpy(&bits, &programmed.floats[k], sizeof bits);
      digest = (digest ^ bits) * 0x100000001b3u;
    }
  }
  return digest;
}

}  // namespace
}  // namespace cnpass::harness

int main(int argc, char** argv) {
  using namespace cnpass::harness;
  const uint64_t cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  uint64_t number = 0;
  uint64_t digest = 0;
  try {
    digest = check_functions(seed);
    for (; number < cases; ++number) check_case(seed, number);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "case %llu of seed %llu: %s\n", static_cast<unsigned long long>(number),
                 static_cast<unsigned long long>(seed), error.what());
    return 1;
  }
  std::printf("%llu cases of seed %llu on %s: all right; programmed weights %016llx\n",
              static_cast<unsigned long long>(cases), static_cast<unsigned long long>(seed), cnpass_isa(),
              static_cast<unsigned long long>(digest));
  return 0;
}
