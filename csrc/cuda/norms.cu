// A warp finds the norm of a row.
#include "cuda/kernels.h"
#include "cuda/norms.cuh"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int kRowsOfBlock = kThreads / kWarpLanes;

__global__ void __launch_bounds__(kThreads) inverse_norms_kernel(Tables tables, float* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int64_t step = int64_t{kRowsOfBlock} * gridDim.x;
  for (int64_t row = int64_t{kRowsOfBlock} * blockIdx.x + threadIdx.x / kWarpLanes;
       row < tables.rows; row += step) {
    const float inverse = inverse_norm(tables, row);
    if (lane == 0) out[row] = inverse;
  }
}

}  // namespace

void enqueue_inverse_norms(Launch& launch, const char* op, const Tables& tables, float* out) {
  enqueue(launch, op, inverse_norms_kernel, grid_of(tables.rows, kRowsOfBlock), kThreads, 0, tables,
          out);
}

void inverse_row_norms(const Tables& tables, Array<float, kItems> out, Launch& launch) {
  if (!launch.measuring()) enqueue_inverse_norms(launch, "inverse_row_norms", tables, out);
}

}  // namespace cuda
}  // namespace alphafuse
