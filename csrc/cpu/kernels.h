// Every kernel's signature: declared once for each instruction set, and a table of pointers to
// those of one set. To add an op is to add it here twice, and its file to CMakeLists.txt.
//
// Everywhere: `tables` is a catalog or a part of it; ids are those of the whole catalog, and one
// outside the part is skipped (its result a zero row, a score of -inf, no gradient), so results of
// parts can be merged; ids were checked before (ids.h). Queries are contiguous float32
// (batch, dim).
#pragma once

#include "compressed.h"
#include "cpu/exclude.h"
#include "cpu/grouping.h"
#include "tables.h"

namespace alphafuse {

// clang-format off
#define ALPHAFUSE_DECLARE_KERNELS(isa)                                                             \
  namespace isa {                                                                                  \
  /* out (count, dim), of type `dtype`. */                                                         \
  void lookup(const Tables& tables, const int64_t* ids, int64_t count, void* out, DType dtype,     \
              int threads);                                                                        \
  /* grad (count, dim), of type `dtype`, whose last `cols` columns are the null columns; out: a */ \
  /* row for each group, or (dense) the row of the group's id in a part that starts at first_id. */\
  void lookup_backward(const void* grad, DType dtype, int64_t dim, int64_t cols,                   \
                       const Groups& groups, int64_t first_id, bool dense, float* out,             \
                       int threads);                                                               \
  /* out (batch, rows). */                                                                         \
  void score_all(const Tables& tables, const float* queries, int64_t batch, float* out,            \
                 int threads);                                                                     \
  /* grad (batch, rows); grad_queries (batch, dim) and grad_ids (rows, id.cols), null if unused. */\
  void score_all_backward(const Tables& tables, const float* queries, int64_t batch,               \
                          const float* grad, float* grad_queries, float* grad_ids, int threads);   \
  /* queries (groups, rows, dim), candidates (groups, k), out (groups, rows, k). */                \
  void score_candidates(const Tables& tables, const float* queries, int64_t groups, int64_t rows,  \
                        const int64_t* candidates, int64_t k, float* out, int threads);            \
  void score_candidates_grad_queries(const Tables& tables, int64_t groups, int64_t rows,           \
                                     const int64_t* candidates, int64_t k, const float* grad,      \
                                     float* grad_queries, int threads);                            \
  void score_candidates_grad_ids(const Tables& tables, const float* queries, int64_t rows,         \
                                 int64_t k, const float* scores, const float* grad,                \
                                 const Groups& groups, bool dense, float* out, int threads);       \
  /* out (batch,): each query's score with its own target. */                                      \
  void target_scores(const Tables& tables, const float* queries, int64_t batch,                    \
                     const int64_t* targets, float* out, int threads);                             \
  /* maxima, logs (batch,): the largest score of this part, and log(sum(exp(score - maximum))). */ \
  /* Kept apart, since their sum would lose what large scores leave no digits for. */              \
  void log_sum_exp(const Tables& tables, const float* queries, int64_t batch, float* maxima,       \
                   float* logs, int threads);                                                      \
  /* Gradient of sum(weights * (maximum + log - target score)); a weight of 0 skips its row. */    \
  void cross_entropy_backward(const Tables& tables, const float* queries, int64_t batch,           \
                              const int64_t* targets, const float* maxima, const float* logs,      \
                              const float* weights, float* grad_queries, float* grad_ids,          \
                              int threads);                                                        \
  /* values and ids (batch, k), in order; -inf and -1 where there are no more items. `compressed` */\
  /* may be null: no first pass. */                                                                \
  void topk(const Tables& tables, const float* queries, int64_t batch, int64_t k,                  \
            const ExcludedIds& exclude, const Compressed* compressed, FirstPassCount& counted,     \
            float* values, int64_t* ids, int threads);                                             \
  /* out (batch,): items of this part ahead of the target, whose score is given. */                \
  void target_ranks(const Tables& tables, const float* queries, int64_t batch,                     \
                    const int64_t* targets, const float* scores, const ExcludedIds& exclude,       \
                    const Compressed* compressed, FirstPassCount& counted, int64_t* out,           \
                    int threads);                                                                  \
  /* The compressed copy of a table of `rows` rows: codes (padded_rows(rows), even cols) in the */ \
  /* order of compressed.h; scales, residuals, norms (padded_rows(rows),). */                      \
  void compress(const Table& table, int64_t rows, int8_t* codes, float* scales, float* residuals,  \
                float* norms, int threads);                                                        \
  /* out (rows,): 1 / max(norm, 1e-8) of every fused row, 0 for a row of zeros. */                 \
  void inverse_row_norms(const Tables& tables, float* out, int threads);                               \
  }
// clang-format on

ALPHAFUSE_DECLARE_KERNELS(scalar)
ALPHAFUSE_DECLARE_KERNELS(avx2)
ALPHAFUSE_DECLARE_KERNELS(avx512)

struct Kernels {
  const char* isa;
  decltype(&scalar::lookup) lookup;
  decltype(&scalar::lookup_backward) lookup_backward;
  decltype(&scalar::score_all) score_all;
  decltype(&scalar::score_all_backward) score_all_backward;
  decltype(&scalar::score_candidates) score_candidates;
  decltype(&scalar::score_candidates_grad_queries) score_candidates_grad_queries;
  decltype(&scalar::score_candidates_grad_ids) score_candidates_grad_ids;
  decltype(&scalar::target_scores) target_scores;
  decltype(&scalar::log_sum_exp) log_sum_exp;
  decltype(&scalar::cross_entropy_backward) cross_entropy_backward;
  decltype(&scalar::topk) topk;
  decltype(&scalar::target_ranks) target_ranks;
  decltype(&scalar::compress) compress;
  decltype(&scalar::inverse_row_norms) inverse_row_norms;
};

}  // namespace alphafuse
