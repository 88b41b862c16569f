// What both CUDA ops use: reading a fused row, writing a value, launching.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "launch.h"
#include "tables.h"

namespace alphafuse {
namespace cuda {

constexpr int kThreads = 256;

__device__ inline float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

__device__ inline void store(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16(value);
      break;
    case DType::kFloat16:
      static_cast<__half*>(data)[i] = __float2half(value);
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

// Column `d` of the fused row `row` of this part of the catalog.
__device__ inline float fused(const Tables& tables, int64_t row, int64_t d) {
  float value = 0.0f;
  if (d < tables.semantic.cols) {
    value = load(tables.semantic.data, tables.semantic.dtype, row * tables.semantic.stride + d);
  }
  if (d >= tables.null_offset && tables.id.cols > 0) {
    value += load(tables.id.data, tables.id.dtype, row * tables.id.stride + d - tables.null_offset);
  }
  return value;
}

// Blocks of kThreads for a loop over `count` elements that strides over the whole grid.
inline unsigned int grid_of(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned int>(blocks < 65535 ? blocks : 65535);
}

// The device of a launch is the current one within a scope.
class OnDevice {
 public:
  explicit OnDevice(const Launch& launch) {
    cudaGetDevice(&before_);
    if (launch.device() != before_) cudaSetDevice(launch.device());
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

inline cudaStream_t stream_of(const Launch& launch) {
  return static_cast<cudaStream_t>(launch.stream());
}

// After a launch.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(error));
  }
}

}  // namespace cuda
}  // namespace alphafuse
