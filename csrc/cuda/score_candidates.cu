// Scores of given candidates, and their gradients. A warp takes one list of candidates and a few of
// its queries; its lanes share out the columns of a row, which is read where it lies, once for all of
// these queries.
//
// Bytes: every candidate's row once for each kWarpQueries of its queries (neighbours find it in the
// cache), queries and results once. FLOPs: 2 * queries * candidates * dim forward and again for each
// gradient, that of the ID embeddings for the null columns only. Scratch memory: backward, with
// cosine a float for each candidate; and for the ID embeddings that of grouping.cuh.
#include "cuda/grouping.cuh"
#include "cuda/kernels.h"
#include "cuda/norms.cuh"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kWarpQueries = 8;     // of one warp, where a list has as many
constexpr int kWarpCandidates = 4;  // scored at once, so that a query's columns are read once
constexpr int kLaneColumns = 4;     // of one lane at a time
constexpr int kWarpColumns = kLaneColumns * kWarpLanes;

// Work of one warp after another, over the whole grid.
struct WarpWork {
  int64_t at, step;
  __device__ WarpWork()
      : at(static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpLanes),
        step(static_cast<int64_t>(gridDim.x) * kWarps) {}
};

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarpLanes; }

// The row of an id; negative for one that is not among these: the padding, or of another part.
__device__ inline int64_t row_of_id(const Tables& tables, int64_t id) {
  const int64_t row = id - tables.first_id;
  return row < tables.rows ? row : -1;
}

// The warp's sums of `count` values; lane (32 / count) * i has that of value i.
template <int count>
__device__ inline float sum_each(float (&values)[count]) {
#pragma unroll
  for (int left = count, bit = kWarpLanes / 2; left > 1; left /= 2, bit /= 2) {
    const bool upper = (lane() & bit) != 0;
#pragma unroll
    for (int i = 0; i < left / 2; ++i) {
      const float away = upper ? values[i] : values[i + left / 2];
      const float own = upper ? values[i + left / 2] : values[i];
      values[i] = own + __shfl_xor_sync(kAllLanes, away, bit);
    }
  }
  return sum_lanes<kWarpLanes / count>(values[0]);
}

