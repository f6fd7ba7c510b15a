// The part of ONNX Runtime's C ABI that this library uses, in our own words.
//
// No package ships ORT's headers, and none are needed: the function table is append-only, so an entry keeps
// its slot for ever, and a library built against version 18 runs on every later release. Members that we do
// not use are left out as gaps; the assertions below pin the slot numbers of those that we do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cnpass::ort {

constexpr uint32_t kApiVersion = 18;  // ONNX Runtime 1.18

// Opaque objects of ORT.
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct SessionOptions;
struct Status;
struct TensorInfo;
struct Value;

enum class ElementType : int { kFloat = 1, kInt64 = 7 };
enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum class Arity : int { kRequired = 0, kOptional = 1 };

template <size_t kSlots>
using Gap = void* [kSlots];

// Every function that returns a Status returns null on success; the caller owns the Status otherwise.
struct Api {
  Status* (*CreateStatus)(ErrorCode, const char* message);
  Gap<1> gap1;
  const char* (*GetErrorMessage)(const Status*);
  Gap<23> gap3;
  Status* (*CreateCustomOpDomain)(const char* name, CustomOpDomain**);
  Status* (*CustomOpDomain_Add)(CustomOpDomain*, const struct CustomOp*);
  Status* (*AddCustomOpDomain)(SessionOptions*, CustomOpDomain*);
  Gap<22> gap29;
  Status* (*GetTensorMutableData)(Value*, void**);
  Gap<9> gap52;
  Status* (*GetDimensionsCount)(const TensorInfo*, size_t*);
  Status* (*GetDimensions)(const TensorInfo*, int64_t* dimensions, size_t count);
  Gap<2> gap63;
  Status* (*GetTensorTypeAndShape)(const Value*, TensorInfo**);
  Gap<19> gap66;
  Status* (*KernelInfoGetAttribute_float)(const KernelInfo*, const char* name, float*);
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo*, const char* name, int64_t*);
  // A null buffer asks for the size, which counts the terminating zero.
  Status* (*KernelInfoGetAttribute_string)(const KernelInfo*, const char* name, char* buffer, size_t* size);
  Status* (*KernelContext_GetInputCount)(const KernelContext*, size_t*);
  Gap<1> gap89;
  // Gives null for an optional input that is absent.
  Status* (*KernelContext_GetInput)(const KernelContext*, size_t index, const Value**);
  Status* (*KernelContext_GetOutput)(KernelContext*, size_t index, const int64_t* dimensions, size_t count,
                                     Value**);
  Gap<1> gap92;
  void (*ReleaseStatus)(Status*);
  Gap<5> gap94;
  void (*ReleaseTensorTypeAndShapeInfo)(TensorInfo*);
  Gap<1> gap100;
  void (*ReleaseCustomOpDomain)(CustomOpDomain*);
  Gap<61> gap102;
  // A null buffer asks for the number of values. Succeeds, with no values, on an attribute of another type.
  Status* (*KernelInfoGetAttributeArray_int64)(const KernelInfo*, const char* name, int64_t* buffer,
                                               size_t* size);
  Gap<69> gap164;
  // Size as for strings above.
  Status* (*KernelInfo_GetOutputName)(const KernelInfo*, size_t index, char* buffer, size_t* size);
  Gap<10> gap234;
  Status* (*KernelInfo_GetNodeName)(const KernelInfo*, char* buffer, size_t* size);
  Gap<4> gap245;
  Status* (*KernelInfoGetConstantInput_tensor)(const KernelInfo*, size_t index, int* is_constant,
                                               const Value**);
  Gap<24> gap250;
  // Calls body(user, i) for i in [0, total); zero batches lets ORT choose.
  Status* (*KernelContext_ParallelFor)(const KernelContext*, void (*body)(void* user, size_t i), size_t total,
                                       size_t batches, void* user);
};

#define CNPASS_CHECK_SLOT(member, slot) \
  static_assert(offsetof(Api, member) == (slot) * sizeof(void*), #member " is not in its slot")
CNPASS_CHECK_SLOT(GetErrorMessage, 2);
CNPASS_CHECK_SLOT(CreateCustomOpDomain, 26);
CNPASS_CHECK_SLOT(AddCustomOpDomain, 28);
CNPASS_CHECK_SLOT(GetTensorMutableData, 51);
CNPASS_CHECK_SLOT(GetDimensionsCount, 61);
CNPASS_CHECK_SLOT(GetTensorTypeAndShape, 65);
CNPASS_CHECK_SLOT(KernelInfoGetAttribute_float, 85);
CNPASS_CHECK_SLOT(KernelContext_GetInputCount, 88);
CNPASS_CHECK_SLOT(KernelContext_GetInput, 90);
CNPASS_CHECK_SLOT(ReleaseStatus, 93);
CNPASS_CHECK_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
CNPASS_CHECK_SLOT(ReleaseCustomOpDomain, 101);
CNPASS_CHECK_SLOT(KernelInfoGetAttributeArray_int64, 163);
CNPASS_CHECK_SLOT(KernelInfo_GetOutputName, 233);
CNPASS_CHECK_SLOT(KernelInfo_GetNodeName, 244);
CNPASS_CHECK_SLOT(KernelInfoGetConstantInput_tensor, 249);
CNPASS_CHECK_SLOT(KernelContext_ParallelFor, 274);
#undef CNPASS_CHECK_SLOT

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null if the runtime is older than `version`
  const char* (*GetVersionString)();
};

// An operator as ORT sees it: the order of the fields is the ABI, and `version` says how many of them ORT
// reads.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);  // unused: CreateKernelV2 goes first
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);  // null for CPU
  ElementType (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);  // unused: KernelComputeV2 goes first
  void (*KernelDestroy)(void* kernel);
  Arity (*GetInputCharacteristic)(const CustomOp*, size_t index);
  Arity (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  int (*GetInputMemoryType)(const CustomOp*, size_t index);  // 0: the provider's default memory
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  // Left null: ORT's context for it dereferences the missing type of an absent optional input (our B).
  Status* (*InferOutputShapeFn)(const CustomOp*, struct ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace cnpass::ort
