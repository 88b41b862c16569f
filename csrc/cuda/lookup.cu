// Fused rows of given ids, and the gradient of the ID embeddings among them: one thread an element.
#include <cassert>

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {
namespace {

__global__ void lookup_kernel(Tables tables, const int64_t* ids, int64_t count, void* out,
                              DType dtype) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < count * tables.dim; i += stride) {
    const int64_t row = ids[i / tables.dim] - tables.first_id;
    assert(row >= 0 && row <= tables.rows && "lookup: an id is outside 0 .. N");
    store(out, dtype, i, row < tables.rows ? fused(tables, row, i % tables.dim) : 0.0f);
  }
}

__global__ void lookup_backward_kernel(const void* grad, DType dtype, int64_t dim, int64_t cols,
                                       Groups groups, int64_t first_id, bool dense, float* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < groups.count * cols; i += stride) {
    const int64_t group = i / cols, column = i % cols;
    float sum = 0.0f;
    for (int64_t e = groups.offsets[group]; e < groups.offsets[group + 1]; ++e) {
      sum += load(grad, dtype, groups.entries[e] * dim + dim - cols + column);
    }
    const int64_t row = dense ? groups.ids[group] - first_id : group;
    out[row * cols + column] = sum;
  }
}

}  // namespace

void lookup(const Tables& tables, const int64_t* ids, int64_t count, void* out, DType dtype,
            void* stream) {
  if (count == 0) return;
  lookup_kernel<<<grid_of(count * tables.dim), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      tables, ids, count, out, dtype);
  check_launch("lookup");
}

void lookup_backward(const void* grad, DType dtype, int64_t dim, int64_t cols,
                     const Groups& groups, int64_t first_id, bool dense, float* out,
                     void* stream) {
  if (groups.count == 0) return;
  lookup_backward_kernel<<<grid_of(groups.count * cols), kThreads, 0,
                           static_cast<cudaStream_t>(stream)>>>(grad, dtype, dim, cols, groups,
                                                                first_id, dense, out);
  check_launch("lookup_backward");
}

}  // namespace cuda
}  // namespace alphafuse
