// A warp takes one list of candidates and a few of its queries; its lanes share out the columns of a
// row, which is read where it lies, once for all of these queries.
#include <type_traits>

#include "cuda/candidate_lists.cuh"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kWarpQueries = 8;  // of one warp, where a list has as many
constexpr int kLaneColumns = 4;  // of one lane at a time, neighbours
constexpr int kWarpColumns = kLaneColumns * kWarpLanes;

// Scored at once, so that a query's columns are read once; as many as there are registers for.
__host__ __device__ constexpr int candidates_of_warp(int64_t queries) {
  return queries == 1 ? 4 : 2;
}

// Work of one warp after another, over the whole grid.
struct WarpWork {
  int64_t at, step;
  __device__ WarpWork()
      : at(static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpLanes),
        step(static_cast<int64_t>(gridDim.x) * kWarps) {}
};

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarpLanes; }

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
__global__ void __launch_bounds__(kThreads)
    score_candidates_kernel(Tables tables, Rows items, Part queries, const int64_t* candidates,
                            int64_t lists, int64_t rows, int64_t k, float* out) {
  constexpr int kWarpCandidates = candidates_of_warp(queries_of_warp);
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
    for (int64_t d = lane() * kLaneColumns; d < tables.dim; d += kWarpColumns) {
      float value[kWarpCandidates][kLaneColumns] = {};
#pragma unroll
      for (int c = 0; c < kWarpCandidates; ++c) {
        if (row[c] >= 0) read_fused(items, row[c], static_cast<int>(d), value[c]);
#pragma unroll
        for (const float own : value[c]) square[c] = fmaf(own, own, square[c]);
      }
#pragma unroll
      for (int q = 0; q < queries_of_warp; ++q) {
        float query[kLaneColumns];
        read(queries, list * rows + min(first_query + q, rows - 1), d, query);
#pragma unroll
        for (int c = 0; c < kWarpCandidates; ++c) {
#pragma unroll
          for (int j = 0; j < kLaneColumns; ++j) {
            score[c][q] = fmaf(query[j], value[c][j], score[c][q]);
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
__global__ void candidate_norms_kernel(Tables tables, Rows items, const int64_t* candidates,
                                       int64_t count, float* inverse_norms) {
  for (WarpWork work; work.at < count; work.at += work.step) {
    const int64_t row = row_of_id(tables, candidates[work.at]);
    float square = 0.0f;
    for (int d = lane() * kLaneColumns; row >= 0 && d < tables.dim; d += kWarpColumns) {
      float value[kLaneColumns];
      read_fused(items, row, d, value);
#pragma unroll
      for (const float own : value) square = fmaf(own, own, square);
    }
    const float inverse = inverse_of_square(sum_lanes<kWarpLanes>(square));
    if (lane() == 0) inverse_norms[work.at] = inverse;
  }
}

// grad_queries[b][d] = sum over its candidates of grad[b][c] t_c[d]
template <int queries_of_warp>
__global__ void grad_queries_kernel(Tables tables, Rows items, const int64_t* candidates,
                                    const float* inverse_norms, const float* grad, int64_t lists,
                                    int64_t rows, int64_t k, bool whole_pieces,
                                    float* grad_queries) {
  const int64_t query_blocks = ceil_div(rows, queries_of_warp);
  const int64_t column_blocks = ceil_div(tables.dim, kWarpColumns);
  for (WarpWork work; work.at < lists * query_blocks * column_blocks; work.at += work.step) {
    const int64_t list = work.at / column_blocks / query_blocks;
    const int64_t first_query = work.at / column_blocks % query_blocks * queries_of_warp;
    const int64_t d = work.at % column_blocks * kWarpColumns + lane() * kLaneColumns;
    if (d >= tables.dim) continue;
    float sum[queries_of_warp][kLaneColumns] = {};
    for (int64_t c = 0; c < k; ++c) {
      const int64_t row = row_of_id(tables, candidates[list * k + c]);
      if (row < 0) continue;
      const float inverse = tables.cosine ? inverse_norms[list * k + c] : 1.0f;
      float value[kLaneColumns];
      read_fused(items, row, static_cast<int>(d), value);
#pragma unroll
      for (float& own : value) own *= inverse;
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
      float* const to = grad_queries + (list * rows + first_query + q) * tables.dim + d;
      if (whole_pieces) {
        *reinterpret_cast<float4*>(to) = {sum[q][0], sum[q][1], sum[q][2], sum[q][3]};
        continue;
      }
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        if (d + j < tables.dim) to[j] = sum[q][j];
      }
    }
  }
}

// partial (parts, count, k): a thread sums the queries of a part of a list for one candidate.
__global__ void __launch_bounds__(kThreads)
    along_kernel(const float* coefficients, const float* scores, CandidateLists lists,
                 int64_t parts, bool accumulate, float* out) {
  const int64_t step = int64_t{kThreads} * gridDim.x, entries = lists.count * lists.k;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < parts * entries; i += step) {
    const int64_t part = i / entries, list = i % entries / lists.k;
    const int64_t begin = list * lists.rows + lists.rows * part / parts;
    const int64_t end = list * lists.rows + lists.rows * (part + 1) / parts;
    float sum = accumulate ? out[i] : 0.0f;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * lists.k + i % lists.k;
      sum = fmaf(coefficients[at], scores[at], sum);
    }
    out[i] = sum;
  }
}

int64_t along_parts(const CandidateLists& lists) {
  constexpr int64_t kRows = kEmulated ? 16 : 128, kMaxParts = 64;
  return max(1, min(kMaxParts, lists.rows / kRows));
}

}  // namespace

const float* scratch_candidate_norms(Launch& launch, const char* op, const Tables& tables,
                                     const int64_t* ids, int64_t count) {
  if (!tables.cosine) return nullptr;
  auto* const out = launch.scratch<float>(count);
  if (!launch.measuring() && count > 0) {
    enqueue(launch, op, candidate_norms_kernel, grid_of(count, kWarps), kThreads, 0, tables,
            rows_of_columns<float>(tables), ids, count, out);
  }
  return out;
}

void enqueue_list_scores(Launch& launch, const char* op, const Tables& tables,
                         const CandidateLists& lists, float* out) {
  if (lists.count * lists.rows * lists.k == 0) return;
  const auto run = [&](auto of_warp) {
    constexpr int kQueries = decltype(of_warp)::value;
    const int64_t warps = lists.count * ceil_div(lists.rows, kQueries) *
                          ceil_div(lists.k, candidates_of_warp(kQueries));
    enqueue(launch, op, score_candidates_kernel<kQueries>, grid_of(warps, kWarps), kThreads, 0,
            tables, rows_of_columns<float>(tables),
            part_of<float>(lists.queries, DType::kFloat32, tables.dim, tables.dim), lists.ids,
            lists.count, lists.rows, lists.k, out);
  };
  if (lists.rows == 1) return run(std::integral_constant<int, 1>());
  run(std::integral_constant<int, kWarpQueries>());
}

void enqueue_list_grad_queries(Launch& launch, const char* op, const Tables& tables,
                               const CandidateLists& lists, const float* inverse_norms,
                               const float* coefficients, float* grad_queries) {
  if (lists.count * lists.rows == 0) return;
  const bool whole_pieces = tables.dim % kLaneColumns == 0 &&
                            reinterpret_cast<uintptr_t>(grad_queries) % kPieceBytes == 0;
  const auto run = [&](auto of_warp) {
    constexpr int kQueries = decltype(of_warp)::value;
    const int64_t warps =
        lists.count * ceil_div(lists.rows, kQueries) * ceil_div(tables.dim, kWarpColumns);
    enqueue(launch, op, grad_queries_kernel<kQueries>, grid_of(warps, kWarps), kThreads, 0, tables,
            rows_of_columns<float>(tables), lists.ids, inverse_norms, coefficients, lists.count,
            lists.rows, lists.k, whole_pieces, grad_queries);
  };
  if (lists.rows == 1) return run(std::integral_constant<int, 1>());
  run(std::integral_constant<int, kWarpQueries>());
}

int64_t along_partial(const CandidateLists& lists) {
  const int64_t parts = along_parts(lists);
  return parts > 1 ? parts * lists.count * lists.k : 0;
}

void enqueue_list_along(Launch& launch, const char* op, const CandidateLists& lists,
                        const float* coefficients, const float* scores, float* partial,
                        bool accumulate, float* out) {
  const int64_t parts = along_parts(lists), entries = lists.count * lists.k;
  if (entries == 0) return;
  const bool whole = parts == 1;
  enqueue(launch, op, along_kernel, grid_of(parts * entries), kThreads, 0, coefficients, scores,
          lists, parts, whole && accumulate, whole ? out : partial);
  if (!whole) enqueue_sum_parts(launch, op, partial, parts, entries, accumulate, out);
}

}  // namespace cuda
}  // namespace alphafuse
