#include "ort_stand_in.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

extern "C" cnpass::ort::Status* RegisterCustomOps(cnpass::ort::SessionOptions* options,
                                                  const cnpass::ort::ApiBase* base);

namespace cnpass::ort {

struct Status {
  std::string message;
};

struct TensorInfo {
  std::vector<int64_t> dims;
};

struct KernelInfo {
  const harness::Attributes& attributes;
  const Value* weight;
};

struct KernelContext {
  const std::vector<const Value*>& inputs;
  int threads;
  std::optional<Value> output;
};

struct CustomOpDomain {
  std::vector<const CustomOp*> ops;
};

struct SessionOptions {
  const CustomOpDomain* domain = nullptr;
};

}  // namespace cnpass::ort

namespace cnpass::harness {

namespace {

using ort::Status;

constexpr int64_t kMaxOutput = 1 << 26;  // more than that is a refused allocation

Status* fail(const std::string& message) {
  return new Status{message};
}

Status* fill(const std::string& text, char* buffer, size_t* size) {
  if (buffer != nullptr) {
    if (*size < text.size() + 1) return fail("the buffer is too small");
    std::memcpy(buffer, text.c_str(), text.size() + 1);
  }
  *size = text.size() + 1;
  return nullptr;
}

template <class T>
const T* find(const ort::KernelInfo* info, const char* name) {
  const auto found = info->attributes.find(name);
  return found == info->attributes.end() ? nullptr : std::get_if<T>(&found->second);
}

template <class T>
Status* get(const ort::KernelInfo* info, const char* name, T* out) {
  const T* value = find<T>(info, name);
  if (value == nullptr) return fail(std::string("no attribute ") + name);
  *out = *value;
  return nullptr;
}

// Threads of its own for every call; what matters here is who touches what, not
// speed.
Status* parallel_for(const ort::KernelContext* context, void (*body)(void* user, size_t i), size_t total,
                     size_t, void* user) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < total; i = next++) body(user, i);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < context->threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return nullptr;
}

void unexpected() {
  std::fputs(
      "the library called a function that the stand-in for ONNX Runtime "
      "has not\n",
      stderr);
  std::abort();
}

