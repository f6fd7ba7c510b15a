#include "ort_node.h"

#include <exception>
#include <memory>
#include <mutex>

namespace cnpass {

int64_t checked_madd(int64_t a, int64_t b, int64_t c) {
  int64_t product = 0;
  int64_t sum = 0;
  if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum)) {
    throw Error("a size is too large");
  }
  return sum;
}

int64_t element_count(const Dims& dims) {
  int64_t count = 1;
  for (int64_t d : dims) count = checked_madd(count, d, 0);
  checked_madd(count, sizeof(float), 0);
  return count;
}

std::string to_string(const Dims& dims) {
  std::string text;
  for (int64_t d : dims) text += (text.empty() ? "" : "x") + std::to_string(d);
  return text.empty() ? "a scalar" : text;
}

std::string counted(size_t count, const char* noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

void check(const ort::Api& api, ort::Status* status) {
  if (status == nullptr) return;
  const std::unique_ptr<ort::Status, void (*)(ort::Status*)> owner(status, api.ReleaseStatus);
  throw Error(api.GetErrorMessage(status));
}

Tensor view(const ort::Api& api, const ort::Value* value) {
  ort::TensorInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<ort::TensorInfo, void (*)(ort::TensorInfo*)> owner(info,
                                                                           api.ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  check(api, api.GetDimensionsCount(info, &rank));
  Tensor tensor;
  tensor.dims.resize(rank);
  check(api, api.GetDimensions(info, tensor.dims.data(), rank));
  void* data = nullptr;  // ORT has no read-only accessor at this API version
  check(api, api.GetTensorMutableData(const_cast<ort::Value*>(value), &data));
  tensor.data = data;
  return tensor;
}

namespace {

// Calls a function of ORT that fills a character buffer and counts the terminating zero in its size.
template <class Get>
std::string read_text(const ort::Api& api, const Get& get) {
  size_t size = 0;
  check(api, get(nullptr, &size));
  std::string text(size, '\0');
  check(api, get(text.data(), &size));
  text.resize(text.find('\0') == std::string::npos ? text.size() : text.find('\0'));
  return text;
}

}  // namespace

std::string NodeInfo::label() const {
  const std::string name = read_text(
      api_, [&](char* buffer, size_t* size) { return api_.KernelInfo_GetNodeName(info_, buffer, size); });
  if (!name.empty()) return "node \"" + name + "\"";
  return "node of output \"" +
         read_text(api_,
                   [&](char* buffer, size_t* size) {
                     return api_.KernelInfo_GetOutputName(info_, 0, buffer, size);
                   }) +
         "\"";
}

bool NodeInfo::has(const char* name) const {
  size_t size = 0;
  ort::Status* status = api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size);
  if (status != nullptr) api_.ReleaseStatus(status);
  return status == nullptr;
}

// Whether a getter succeeded; a failure means "absent", unless the attribute is there with another type.
bool NodeInfo::got(const char* name, ort::Status* status, const char* type) const {
  if (status == nullptr) return true;
  api_.ReleaseStatus(status);
  if (has(name)) throw Error(std::string("attribute \"") + name + "\" is not " + type);
  return false;
}

std::optional<int64_t> NodeInfo::integer(const char* name) const {
  int64_t value = 0;
  if (!got(name, api_.KernelInfoGetAttribute_int64(info_, name, &value), "an integer")) return std::nullopt;
  return value;
}

std::optional<float> NodeInfo::real(const char* name) const {
  float value = 0;
  if (!got(name, api_.KernelInfoGetAttribute_float(info_, name, &value), "a float")) return std::nullopt;
  return value;
}

std::optional<std::string> NodeInfo::text(const char* name) const {
  size_t size = 0;
  if (!got(name, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size), "a string")) {
    return std::nullopt;
  }
  return read_text(api_, [&](char* buffer, size_t* length) {
    return api_.KernelInfoGetAttribute_string(info_, name, buffer, length);
  });
}

std::optional<Dims> NodeInfo::integers(const char* name) const {
  size_t size = 0;
  if (!got(name, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size), "a list of integers")) {
    return std::nullopt;
  }
  if (size == 0)
    throw Error(std::string("attribute \"") + name + "\" is not a list of integers, or is empty");
  Dims values(size);
  check(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  return values;
}

std::optional<Tensor> NodeInfo::constant_input(size_t index) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return view(api_, value);
}

Tensor Call::input(size_t index) const {
  const ort::Value* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) throw Error("input " + std::to_string(index) + " is missing");
  return view(api_, value);
}

std::optional<Tensor> Call::optional_input(size_t index) const {
  size_t count = 0;
  check(api_, api_.KernelContext_GetInputCount(context_, &count));
  if (index >= count) return std::nullopt;
  const ort::Value* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) return std::nullopt;
  return view(api_, value);
}

float* Call::output(const Dims& dims) const {
  ort::Value* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, 0, dims.data(), dims.size(), &value));
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

void Call::parallel_for(int64_t count, void (*body)(const void* user, int64_t i), const void* user) const {
  if (count <= 1) {
    if (count == 1) body(user, 0);
    return;
  }
  struct Job {
    void (*body)(const void*, int64_t);
    const void* user;
    std::mutex mutex;
    std::exception_ptr failure;
  } job{body, user, {}, nullptr};
  check(api_, api_.KernelContext_ParallelFor(
                  context_,
                  [](void* opaque, size_t i) {
                    auto& job = *static_cast<Job*>(opaque);
                    try {
                      job.body(job.user, static_cast<int64_t>(i));
                    } catch (...) {  // must not unwind through ORT's thread pool
                      const std::lock_guard<std::mutex> lock(job.mutex);
                      job.failure = std::current_exception();
                    }
                  },
                  static_cast<size_t>(count), 0, &job));
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace cnpass