template <int queries_of_warp>
__global__ void score_candidates_kernel(Tables tables, const float* queries,
                                        const int64_t* candidates, int64_t lists, int64_t rows,
                                        int64_t k, float* out) {
  constexpr int kLanesOfSum = kWarpLanes / queries_of_warp;
  const int64_t query_blocks = ceil_div(rows, queries_of_warp);
  const int64_t candidate_blocks = ceil_div(k, kWarpCandidates);
  for (WarpWork work; work.at < lists * query_blocks * candidate_blocks; work.at += work.step) {
    const int64_t list = work.at / candidate_blocks / query_blocks;
    const int64_t first_query = work.at / candidate_blocks % query_blocks * queries_of_warp;
    const int64_t first = work.at % candidate_blocks * kWarpCandidates;
    int64_t row[kWarpCandidates];
#pragma unroll
    for (int c = 0; c < kWarpCandidates; ++c) {
      row[c] = first + c < k ? row_of_id(tables, candidates[list * k + first + c]) : -1;
    }
    float score[kWarpCandidates][queries_of_warp] = {}, square[kWarpCandidates] = {};
    for (int64_t begin = 0; begin < tables.dim; begin += kWarpColumns) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int64_t d = begin + j * kWarpLanes + lane();
        if (d >= tables.dim) continue;
        float query[queries_of_warp];
#pragma unroll
        for (int q = 0; q < queries_of_warp; ++q) {
          const int64_t b = list * rows + min(first_query + q, rows - 1);
          query[q] = queries[b * tables.dim + d];
        }
#pragma unroll
        for (int c = 0; c < kWarpCandidates; ++c) {
          if (row[c] < 0) continue;
          const float value = fused(tables, row[c], d);
          square[c] = fmaf(value, value, square[c]);
#pragma unroll
          for (int q = 0; q < queries_of_warp; ++q) {
            score[c][q] = fmaf(query[q], value, score[c][q]);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kWarpCandidates; ++c) {
      float total = sum_each(score[c]);
      if (tables.cosine) total *= inverse_of_square(sum_lanes<kWarpLanes>(square[c]));
      const int64_t query = first_query + lane() / kLanesOfSum;
      if (lane() % kLanesOfSum != 0 || query >= rows || first + c >= k) continue;
      out[(list * rows + query) * k + first + c] = row[c] < 0 ? -INFINITY : total;
    }
  }
}

// inverse_norms (lists * k)
__global__ void candidate_norms_kernel(Tables tables, const int64_t* candidates, int64_t count,
                                       float* inverse_norms) {
  for (WarpWork work; work.at < count; work.at += work.step) {
    const int64_t row = row_of_id(tables, candidates[work.at]);
    float square = 0.0f;
    for (int64_t d = lane(); row >= 0 && d < tables.dim; d += kWarpLanes) {
      const float value = fused(tables, row, d);
      square = fmaf(value, value, square);
    }
    const float inverse = inverse_of_square(sum_lanes<kWarpLanes>(square));
    if (lane() == 0) inverse_norms[work.at] = inverse;
  }
}

// grad_queries[b][d] = sum over its candidates of grad[b][c] t_c[d]
template <int queries_of_warp>
__global__ void grad_queries_kernel(Tables tables, const int64_t* candidates,
                                    const float* inverse_norms, const float* grad, int64_t lists,
                                    int64_t rows, int64_t k, float* grad_queries) {
  const int64_t query_blocks = ceil_div(rows, queries_of_warp);
  const int64_t column_blocks = ceil_div(tables.dim, kWarpColumns);
  for (WarpWork work; work.at < lists * query_blocks * column_blocks; work.at += work.step) {
    const int64_t list = work.at / column_blocks / query_blocks;
    const int64_t first_query = work.at / column_blocks % query_blocks * queries_of_warp;
    const int64_t begin = work.at % column_blocks * kWarpColumns + lane();
    float sum[queries_of_warp][kLaneColumns] = {};
    for (int64_t c = 0; c < k; ++c) {
      const int64_t row = row_of_id(tables, candidates[list * k + c]);
      if (row < 0) continue;
      const float inverse = tables.cosine ? inverse_norms[list * k + c] : 1.0f;
      float value[kLaneColumns];
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int64_t d = begin + j * kWarpLanes;
        value[j] = d < tables.dim ? inverse * fused(tables, row, d) : 0.0f;
      }
#pragma unroll
      for (int q = 0; q < queries_of_warp; ++q) {
        const int64_t b = list * rows + min(first_query + q, rows - 1);
        const float weight = grad[b * k + c];
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) sum[q][j] = fmaf(weight, value[j], sum[q][j]);
      }
    }
#pragma unroll
    for (int q = 0; q < queries_of_warp; ++q) {
      if (first_query + q >= rows) continue;
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const int64_t d = begin + j * kWarpLanes;
        if (d < tables.dim) {
          grad_queries[(list * rows + first_query + q) * tables.dim + d] = sum[q][j];
        }
      }
    }
  }
}

// The gradient of the ID embedding of one entry, a candidate of a list: the sum over the list's
// queries. With cosine the row enters as t = v / |v|, and the gradient of v is (g - (g . t) t) / |v|;
// g . t is the sum of gradient times score. A clamped norm is a constant and has no second term.
struct EntryGradients {
  Tables tables;
  const float *queries, *scores, *grad;
  const int64_t* candidates;
  const float* inverse_norms;  // of the candidates, with cosine
  int64_t rows, k;

  __device__ void read(int64_t entry, int64_t column, float (&values)[kColsOfLane]) const {
    const int64_t cols = tables.id.cols, first = entry / k * rows;
    float along = 0.0f;
#pragma unroll
    for (float& value : values) value = 0.0f;
    int64_t at = first * k + entry % k;
    const float* query = queries + first * tables.dim + tables.null_offset;
    for (int64_t b = 0; b < rows; ++b, at += k, query += tables.dim) {
      const float weight = grad[at];
      if (tables.cosine) along = fmaf(weight, scores[at], along);
#pragma unroll
      for (int j = 0; j < kColsOfLane; ++j) {
        if (column + j < cols) values[j] = fmaf(weight, query[column + j], values[j]);
      }
    }
    if (!tables.cosine) return;
    const float inverse = inverse_norms[entry];
    const float projected = inverse < 1.0f / kMinNorm ? along * inverse : 0.0f;
    const int64_t row = row_of_id(tables, candidates[entry]);
#pragma unroll
    for (int j = 0; j < kColsOfLane; ++j) {
      if (row < 0 || column + j >= cols) continue;
      const float value = fused(tables, row, tables.null_offset + column + j);
      values[j] = inverse * (values[j] - projected * value);
    }
  }
};