ort::Api make_api() {
  static_assert(sizeof(ort::Api) % sizeof(void (*)()) == 0);
  ort::Api api;
  void (*const slot)() = unexpected;
  for (size_t i = 0; i < sizeof api / sizeof slot; ++i) {
    std::memcpy(reinterpret_cast<char*>(&api) + i * sizeof slot, &slot, sizeof slot);
  }
  api.CreateStatus = [](ort::ErrorCode, const char* message) { return fail(message); };
  api.GetErrorMessage = [](const Status* status) { return status->message.c_str(); };
  api.ReleaseStatus = [](Status* status) { delete status; };
  api.CreateCustomOpDomain = [](const char*, ort::CustomOpDomain** domain) -> Status* {
    *domain = new ort::CustomOpDomain;
    return nullptr;
  };
  api.ReleaseCustomOpDomain = [](ort::CustomOpDomain* domain) { delete domain; };
  api.CustomOpDomain_Add = [](ort::CustomOpDomain* domain, const ort::CustomOp* op) -> Status* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](ort::SessionOptions* options, ort::CustomOpDomain* domain) -> Status* {
    options->domain = domain;
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const ort::Value* value, ort::TensorInfo** info) -> Status* {
    *info = new ort::TensorInfo{value->dims};
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](ort::TensorInfo* info) { delete info; };
  api.GetDimensionsCount = [](const ort::TensorInfo* info, size_t* count) -> Status* {
    *count = info->dims.size();
    return nullptr;
  };
  api.GetDimensions = [](const ort::TensorInfo* info, int64_t* dims, size_t count) -> Status* {
    for (size_t i = 0; i < count; ++i) dims[i] = info->dims.at(i);
    return nullptr;
  };
  api.GetTensorMutableData = [](ort::Value* value, void** data) -> Status* {
    *data = value->floats ? static_cast<void*>(value->floats.get()) : value->integers.get();
    return nullptr;
  };
  api.KernelInfoGetAttribute_float = get<float>;
  api.KernelInfoGetAttribute_int64 = get<int64_t>;
  api.KernelInfoGetAttribute_string = [](const ort::KernelInfo* info, const char* name, char* buffer,
                                         size_t* size) {
    const std::string* text = find<std::string>(info, name);
    return text == nullptr ? fail(std::string("no attribute ") + name) : fill(*text, buffer, size);
  };
  api.KernelInfoGetAttributeArray_int64 = [](const ort::KernelInfo* info, const char* name, int64_t* buffer,
                                             size_t* size) -> Status* {
    if (info->attributes.count(name) == 0) return fail(std::string("no attribute ") + name);
    const Dims* values = find<Dims>(info, name);
    const size_t count = values == nullptr ? 0 : values->size();
    if (buffer != nullptr && *size < count) return fail("the buffer is too small");
    for (size_t i = 0; buffer != nullptr && i < count; ++i) buffer[i] = (*values)[i];
    *size = count;
    return nullptr;
  };
  api.KernelInfo_GetNodeName = [](const ort::KernelInfo*, char* buffer, size_t* size) {
    return fill("layer", buffer, size);
  };
  api.KernelInfo_GetOutputName = [](const ort::KernelInfo*, size_t, char* buffer, size_t* size) {
    return fill("y", buffer, size);
  };
  api.KernelInfoGetConstantInput_tensor = [](const ort::KernelInfo* info, size_t index, int* is_constant,
                                             const ort::Value** value) -> Status* {
    *is_constant = index == 1 && info->weight != nullptr;
    *value = *is_constant ? info->weight : nullptr;
    return nullptr;
  };
  api.KernelContext_GetInputCount = [](const ort::KernelContext* context, size_t* count) -> Status* {
    *count = context->inputs.size();
    return nullptr;
  };
  api.KernelContext_GetInput = [](const ort::KernelContext* context, size_t index,
                                  const ort::Value** value) -> Status* {
    if (index >= context->inputs.size()) return fail("there is no such input");
    *value = context->inputs[index];
    return nullptr;
  };
  api.KernelContext_GetOutput = [](ort::KernelContext* context, size_t, const int64_t* dims, size_t count,
                                   ort::Value** value) -> Status* {
    const Dims shape(dims, dims + count);
    int64_t size = 1;
    for (int64_t d : shape) {
      if (d < 0 || __builtin_mul_overflow(size, d, &size) || size > kMaxOutput) return fail("too large");
    }
    context->output = make_floats(shape);
    // What the library leaves as it is shows.
    for (int64_t i = 0; i < size; ++i) context->output->floats[i] = std::numeric_limits<float>::max();
    *value = &*context->output;
    return nullptr;
  };
  api.KernelContext_ParallelFor = parallel_for;
  return api;
}

const ort::Api& api() {
  static const ort::Api table = make_api();
  return table;
}

// The text of a status, which is released.
std::string text_of(Status* status) {
  const std::unique_ptr<Status> owner(status);
  return owner ? owner->message : std::string();
}

const ort::CustomOp* find_op(const std::string& name) {
  static const ort::ApiBase base{[](uint32_t) { return &api(); }, [] { return "stand-in"; }};
  ort::SessionOptions options;
  const std::string error = text_of(RegisterCustomOps(&options, &base));
  if (error.empty()) {
    for (const ort::CustomOp* op : options.domain->ops) {
      if (op->GetName(op) == name) return op;
    }
  }
  std::fprintf(stderr, "no operator %s: %s\n", name.c_str(), error.c_str());
  std::exit(1);
}

}  // namespace

int64_t size_of(const Dims& dims) {
  int64_t size = 1;
  for (int64_t d : dims) size *= d;
  return size;
}

ort::Value make_floats(Dims dims) {
  const auto size = static_cast<size_t>(size_of(dims));
  return {std::move(dims), std::unique_ptr<float[]>(new float[size]), nullptr};
}

ort::Value make_integer(int64_t value) {
  return {{}, nullptr, std::unique_ptr<int64_t[]>(new int64_t[1]{value})};
}

Node::Node(const std::string& op, const Attributes& attributes, const ort::Value* weight) : op_(find_op(op)) {
  const ort::KernelInfo info{attributes, weight};
  error_ = text_of(op_->CreateKernelV2(op_, &api(), &info, &kernel_));
}

Node::~Node() {
  if (kernel_ != nullptr) op_->KernelDestroy(kernel_);
}

Outcome Node::run(const std::vector<const ort::Value*>& inputs, int threads) const {
  ort::KernelContext context{inputs, threads, std::nullopt};
  std::string error = text_of(op_->KernelComputeV2(kernel_, &context));
  if (!error.empty()) return {std::nullopt, std::move(error)};
  return {std::move(context.output), {}};
}

}  // namespace cnpass::harness
