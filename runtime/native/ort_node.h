// C++ over the C ABI: errors as exceptions that name the node, objects that release themselves.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace cnpass {

using Dims = std::vector<int64_t>;

// What a user, a model or ORT got wrong; becomes an ORT status whose text starts with the node's label.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Product of `dims`, all at least 0; throws Error when it, or four times it, leaves int64.
int64_t element_count(const Dims& dims);

// a * b + c for sizes; throws Error when it leaves int64.
int64_t checked_madd(int64_t a, int64_t b, int64_t c);

// For messages: "2x3x4", and "1 value" or "2 values".
std::string to_string(const Dims& dims);
std::string counted(size_t count, const char* noun);

// Throws Error with ORT's message, and releases `status`, unless it is null.
void check(const ort::Api& api, ort::Status* status);

struct Tensor {
  const void* data = nullptr;
  Dims dims;

  const float* floats() const { return static_cast<const float*>(data); }
};

Tensor view(const ort::Api& api, const ort::Value* value);

// A node as its kernel's constructor sees it.
class NodeInfo {
 public:
  NodeInfo(const ort::Api& api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  // `node "conv1"`, or by its output if it has no name.
  std::string label() const;

  // Attributes: without a value if absent; throws Error if of another type.
  std::optional<int64_t> integer(const char* name) const;
  std::optional<float> real(const char* name) const;
  std::optional<std::string> text(const char* name) const;
  std::optional<Dims> integers(const char* name) const;

  // The tensor at an input if it is a constant of the graph.
  std::optional<Tensor> constant_input(size_t index) const;

 private:
  bool has(const char* name) const;
  bool got(const char* name, ort::Status* status, const char* type) const;

  const ort::Api& api_;
  const ort::KernelInfo* info_;
};

// One call of a kernel.
class Call {
 public:
  Call(const ort::Api& api, ort::KernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const;
  std::optional<Tensor> optional_input(size_t index) const;
  float* output(const Dims& dims) const;

  // Runs body(i) for every i in [0, count) on the session's threads; an exception in one of them comes out
  // here.
  template <class Body>
  void parallel_for(int64_t count, const Body& body) const {
    parallel_for(count, [](const void* user, int64_t i) { (*static_cast<const Body*>(user))(i); }, &body);
  }

 private:
  void parallel_for(int64_t count, void (*body)(const void* user, int64_t i), const void* user) const;

  const ort::Api& api_;
  ort::KernelContext* context_;
};

}  // namespace cnpass
