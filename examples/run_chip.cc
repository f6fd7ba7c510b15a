// Runs a model that cnpass wrote on simulated chips, with ONNX Runtime and the native library and nothing
// else:
//
//   run_chip LIBONNXRUNTIME LIBCNPASS_ORT MODEL INPUT CHIP...
//
// INPUT holds float32 values, as many samples as there are; for every chip the outputs are printed, one
// sample in a line. -1 is the ideal chip.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_view.h"

namespace {

const OrtApi* ort = nullptr;

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw std::runtime_error(message);
}

template <class T>
using Owner = std::unique_ptr<T, void (*)(T*)>;

const OrtApi* load_runtime(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  using GetBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  const OrtApi* api = get_base == nullptr ? nullptr : get_base()->GetApi(ORT_API_VERSION);
  if (api == nullptr) throw std::runtime_error(std::string(path) + " is no ONNX Runtime, or older than 1.18");
  return api;
}

std::vector<float> read_values(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto* first = reinterpret_cast<const float*>(bytes.data());
  return {first, first + bytes.size() / sizeof(float)};
}

// The shape of the model's first input, its free first axis being as long as `count` values make it.
std::vector<int64_t> input_shape(const OrtSession* session, size_t count) {
  OrtTypeInfo* type = nullptr;
  check(ort->SessionGetInputTypeInfo(session, 0, &type));
  const Owner<OrtTypeInfo> owner(type, ort->ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort->CastTypeInfoToTensorInfo(type, &info));
  size_t rank = 0;
  check(ort->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(ort->GetDimensions(info, shape.data(), rank));
  int64_t sample = 1;
  for (size_t i = 1; i < rank; ++i) sample *= shape[i];
  if (rank == 0 || sample < 1 || count == 0 || count % static_cast<size_t>(sample) != 0) {
    throw std::runtime_error("the input file does not hold whole samples of the model");
  }
  shape[0] = static_cast<int64_t>(count) / sample;
  return shape;
}

template <class T>
Owner<OrtValue> tensor(T* data, const std::vector<int64_t>& shape, size_t count,
                       ONNXTensorElementDataType type) {
  OrtMemoryInfo* memory = nullptr;
  check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
  const Owner<OrtMemoryInfo> owner(memory, ort->ReleaseMemoryInfo);
  OrtValue* value = nullptr;
  check(ort->CreateTensorWithDataAsOrtValue(memory, data, count * sizeof(T), shape.data(), shape.size(), type,
                                            &value));
  return {value, ort->ReleaseValue};
}

void print(OrtValue* y, int64_t chip, int64_t samples) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort->GetTensorTypeAndShape(y, &info));
  const Owner<OrtTensorTypeAndShapeInfo> owner(info, ort->ReleaseTensorTypeAndShapeInfo);
  size_t count = 0;
  check(ort->GetTensorShapeElementCount(info, &count));
  void* data = nullptr;
  check(ort->GetTensorMutableData(y, &data));
  const float* value = static_cast<float*>(data);
  for (int64_t sample = 0; sample < samples; ++sample) {
    std::printf("%lld", static_cast<long long>(chip));
    for (size_t i = 0; i < count / static_cast<size_t>(samples); ++i) std::printf(" %.9g", *value++);
    std::printf("\n");
  }
}

void run(char** argument, int chips) {
  ort = load_runtime(argument[1]);
  OrtEnv* env = nullptr;
  // ONNX Runtime warns of initializers that callers may override; the chip has to be one.
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "run_chip", &env));
  const Owner<OrtEnv> env_owner(env, ort->ReleaseEnv);
  OrtSessionOptions* options = nullptr;
  check(ort->CreateSessionOptions(&options));
  const Owner<OrtSessionOptions> options_owner(options, ort->ReleaseSessionOptions);
  void* library = nullptr;  // stays loaded as long as sessions may use it: here, to the end
  check(ort->RegisterCustomOpsLibrary(options, argument[2], &library));
  OrtSession* session = nullptr;
  check(ort->CreateSession(env, argument[3], options, &session));
  const Owner<OrtSession> session_owner(session, ort->ReleaseSession);

  OrtAllocator* allocator = nullptr;
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  char* input_name = nullptr;
  char* output_name = nullptr;
  check(ort->SessionGetInputName(session, 0, allocator, &input_name));
  check(ort->SessionGetOutputName(session, 0, allocator, &output_name));
  std::vector<float> x = read_values(argument[4]);
  const std::vector<int64_t> shape = input_shape(session, x.size());
  const auto input = tensor(x.data(), shape, x.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  for (int i = 0; i < chips; ++i) {
    int64_t chip = std::strtoll(argument[5 + i], nullptr, 10);
    const auto number = tensor(&chip, {}, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    // The model's metadata (cnpass.chip_input) names this input; it is "chip" unless the model had that name
    // already.
    const char* const names[] = {input_name, "chip"};
    const OrtValue* const values[] = {input.get(), number.get()};
    OrtValue* output = nullptr;
    check(ort->Run(session, nullptr, names, values, 2, &output_name, 1, &output));
    const Owner<OrtValue> output_owner(output, ort->ReleaseValue);
    print(output, chip, shape[0]);
  }
  check(ort->AllocatorFree(allocator, input_name));
  check(ort->AllocatorFree(allocator, output_name));
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) {
    std::fprintf(stderr, "usage: run_chip LIBONNXRUNTIME LIBCNPASS_ORT MODEL INPUT CHIP...\n");
    return 2;
  }
  try {
    run(arguments, count - 5);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_chip: %s\n", error.what());
    return 1;
  }
  return 0;
}
