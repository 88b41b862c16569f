// Scores of every item for every query, written out, and their gradients; plainly: one thread an
// element, sums in a fixed order, no atomics.
#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {
namespace {

constexpr float kLeastNorm = 1e-8f;

// 1 / max(norm, kLeastNorm) of each fused row, 0 for a row of zeros.
__global__ void inverse_norm_kernel(Tables tables, float* inverse_norms) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < tables.rows;
       i += stride) {
    float square = 0.0f;
    for (int64_t d = 0; d < tables.dim; ++d) {
      const float value = fused(tables, i, d);
      square += value * value;
    }
    const float norm = sqrtf(square);
    inverse_norms[i] = norm == 0.0f ? 0.0f : 1.0f / fmaxf(norm, kLeastNorm);
  }
}

__device__ inline float unit(const Tables& tables, const float* inverse_norms, int64_t row,
                             int64_t d) {
  const float value = fused(tables, row, d);
  return tables.cosine ? value * inverse_norms[row] : value;
}

// Every score is one chain of multiply-adds in the order of the columns, so equal rows score
// bitwise equal.
__global__ void score_kernel(Tables tables, const float* queries, int64_t batch,
                             const float* inverse_norms, float* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < batch * tables.rows; i += stride) {
    const int64_t b = i / tables.rows, row = i % tables.rows;
    float score = 0.0f;
    for (int64_t d = 0; d < tables.dim; ++d) {
      score = fmaf(queries[b * tables.dim + d], unit(tables, inverse_norms, row, d), score);
    }
    out[i] = score;
  }
}

// grad_queries[b][d] = sum over items of grad[b][i] t_i[d]
__global__ void grad_queries_kernel(Tables tables, int64_t batch, const float* inverse_norms,
                                    const float* grad, float* grad_queries) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < batch * tables.dim; i += stride) {
    const int64_t b = i / tables.dim, d = i % tables.dim;
    float sum = 0.0f;
    for (int64_t row = 0; row < tables.rows; ++row) {
      sum = fmaf(grad[b * tables.rows + row], unit(tables, inverse_norms, row, d), sum);
    }
    grad_queries[i] = sum;
  }
}

// Column d of the gradient of the item's (normalised) fused row: sum over b of grad[b][row] q_b[d].
__device__ inline float row_gradient(const Tables& tables, const float* queries, int64_t batch,
                                     const float* grad, int64_t row, int64_t d) {
  float sum = 0.0f;
  for (int64_t b = 0; b < batch; ++b) {
    sum = fmaf(grad[b * tables.rows + row], queries[b * tables.dim + d], sum);
  }
  return sum;
}

// One block an item. With cosine the row enters as t = v / |v|, and the gradient of v is
// (g - (g . t) t) / |v|; a clamped norm is a constant and has no second term.
__global__ void grad_ids_kernel(Tables tables, const float* queries, int64_t batch,
                                const float* inverse_norms, const float* grad, float* grad_ids) {
  ALPHAFUSE_SHARED(float, partial, kThreads);
  const int64_t cols = tables.id.cols;
  for (int64_t row = blockIdx.x; row < tables.rows; row += gridDim.x) {
    float inverse = 1.0f, along = 0.0f;
    if (tables.cosine) {
      inverse = inverse_norms[row];
      const bool norm_varies = inverse != 0.0f && inverse < 1.0f / kLeastNorm;
      float sum = 0.0f;
      for (int64_t d = threadIdx.x; norm_varies && d < tables.dim; d += blockDim.x) {
        sum = fmaf(row_gradient(tables, queries, batch, grad, row, d),
                   unit(tables, inverse_norms, row, d), sum);
      }
      partial[threadIdx.x] = sum;
      __syncthreads();
      for (int half = kThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
      }
      along = partial[0];
      __syncthreads();  // before the next item writes there
    }
    for (int64_t j = threadIdx.x; j < cols; j += blockDim.x) {
      const int64_t d = tables.null_offset + j;
      const float sum = row_gradient(tables, queries, batch, grad, row, d);
      const float tangent = along * (tables.cosine ? unit(tables, inverse_norms, row, d) : 0.0f);
      grad_ids[row * cols + j] = inverse * (sum - tangent);
    }
  }
}

// Null while measuring, and where rows are not divided by their norms.
float* inverse_norms_of(const Tables& tables, Launch& launch) {
  if (!tables.cosine) return nullptr;
  auto* const inverse_norms = launch.scratch<float>(tables.rows);
  if (launch.measuring()) return nullptr;
  enqueue(launch, "score_all", inverse_norm_kernel, grid_of(tables.rows), kThreads, 0, tables,
          inverse_norms);
  return inverse_norms;
}

}  // namespace

void score_all(const Tables& tables, Array<const float, kBatch, kDim> queries,
               Array<float, kBatch, kItems> out, Launch& launch) {
  const float* inverse_norms = inverse_norms_of(tables, launch);
  const int64_t batch = queries.size[0];
  if (launch.measuring() || batch == 0) return;
  enqueue(launch, "score_all", score_kernel, grid_of(batch * tables.rows), kThreads, 0, tables,
          queries, batch, inverse_norms, out);
}

void score_all_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                        Array<const float, kBatch, kItems> grad,
                        Optional<Array<float, kBatch, kDim>> grad_queries,
                        Optional<Array<float, kItems, kNullDim>> grad_ids, Launch& launch) {
  const float* inverse_norms = inverse_norms_of(tables, launch);
  if (launch.measuring()) return;
  const int64_t batch = queries.size[0];
  if (grad_queries != nullptr && batch > 0) {
    enqueue(launch, "score_all_backward", grad_queries_kernel, grid_of(batch * tables.dim), kThreads,
            0, tables, batch, inverse_norms, grad, grad_queries);
  }
  if (grad_ids != nullptr) {  // zeros if there are no queries
    enqueue(launch, "score_all_backward", grad_ids_kernel, grid_of(tables.rows, 1), kThreads, 0,
            tables, queries, batch, inverse_norms, grad, grad_ids);
  }
}

}  // namespace cuda
}  // namespace alphafuse
