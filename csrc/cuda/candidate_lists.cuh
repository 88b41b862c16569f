// Lists of candidates, each for as many queries: what ops that score them share.
//
// The gradient of ID embeddings is first that of each entry, a candidate of a list: a sum over the
// list's queries. Where there are many it is a product with the list's coefficients (product.cuh),
// written out; where there are few it is summed as it is read. That of the entries is then summed by
// row (grouping.cuh).
#pragma once

#include "cuda/grouping.cuh"
#include "cuda/norms.cuh"
#include "cuda/product.cuh"

namespace alphafuse {
namespace cuda {

struct CandidateLists {
  const float* queries;  // (count, rows, dim)
  const int64_t* ids;    // (count, k)
  int64_t count, rows, k;
};

// From how many queries of a list on its entries' gradients are written out: they take at most
// id.cols / kProductFrom times the memory of the coefficients.
constexpr int64_t kProductFrom = 32;

// The row of an id; negative for one that is not among these: the padding, or of another part.
__device__ inline int64_t row_of_id(const Tables& tables, int64_t id) {
  const int64_t row = id - tables.first_id;
  return row < tables.rows ? row : -1;
}

// out (count, rows, k), -inf for an id that is not among these.
void enqueue_list_scores(Launch& launch, const char* op, const Tables& tables,
                         const CandidateLists& lists, float* out);

// 1 / norm of each candidate in scratch memory; null while measuring, and without cosine.
const float* scratch_candidate_norms(Launch& launch, const char* op, const Tables& tables,
                                     const int64_t* ids, int64_t count);

// grad_queries (count, rows, dim) from the coefficients (count, rows, k).
void enqueue_list_grad_queries(Launch& launch, const char* op, const Tables& tables,
                               const CandidateLists& lists, const float* inverse_norms,
                               const float* coefficients, float* grad_queries);

// out (count, k), or added to it: the sums over the queries of coefficient * score. Scratch memory as
// `along_partial` says.
int64_t along_partial(const CandidateLists& lists);
void enqueue_list_along(Launch& launch, const char* op, const CandidateLists& lists,
                        const float* coefficients, const float* scores, float* partial,
                        bool accumulate, float* out);

// From the gradient of a candidate divided by its norm, g, to that of the row itself, in the null
// columns from `column` on. With cosine the row enters as t = v / |v|, and the gradient of v is
// (g - (g . t) t) / |v|; g . t is the sum of gradient times score, `along`. A clamped norm is a
// constant and has no second term.
__device__ inline void through_norm(const Tables& tables, int64_t id, float inverse, float along,
                                    int64_t column, float (&values)[kColsOfLane]) {
  const float projected = inverse < 1.0f / kMinNorm ? along * inverse : 0.0f;
  const int64_t row = row_of_id(tables, id);
#pragma unroll
  for (int j = 0; j < kColsOfLane; ++j) {
    if (row < 0 || column + j >= tables.id.cols) continue;
    const float value = fused(tables, row, tables.null_offset + column + j);
    values[j] = inverse * (values[j] - projected * value);
  }
}

// The gradient of the ID embedding of an entry, for enqueue_sums. `sums` is null where it is summed as
// it is read.
struct EntryGradients {
  Tables tables;
  CandidateLists lists;
  const float *coefficients, *scores;  // (count, rows, k), the scores with cosine; or
  const float *sums, *along;           // (count, k, id.cols), and with cosine (count, k)
  const float* inverse_norms;          // (count, k), with cosine

  __device__ void read(int64_t entry, int64_t column, float (&values)[kColsOfLane]) const {
    const int64_t cols = tables.id.cols, k = lists.k;
    float product = 0.0f;
    if (sums != nullptr) {
      if (tables.cosine) product = along[entry];
#pragma unroll
      for (int j = 0; j < kColsOfLane; ++j) {
        values[j] = column + j < cols ? sums[entry * cols + column + j] : 0.0f;
      }
    } else {
#pragma unroll
      for (float& value : values) value = 0.0f;
      const int64_t first = entry / k * lists.rows;
      int64_t at = first * k + entry % k;
      const float* query = lists.queries + first * tables.dim + tables.null_offset;
      for (int64_t b = 0; b < lists.rows; ++b, at += k, query += tables.dim) {
        const float weight = coefficients[at];
        if (tables.cosine) product = fmaf(weight, scores[at], product);
#pragma unroll
        for (int j = 0; j < kColsOfLane; ++j) {
          if (column + j < cols) values[j] = fmaf(weight, query[column + j], values[j]);
        }
      }
    }
    if (tables.cosine) {
      through_norm(tables, lists.ids[entry], inverse_norms[entry], product, column, values);
    }
  }
};

}  // namespace cuda
}  // namespace alphafuse
