// Device models: how a stored weight comes out on a given chip. The formulas are those of runtime/devices.
#pragma once

#include <memory>

#include "kernels.h"
#include "ort_node.h"

namespace cnpass {

class DeviceModel {
 public:
  virtual ~DeviceModel() = default;

  // Programs elements first, first + 1, ... of a weight tensor; `draws` holds all but the purpose and the
  // copy.
  virtual void program(const Draws& draws, uint64_t first, size_t count, const float* weight,
                       float* out) const = 0;
};

// The model that the attributes name; null for "programmed", whose weights come as they are.
std::unique_ptr<DeviceModel> make_device(const NodeInfo& node);

}  // namespace cnpass
