// Fused rows of given ids, and the gradient of the ID embeddings among them: one thread an element.
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
    if (row < 0 || row > tables.rows) {
      fail_index("lookup", "ids", ids[i / tables.dim], i / tables.dim, tables.first_id,
                 tables.first_id + tables.rows);
    }
    store(out, dtype, i, row < tables.rows ? fused(tables, row, i % tables.dim) : 0.0f);
  }
}

__global__ void lookup_backward_kernel(const void* grad, DType dtype, int64_t dim, int64_t cols,
                                       Groups groups, float* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < groups.count * cols; i += stride) {
    const int64_t group = i / cols, column = i % cols;
    float sum = 0.0f;
    for (int64_t e = groups.offsets[group]; e < groups.offsets[group + 1]; ++e) {
      sum += load(grad, dtype, groups.entries[e] * dim + dim - cols + column);
    }
    const int64_t row = groups.dense ? groups.ids[group] - groups.first_id : group;
    out[row * cols + column] = sum;
  }
}

}  // namespace

void lookup(const Tables& tables, Array<const int64_t, kCount> ids,
            FloatArray<void, kCount, kDim> out, Launch& launch) {
  const int64_t count = ids.size[0];
  if (launch.measuring() || count == 0) return;
  enqueue(launch, "lookup", lookup_kernel, grid_of(count * tables.dim), kThreads, 0, tables, ids,
          count, out, out.dtype);
}

void lookup_backward(FloatArray<const void, kCount, kDim> grad, const Groups& groups,
                     Array<float, kGradRows, kNullDim> out, Launch& launch) {
  if (launch.measuring() || groups.count == 0) return;
  const int64_t cols = out.size[1];
  enqueue(launch, "lookup_backward", lookup_backward_kernel, grid_of(groups.count * cols), kThreads,
          0, grad, grad.dtype, grad.size[1], cols, groups, out);
}

}  // namespace cuda
}  // namespace alphafuse
