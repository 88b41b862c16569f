// Scores of given candidates, shared by all rows (queries) of a group: the negatives of a batch, of
// a sequence or of a position. Queries are shared out among the threads, each of them is one's.
#include "cpu/candidate_lists.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

void score_candidates(const Tables& tables, Array<const float, kLists, kListQueries, kDim> queries,
                      Array<const int64_t, kLists, kCandidates> candidates,
                      Array<float, kLists, kListQueries, kCandidates> out, Workers workers) {
  const int64_t groups = out.size[0], rows = out.size[1], k = out.size[2];
  const int threads = threads_for_lists(groups, rows, k, tables.dim, workers.threads);
  const int64_t parts = min(threads, groups * rows);
  in_precision(workers.precision, queries, groups * rows, tables.dim, [&](const auto* operand) {
    using T = Element<decltype(operand)>;
    auto body = [&](int64_t part) {
      Tile<T> tile(tables, kListTile, false);
      const Buffer<float> scores(kQueriesAtOnce * kListTile);
      visit_rows(groups, rows, part, parts, [&](int64_t group, int64_t first, int64_t count) {
        for (int64_t j = 0; j < k; j += kListTile) {
          const int64_t* ids = candidates + group * k + j;
          tile.gather(ids, min(kListTile, k - j));
          int64_t left_out[kListTile], missing = 0;
          for (int64_t i = 0; i < tile.size(); ++i) {
            if (!tile.has(ids[i])) left_out[missing++] = i;
          }
          for (int64_t b = first; b < first + count; b += kQueriesAtOnce) {
            const int64_t block = min(kQueriesAtOnce, first + count - b);
            check_interrupt();
            tile.score(operand + b * steps<T>(tables.dim), block, scores, kListTile);
            for (int64_t r = 0; r < block; ++r) {
              float* to = out + (b + r) * k + j;
              copy(to, scores + r * kListTile, tile.size());
              for (int64_t i = 0; i < missing; ++i) to[left_out[i]] = -__builtin_inff();
            }
          }
        }
      });
    };
    parallel(parts, threads, body);
  });
}

void score_candidates_grad_queries(const Tables& tables,
                                   Array<const int64_t, kLists, kCandidates> candidates,
                                   Array<const float, kLists, kListQueries, kCandidates> grad,
                                   Array<float, kLists, kListQueries, kDim> grad_queries,
                                   Workers workers) {
  const int64_t groups = grad.size[0], rows = grad.size[1], k = grad.size[2];
  const int64_t dim = tables.dim, row = row_stride(dim);
  const int threads = threads_for_lists(groups, rows, k, dim, workers.threads);
  const int64_t parts = min(threads, groups * rows);
  in_precision(workers.precision, nullptr, 0, dim, [&](const auto* operand) {
    using T = Element<decltype(operand)>;
    auto body = [&](int64_t part) {
      Tile<T> tile(tables, kListTile, true);
      const ScoreGradients<T> c(kQueriesAtOnce, kListTile);
      const Buffer<float> sums(ceil_div(groups * rows, parts) * row);
      visit_rows(groups, rows, part, parts, [&](int64_t group, int64_t first, int64_t count) {
        clear(sums, count * row);
        for (int64_t j = 0; j < k; j += kListTile) {
          const int64_t* ids = candidates + group * k + j;
          tile.gather(ids, min(kListTile, k - j));
          for (int64_t b = 0; b < count; b += kQueriesAtOnce) {
            const int64_t block = min(kQueriesAtOnce, count - b);
            check_interrupt();
            for (int64_t r = 0; r < block; ++r) {
              const float* from = grad + (first + b + r) * k + j;
              for (int64_t i = 0; i < tile.size(); ++i) {
                c.row(r)[i] = tile.has(ids[i]) ? from[i] : 0.0f;
              }
              c.finish(r, block, tile.size());
            }
            c.add_over_items(block, tile.size(), tile.rows(), row, dim, sums + b * row);
          }
        }
        for (int64_t b = 0; b < count; ++b) {
          copy(grad_queries + (first + b) * dim, sums + b * row, dim);
        }
      });
    };
    parallel(parts, threads, body);
  });
}

void score_candidates_grad_ids(const Tables& tables,
                               Array<const float, kLists, kListQueries, kDim> queries,
                               Array<const int64_t, kLists, kCandidates> candidates,
                               Array<const float, kLists, kListQueries, kCandidates> scores,
                               Array<const float, kLists, kListQueries, kCandidates> grad,
                               const Groups& groups, Array<float, kGradRows, kNullDim> out,
                               Workers workers) {
  const int64_t rows = grad.size[1], k = grad.size[2];
  const CandidateLists lists{queries, candidates, grad.size[0], rows, k};
  const int threads = threads_for_lists(lists.count, rows, k, tables.id.cols, workers.threads);
  RowSums sums(tables, groups, out, threads);
  if (rows < kProductFrom) {
    sums.add(lists.count * k, [&](int64_t entry, float* sum) {
      return add_entry(tables, lists, grad, scores, 0, entry, sum);
    });
  } else {
    in_precision(workers.precision, nullptr, 0, tables.dim, [&](const auto* unscored) {
      lists_backward(
          tables, lists, unscored, false, nullptr, &sums, 0, threads,
          [&](int64_t b, int64_t, int64_t first, int64_t count, float* of_scores, float* c) {
            copy(c, grad + b * k + first, count);
            if (tables.cosine) copy(of_scores, scores + b * k + first, count);
          });
    });
  }
  sums.finish();
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
