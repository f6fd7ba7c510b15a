// What the two operators have in common.
#pragma once

#include <memory>

#include "ort_node.h"

namespace cnpass {

class Op {
 public:
  virtual ~Op() = default;
  virtual void compute(const Call& call) const = 0;
};

std::unique_ptr<Op> make_analog_conv(const NodeInfo& node);
std::unique_ptr<Op> make_analog_matmul(const NodeInfo& node);

// The single number of the int64 input `name`.
int64_t read_scalar(const Tensor& input, const char* name);

// Products (or copies) that outweigh handing a part of them to a thread.
constexpr int64_t kWorthAThread = 1 << 16;

// Runs body(i) for i in [0, count), on the session's threads if `products` in all are worth it.
template <class Body>
void parallel_if_worth(const Call& call, int64_t count, int64_t products, const Body& body) {
  if (products >= kWorthAThread) {
    call.parallel_for(count, body);
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace cnpass
