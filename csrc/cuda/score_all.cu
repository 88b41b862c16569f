// Scores of every item for every query, written out, and their gradients; plainly: one thread an
// element, sums in a fixed order, no atomics.
#include "cuda/kernels.h"
#include "cuda/norms.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

__device__ inline float unit(const Tables& tables, const float* inverse_norms, int64_t row,
                             int64_t d) {
  const float value = fused(tables, row, d);
  return tables.cosine ? value * inverse_norms[row] : value;
}

// Scores, written out as they are.
template <class Tile>
struct WriteScores {
  struct Arguments {
    float* out;
  };
  struct Shared {
    __host__ __device__ Shared(Carver&, const Arguments&) {}
  };

  __device__ WriteScores(const Arguments& arguments, const Shared&) : out(arguments.out) {}
  __device__ void begin(const Unit&) {}
  __device__ void end(const Unit&) {}

  __device__ void see(const Unit& unit, const Scores<Tile>& scores) {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      float* const row = out + (unit.first_query + Tile::row(r)) * unit.rows;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (scores.is_item(c)) row[scores.item(c)] = scores.at[r][c];
      }
    }
  }

  float* out;
};

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

}  // namespace

void score_all(const Tables& tables, Array<const float, kBatch, kDim> queries,
               Array<float, kBatch, kItems> out, Launch& launch) {
  const int64_t batch = queries.size[0];
  const float* const inverse_norms = scratch_inverse_norms(launch, "score_all", tables);
  if (launch.measuring()) return;
  with_tile<false>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
    scan.parts = parts_for<Tile>(launch, scan);
    enqueue_scan<WriteScores, Tile>(launch, "score_all", scan, {out});
  });
}

void score_all_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                        Array<const float, kBatch, kItems> grad,
                        Optional<Array<float, kBatch, kDim>> grad_queries,
                        Optional<Array<float, kItems, kNullDim>> grad_ids, Launch& launch) {
  const float* const inverse_norms = scratch_inverse_norms(launch, "score_all_backward", tables);
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
