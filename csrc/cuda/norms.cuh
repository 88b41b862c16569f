// Norms of fused rows, for cosine.
#pragma once

#include "cuda/device.cuh"

namespace alphafuse {
namespace cuda {

constexpr float kMinNorm = 1e-8f;

// What a row whose squares sum up to `square` is multiplied by: 0 for a row of zeros.
__device__ inline float inverse_of_square(float square) {
  const float norm = sqrtf(square);
  return norm == 0.0f ? 0.0f : 1.0f / fmaxf(norm, kMinNorm);
}

// That of a fused row; all lanes of the warp call.
__device__ inline float inverse_norm(const Tables& tables, int64_t row) {
  float square = 0.0f;
  for (int64_t d = threadIdx.x % kWarpLanes; d < tables.dim; d += kWarpLanes) {
    const float value = fused(tables, row, d);
    square = fmaf(value, value, square);
  }
  return inverse_of_square(sum_lanes<kWarpLanes>(square));
}

// Puts the kernel on the stream that finds it for each fused row; out (rows,).
void enqueue_inverse_norms(Launch& launch, const char* op, const Tables& tables, float* out);

// Those of the rows from `first` on.
inline const float* norms_from(const float* inverse_norms, int64_t first) {
  return inverse_norms == nullptr ? nullptr : inverse_norms + first;
}

// In scratch memory; null while measuring, and where rows are not divided by their norms.
inline const float* scratch_inverse_norms(Launch& launch, const char* op, const Tables& tables) {
  if (!tables.cosine) return nullptr;
  auto* const out = launch.scratch<float>(tables.rows);
  if (!launch.measuring()) enqueue_inverse_norms(launch, op, tables, out);
  return out;
}

}  // namespace cuda
}  // namespace alphafuse
