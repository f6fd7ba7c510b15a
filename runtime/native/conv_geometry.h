// Attributes and shapes of a convolution over 1, 2 or 3 axes, checked, and brought to 3 axes.
#pragma once

#include <array>
#include <string>

#include "ort_node.h"

namespace cnpass {

using Axes = std::array<int64_t, 3>;  // per spatial axis; convolutions over fewer have leading axes of size 1

struct ConvGeometry {
  int64_t images;
  int64_t channels;  // of the input
  int64_t filters;
  int64_t groups;
  Axes input;
  Axes kernel;
  Axes stride;
  Axes dilation;
  Axes pad_begin;
  Axes padded;  // size of the input with its padding
  Axes output;
  Dims output_dims;
};

class ConvAttributes {
 public:
  // Throws Error on what cannot be right whatever the shapes are.
  explicit ConvAttributes(const NodeInfo& node);

  // Throws Error if a weight of these dimensions does not fit the attributes.
  void check_weight(const Dims& weight) const;

  ConvGeometry geometry(const Dims& input, const Dims& weight) const;

  int64_t groups() const { return groups_; }

 private:
  enum class AutoPad { kNotSet, kValid, kSameUpper, kSameLower };

  AutoPad auto_pad_ = AutoPad::kNotSet;
  int64_t groups_ = 1;
  Dims kernel_shape_;  // these four are empty when not given
  Dims strides_;
  Dims dilations_;
  Dims pads_;
};

}  // namespace cnpass
