// What the library needs of ONNX Runtime, in a few plain functions: the
// sanitizers then see every byte that the library touches, and no code but its
// own.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "ort_abi.h"

namespace cnpass::ort {

// A tensor in a block of its own of exactly its size, so that reading past it
// is seen.
struct Value {
  std::vector<int64_t> dims;
  std::unique_ptr<float[]> floats;  // one of the two
  std::unique_ptr<int64_t[]> integers;
};

}  // namespace cnpass::ort

namespace cnpass::harness {

using Dims = std::vector<int64_t>;
using Attribute = std::variant<int64_t, float, std::string, Dims, std::vector<float>>;
using Attributes = std::map<std::string, Attribute>;

ort::Value make_floats(Dims dims);  // uninitialised
ort::Value make_integer(int64_t value);
int64_t size_of(const Dims& dims);

// Either an output or the text of the error that the library gave.
struct Outcome {
  std::optional<ort::Value> output;
  std::string error;
};

// A node whose kernel may be used by several threads at once.
class Node {
 public:
  // `weight` is a constant of the graph unless null. Leaves a kernel without
  // one if the library refuses.
  Node(const std::string& op, const Attributes& attributes, const ort::Value* weight);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // The error with which the library refused the node, or nothing.
  const std::string& error() const { return error_; }

  // A null pointer is an absent input.
  Outcome run(const std::vector<const ort::Value*>& inputs, int threads) const;

 private:
  const ort::CustomOp* op_ = nullptr;
  void* kernel_ = nullptr;
  std::string error_;
};

}  // namespace cnpass::harness