// In scratch memory; null while measuring, and without cosine.
const float* scratch_candidate_norms(Launch& launch, const char* op, const Tables& tables,
                                     const int64_t* candidates, int64_t count) {
  if (!tables.cosine) return nullptr;
  auto* const out = launch.scratch<float>(count);
  if (!launch.measuring() && count > 0) {
    enqueue(launch, op, candidate_norms_kernel, grid_of(count, kWarps), kThreads, 0, tables,
            candidates, count, out);
  }
  return out;
}

}  // namespace

void score_candidates(const Tables& tables, Array<const float, kLists, kListQueries, kDim> queries,
                      Array<const int64_t, kLists, kCandidates> candidates,
                      Array<float, kLists, kListQueries, kCandidates> out, Launch& launch) {
  const int64_t lists = out.size[0], rows = out.size[1], k = out.size[2];
  if (launch.measuring() || lists * rows * k == 0) return;
  const auto run = [&](auto kernel, int64_t of_warp) {
    const int64_t warps = lists * ceil_div(rows, of_warp) * ceil_div(k, kWarpCandidates);
    enqueue(launch, "score_candidates", kernel, grid_of(warps, kWarps), kThreads, 0, tables,
            queries, candidates, lists, rows, k, out);
  };
  if (rows == 1) return run(score_candidates_kernel<1>, 1);
  run(score_candidates_kernel<kWarpQueries>, kWarpQueries);
}

void score_candidates_grad_queries(const Tables& tables,
                                   Array<const int64_t, kLists, kCandidates> candidates,
                                   Array<const float, kLists, kListQueries, kCandidates> grad,
                                   Array<float, kLists, kListQueries, kDim> grad_queries,
                                   Launch& launch) {
  const char* const op = "score_candidates_grad_queries";
  const int64_t lists = grad.size[0], rows = grad.size[1], k = grad.size[2];
  const float* const inverse_norms =
      scratch_candidate_norms(launch, op, tables, candidates, lists * k);
  if (launch.measuring() || lists * rows == 0) return;
  const auto run = [&](auto kernel, int64_t of_warp) {
    const int64_t warps = lists * ceil_div(rows, of_warp) * ceil_div(tables.dim, kWarpColumns);
    enqueue(launch, op, kernel, grid_of(warps, kWarps), kThreads, 0, tables, candidates,
            inverse_norms, grad, lists, rows, k, grad_queries);
  };
  if (rows == 1) return run(grad_queries_kernel<1>, 1);
  run(grad_queries_kernel<kWarpQueries>, kWarpQueries);
}

void score_candidates_grad_ids(const Tables& tables,
                               Array<const float, kLists, kListQueries, kDim> queries,
                               Array<const int64_t, kLists, kCandidates> candidates,
                               Array<const float, kLists, kListQueries, kCandidates> scores,
                               Array<const float, kLists, kListQueries, kCandidates> grad,
                               const Groups& groups, Array<float, kGradRows, kNullDim> out,
                               Launch& launch) {
  const char* const op = "score_candidates_grad_ids";
  const int64_t lists = grad.size[0], rows = grad.size[1], k = grad.size[2], cols = out.size[1];
  const float* const inverse_norms =
      scratch_candidate_norms(launch, op, tables, candidates, lists * k);
  auto* const partial = launch.scratch<float>(scratch_of_sums(groups, cols));
  if (launch.measuring()) return;
  const EntryGradients source{tables, queries, scores, grad, candidates, inverse_norms, rows, k};
  enqueue_sums(launch, op, groups, source, cols, partial, out);
}

}  // namespace cuda
}  // namespace alphafuse
