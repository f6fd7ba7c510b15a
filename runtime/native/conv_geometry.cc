#include "conv_geometry.h"

#include <algorithm>

namespace cnpass {

namespace {

constexpr int64_t kMaxAxes = 3;

Dims read_list(const NodeInfo& node, const char* name, int64_t smallest) {
  Dims values = node.integers(name).value_or(Dims{});
  for (int64_t value : values) {
    if (value < smallest) {
      throw Error(std::string("attribute \"") + name + "\" holds " + std::to_string(value) +
                  ", must be at least " + std::to_string(smallest));
    }
  }
  return values;
}

void check_length(const char* name, const Dims& values, size_t needed) {
  if (!values.empty() && values.size() != needed) {
    throw Error(std::string("attribute \"") + name + "\" has " + counted(values.size(), "value") +
                ", needs " + std::to_string(needed));
  }
}

}  // namespace

ConvAttributes::ConvAttributes(const NodeInfo& node) {
  const std::string auto_pad = node.text("auto_pad").value_or("NOTSET");
  if (auto_pad == "NOTSET") {
    auto_pad_ = AutoPad::kNotSet;
  } else if (auto_pad == "VALID") {
    auto_pad_ = AutoPad::kValid;
  } else if (auto_pad == "SAME_UPPER") {
    auto_pad_ = AutoPad::kSameUpper;
  } else if (auto_pad == "SAME_LOWER") {
    auto_pad_ = AutoPad::kSameLower;
  } else {
    throw Error("attribute \"auto_pad\" is \"" + auto_pad +
                "\", must be NOTSET, VALID, SAME_UPPER or SAME_LOWER");
  }
  groups_ = node.integer("group").value_or(1);
  if (groups_ < 1) throw Error("attribute \"group\" is " + std::to_string(groups_) + ", must be at least 1");
  kernel_shape_ = read_list(node, "kernel_shape", 1);
  strides_ = read_list(node, "strides", 1);
  dilations_ = read_list(node, "dilations", 1);
  pads_ = read_list(node, "pads", 0);
}

void ConvAttributes::check_weight(const Dims& weight) const {
  if (weight.size() < 3 || weight.size() > 2 + kMaxAxes) {
    throw Error("input \"W\" has " + counted(weight.size(), "dimension") + ", needs 3, 4 or 5");
  }
  if (std::find(weight.begin(), weight.end(), 0) != weight.end()) {
    throw Error("input \"W\" (" + to_string(weight) + ") is empty");
  }
  const size_t axes = weight.size() - 2;
  check_length("kernel_shape", kernel_shape_, axes);
  check_length("strides", strides_, axes);
  check_length("dilations", dilations_, axes);
  check_length("pads", pads_, 2 * axes);
  if (!kernel_shape_.empty() && !std::equal(kernel_shape_.begin(), kernel_shape_.end(), weight.begin() + 2)) {
    throw Error("attribute \"kernel_shape\" (" + to_string(kernel_shape_) + ") is not that of W (" +
                to_string(weight) + ")");
  }
  if (weight[0] % groups_ != 0) {
    throw Error("attribute \"group\" is " + std::to_string(groups_) + ", must divide the " +
                std::to_string(weight[0]) + " filters of W");
  }
}

ConvGeometry ConvAttributes::geometry(const Dims& input, const Dims& weight) const {
  check_weight(weight);
  if (input.size() != weight.size()) {
    throw Error("input \"X\" has " + counted(input.size(), "dimension") + ", needs " +
                std::to_string(weight.size()) + " as W has");
  }
  if (input[1] != checked_madd(weight[1], groups_, 0)) {
    throw Error("input \"X\" (" + to_string(input) + ") has " + std::to_string(input[1]) +
                " channels, needs " + std::to_string(weight[1]) + " in each of " + std::to_string(groups_) +
                " groups as W (" + to_string(weight) + ") has");
  }
  ConvGeometry g{input[0],  input[1],  weight[0], groups_,   {1, 1, 1}, {1, 1, 1},
                 {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, {1, 1, 1}, {input[0], weight[0]}};
  const size_t axes = input.size() - 2;
  for (size_t axis = 0; axis < axes; ++axis) {
    const size_t i = axis + kMaxAxes - axes;
    g.input[i] = input[2 + axis];
    g.kernel[i] = weight[2 + axis];
    if (!strides_.empty()) g.stride[i] = strides_[axis];
    if (!dilations_.empty()) g.dilation[i] = dilations_[axis];
    const int64_t reach = checked_madd(g.kernel[i] - 1, g.dilation[i], 1);
    int64_t pad_end = 0;
    if (auto_pad_ == AutoPad::kNotSet) {
      if (!pads_.empty()) {
        g.pad_begin[i] = pads_[axis];
        pad_end = pads_[axes + axis];
      }
    } else if (auto_pad_ != AutoPad::kValid && g.input[i] > 0) {
      // As many outputs as strides fit; an odd padding goes to the end (UPPER) or to the beginning (LOWER).
      const int64_t last = (g.input[i] - 1) / g.stride[i] * g.stride[i];
      const int64_t pad = std::max<int64_t>(0, checked_madd(1, last, reach) - g.input[i]);
      g.pad_begin[i] = auto_pad_ == AutoPad::kSameLower ? pad - pad / 2 : pad / 2;
      pad_end = pad - g.pad_begin[i];
    }
    g.padded[i] = checked_madd(1, checked_madd(1, g.input[i], g.pad_begin[i]), pad_end);
    if (g.input[i] == 0 || g.padded[i] < reach) {
      throw Error("input \"X\" (" + to_string(input) + ") is smaller than the kernel of W (" +
                  to_string(weight) + ") along axis " + std::to_string(2 + axis));
    }
    g.output[i] = (g.padded[i] - reach) / g.stride[i] + 1;
    g.output_dims.push_back(g.output[i]);
    if (g.output[i] == 1) g.stride[i] = 1;  // never taken, however long
  }
  element_count(g.output_dims);
  element_count({g.channels, g.padded[0], g.padded[1], g.padded[2] + g.stride[2]});
  return g;
}

}  // namespace cnpass
