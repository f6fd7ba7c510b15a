// What the shared library exports: RegisterCustomOps for ONNX Runtime, and plain functions for tests.
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "op.h"
#include "weights.h"

namespace cnpass {

int64_t read_scalar(const Tensor& input, const char* name) {
  if (element_count(input.dims) != 1) {
    throw Error(std::string("input \"") + name + "\" (" + to_string(input.dims) + ") must be a scalar");
  }
  return *static_cast<const int64_t*>(input.data);
}

namespace {

ort::Status* make_status(const ort::Api& api, ort::ErrorCode code, const std::string& where,
                         const char* what) {
  try {
    return api.CreateStatus(code, (where + ": " + what).c_str());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(code, what);
  }
}

// Runs `body`; what it throws becomes a status, since no exception may reach ORT. `body` may change `where`.
template <class Body>
ort::Status* guard(const ort::Api& api, const std::string& where, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return make_status(api, ort::ErrorCode::kInvalidArgument, where, error.what());
  } catch (const std::bad_alloc&) {
    return make_status(api, ort::ErrorCode::kFail, where, "out of memory");
  } catch (const std::exception& error) {
    return make_status(api, ort::ErrorCode::kRuntimeException, where, error.what());
  } catch (...) {
    return make_status(api, ort::ErrorCode::kRuntimeException, where, "unknown C++ exception");
  }
}

struct Kernel {
  const ort::Api& api;
  std::string label;
  std::unique_ptr<Op> op;
};

using MakeOp = std::unique_ptr<Op> (*)(const NodeInfo&);

struct Input {
  ort::ElementType type;
  ort::Arity arity;
};

constexpr Input kFloats{ort::ElementType::kFloat, ort::Arity::kRequired};
constexpr Input kOptionalFloats{ort::ElementType::kFloat, ort::Arity::kOptional};
constexpr Input kInteger{ort::ElementType::kInt64, ort::Arity::kRequired};
constexpr Input kOptionalInteger{ort::ElementType::kInt64, ort::Arity::kOptional};

// The operator as ORT sees it, and behind that what its functions need.
struct OpDefinition : ort::CustomOp {
  const char* name;
  std::vector<Input> inputs;
  MakeOp make;

  OpDefinition(const char* name_, std::vector<Input> inputs_, MakeOp make_)
      : ort::CustomOp{}, name(name_), inputs(std::move(inputs_)), make(make_) {
    version = ort::kApiVersion;
    GetName = [](const ort::CustomOp* op) { return self(op).name; };
    GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
    GetInputType = [](const ort::CustomOp* op, size_t i) { return self(op).inputs[i].type; };
    GetInputTypeCount = [](const ort::CustomOp* op) { return self(op).inputs.size(); };
    GetOutputType = [](const ort::CustomOp*, size_t) { return ort::ElementType::kFloat; };
    GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
    GetInputCharacteristic = [](const ort::CustomOp* op, size_t i) { return self(op).inputs[i].arity; };
    GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::Arity::kRequired; };
    GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
    GetStartVersion = [](const ort::CustomOp*) { return 1; };
    GetEndVersion = [](const ort::CustomOp*) { return 1; };
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

 private:
  static const OpDefinition& self(const ort::CustomOp* op) { return *static_cast<const OpDefinition*>(op); }

  static ort::Status* create_kernel(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                                    void** kernel) {
    std::string label;
    return guard(*api, label, [&] {
      const NodeInfo node(*api, info);
      label = self(op).name;
      label += " " + node.label();
      *kernel = new Kernel{*api, label, self(op).make(node)};
    });
  }

  static ort::Status* compute(void* opaque, ort::KernelContext* context) {
    const Kernel& kernel = *static_cast<const Kernel*>(opaque);
    return guard(kernel.api, kernel.label, [&] { kernel.op->compute(Call(kernel.api, context)); });
  }
};

// The domain for one ORT in this process. Sessions refer to it, so it lives as long as the library.
ort::CustomOpDomain* domain(const ort::Api& api) {
  static const OpDefinition ops[] = {
      {"AnalogConv", {kFloats, kFloats, kOptionalFloats, kInteger, kOptionalInteger}, make_analog_conv},
      {"AnalogMatMul", {kFloats, kFloats, kInteger, kOptionalInteger}, make_analog_matmul},
  };
  using Owner = std::unique_ptr<ort::CustomOpDomain, void (*)(ort::CustomOpDomain*)>;
  static std::vector<std::pair<const ort::Api*, Owner>> domains;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [owner, made] : domains) {
    if (owner == &api) return made.get();
  }
  ort::CustomOpDomain* raw = nullptr;
  check(api, api.CreateCustomOpDomain("ai.cnpass", &raw));
  Owner made(raw, api.ReleaseCustomOpDomain);
  for (const OpDefinition& op : ops) check(api, api.CustomOpDomain_Add(raw, &op));
  domains.emplace_back(&api, std::move(made));
  return raw;
}

Draws draws_of(uint64_t seed, uint32_t chip, uint32_t stream, uint32_t purpose, uint32_t copy) {
  return {seed, chip, stream, purpose, copy};
}

}  // namespace
}  // namespace cnpass

#define CNPASS_EXPORT extern "C" __attribute__((visibility("default")))

CNPASS_EXPORT cnpass::ort::Status* RegisterCustomOps(cnpass::ort::SessionOptions* options,
                                                     const cnpass::ort::ApiBase* base) {
  using namespace cnpass;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    const ort::Api* oldest = base->GetApi(1);
    if (oldest == nullptr) return nullptr;  // no way to say anything; the session will miss the operators
    return oldest->CreateStatus(ort::ErrorCode::kFail,
                                "libcnpass_ort needs ONNX Runtime 1.18 or newer; this one is older");
  }
  return guard(*api, "libcnpass_ort", [&] {
    kernels();
    check(*api, api->AddCustomOpDomain(options, domain(*api)));
  });
}

CNPASS_EXPORT void cnpass_normals(uint64_t seed, uint32_t chip, uint32_t stream, uint32_t purpose,
                                  uint32_t copy, uint64_t first, size_t n, float* out) {
  cnpass::kernels().random.normals(cnpass::draws_of(seed, chip, stream, purpose, copy), first, n, out);
}

CNPASS_EXPORT void cnpass_program_lognormal(uint64_t seed, uint32_t chip, uint32_t stream, uint64_t first,
                                            size_t n, float sigma, const float* w, float* out) {
  cnpass::kernels().random.lognormal(cnpass::draws_of(seed, chip, stream, 0, 0), first, n, sigma, w, out);
}

CNPASS_EXPORT const char* cnpass_isa() {
  return cnpass::kernels().name;
}
