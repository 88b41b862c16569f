// Softmax over a target and negatives: the log-sum-exp of the negatives for each query forward, scores
// computed again backward. The target's part is the caller's: its score is another kernel's.
#include "cpu/candidate_lists.h"
#include "cpu/kernels.h"
#include "cpu/softmax.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

// What is subtracted from the score of each negative, infinity where it is of another part of the
// catalog, and a number by which to know it.
class Negatives {
 public:
  Negatives(const Tables& tables, const int64_t* ids, int64_t count, const float* shifts)
      : tables_(tables), shifts_(count + kWidth), codes_(count + kWidth) {
    for (int64_t i = 0; i < count + kWidth; ++i) {
      const int64_t row = i < count ? row_of_id(ids[i]) : -1;
      codes_[i] = static_cast<int32_t>(row);
      shifts_[i] = row < 0 ? __builtin_inff() : shifts == nullptr ? 0.0f : shifts[row];
    }
  }

  // out[0, padded(count)) of the scores, less what is subtracted; -inf for those that are the target,
  // and after `count`. `first` is the place of the first.
  void shift(const float* scores, int64_t first, int64_t count, int64_t target, float* out) const {
    constexpr int32_t kNone = -2;
    const int64_t row = row_of_id(target);
    const IntVec wanted = IntVec{} + (row < 0 ? kNone : static_cast<int32_t>(row));
    for (int64_t i = 0; i < padded(count); i += kLanes) {
      const Vec shifted = load(scores + i) - load(shifts_ + first + i);
      IntVec codes;
      __builtin_memcpy(&codes, codes_ + first + i, sizeof(codes));
      store(out + i, codes == wanted ? fill(-__builtin_inff()) : shifted);
    }
    for (int64_t i = count; i < padded(count); ++i) out[i] = -__builtin_inff();
  }

 private:
  int64_t row_of_id(int64_t id) const {
    const int64_t row = id - tables_.first_id;
    return row >= 0 && row < tables_.rows ? row : -1;
  }

  const Tables& tables_;
  const Buffer<float> shifts_;
  const Buffer<int32_t> codes_;  // rows: of 2^32 items two would have the same
};

// grad_queries[b] -= weights[b] * the target's row.
void subtract_targets(const Tables& tables, const int64_t* targets, const float* weights,
                      int64_t batch, float* grad_queries, int threads) {
  auto body = [&](int64_t task) {
    const int64_t first = task * kListTile, count = min(kListTile, batch - first);
    Tile tile(tables, kListTile, true);
    tile.gather(targets + first, count);
    for (int64_t i = 0; i < count; ++i) {
      const float weight = weights[first + i];
      if (weight == 0.0f || !tile.has(targets[first + i])) continue;
      float* to = grad_queries + (first + i) * tables.dim;
      for (int64_t d = 0; d < tables.dim; ++d) to[d] -= weight * tile.row(i)[d];
    }
  };
  parallel(ceil_div(batch, kListTile), threads, body);
}

// The backward pass where each list has few queries: a list is a task, and its coefficients are
// written out for those that go through the entries of a row. A gradient whose place is null is not
// computed.
template <class T, class Coefficients>
void few_queries_backward(const Tables& tables, const CandidateLists& lists, const T* operand,
                          float* grad_queries, RowSums* sums, int64_t first_entry, int threads,
                          const Coefficients& coefficients) {
  const int64_t dim = tables.dim, row = row_stride(dim), k = lists.k, rows = lists.rows;
  const int64_t at_once = min(lists.count, max(1, kMaxPartial / max(1, rows * k)));
  const bool written = sums != nullptr, needs_scores = written && tables.cosine;
  const Buffer<float> all_c(written ? at_once * rows * k : 0);
  const Buffer<float> all_scores(needs_scores ? at_once * rows * k : 0);
  for (int64_t first_list = 0; first_list < lists.count; first_list += at_once) {
    const int64_t end_list = min(lists.count, first_list + at_once);
    auto body = [&](int64_t task) {
      const int64_t list = first_list + task;
      Tile<T> tile(tables, kListTile, grad_queries != nullptr);
      const Buffer<float> scores(rows * kListTile);
      const ScoreGradients<T> c(rows, kListTile);
      const Buffer<float> query_sums(rows * row);
      clear(query_sums, rows * row);
      for (int64_t j = 0; j < k; j += kListTile) {
        const int64_t count = min(kListTile, k - j);
        check_interrupt();
        tile.gather(lists.ids + list * k + j, count);
        tile.score(operand + list * rows * steps<T>(dim), rows, scores, kListTile);
        for (int64_t r = 0; r < rows; ++r) {
          coefficients(list * rows + r, list, j, count, scores + r * kListTile, c.row(r));
          const int64_t to = (task * rows + r) * k + j;
          if (written) copy(all_c + to, c.row(r), count);
          if (needs_scores) copy(all_scores + to, scores + r * kListTile, count);
          c.finish(r, rows, count);
        }
        if (grad_queries) c.add_over_items(rows, count, tile.rows(), row, dim, query_sums);
      }
      for (int64_t r = 0; grad_queries && r < rows; ++r) {
        copy(grad_queries + (list * rows + r) * dim, query_sums + r * row, dim);
      }
    };
    parallel(end_list - first_list, threads, body);
    if (!sums) continue;
    sums->add(first_entry + end_list * k, [&](int64_t entry, float* sum) {
      return add_entry(tables, lists, all_c, all_scores, first_list, entry - first_entry, sum);
    });
  }
}

}  // namespace

void sampled_log_sum_exp(const Tables& tables,
                         Array<const float, kLists, kListQueries, kDim> queries,
                         Array<const int64_t, kLists, kListQueries> targets,
                         Array<const int64_t, kLists, kCandidates> negatives,
                         Optional<Array<const float, kItems>> shifts,
                         Array<float, kLists, kListQueries> maxima,
                         Array<float, kLists, kListQueries> logs, Workers workers) {
  const int64_t lists = queries.size[0], rows = queries.size[1], k = negatives.size[1];
  const Negatives known(tables, negatives, lists * k, shifts);
  const int threads = threads_for_lists(lists, rows, k, tables.dim, workers.threads);
  const int64_t parts = min(threads, lists * rows);
  in_precision(workers.precision, queries, lists * rows, tables.dim, [&](const auto* operand) {
    using T = Element<decltype(operand)>;
    auto body = [&](int64_t part) {
      Tile<T> tile(tables, kListTile, false);
      const Buffer<float> scores(kQueriesAtOnce * kListTile);
      const Buffer<Softmax> sums(ceil_div(lists * rows, parts));
      visit_rows(lists, rows, part, parts, [&](int64_t list, int64_t first, int64_t count) {
        for (int64_t b = 0; b < count; ++b) sums[b] = {-__builtin_inff(), 0.0};
        for (int64_t j = 0; j < k; j += kListTile) {
          tile.gather(negatives + list * k + j, min(kListTile, k - j));
          for (int64_t b = 0; b < count; b += kQueriesAtOnce) {
            const int64_t block = min(kQueriesAtOnce, count - b);
            check_interrupt();
            tile.score(operand + (first + b) * steps<T>(tables.dim), block, scores, kListTile);
            for (int64_t r = 0; r < block; ++r) {
              float* row = scores + r * kListTile;
              known.shift(row, list * k + j, tile.size(), targets[first + b + r], row);
              add_row(sums[b + r], row, padded(tile.size()));
            }
          }
        }
        for (int64_t b = 0; b < count; ++b) {
          maxima[first + b] = sums[b].maximum;
          logs[first + b] = log_of(sums[b]);
        }
      });
    };
    parallel(parts, threads, body);
  });
}

void sampled_softmax_backward(
    const Tables& tables, Array<const float, kLists, kListQueries, kDim> queries,
    Array<const int64_t, kCount> ids, Optional<Array<const float, kItems>> shifts,
    Array<const float, kLists, kListQueries> scores,
    Array<const float, kLists, kListQueries> maxima, Array<const float, kLists, kListQueries> logs,
    Array<const float, kLists, kListQueries> weights, const Groups& groups,
    Optional<Array<float, kLists, kListQueries, kDim>> grad_queries,
    Optional<Array<float, kGradRows, kNullDim>> grad_ids, Workers workers) {
  const int64_t count = queries.size[0], rows = queries.size[1], batch = count * rows;
  const int64_t k = count == 0 ? 0 : (ids.size[0] - batch) / count;
  const int64_t* targets = ids;
  const CandidateLists lists{queries, ids + batch, count, rows, k};
  const Negatives known(tables, lists.ids, count * k, shifts);
  const int threads = threads_for_lists(count, 3 * rows, k, tables.dim, workers.threads);

  // d loss / d score of a negative = weight * softmax over the negatives
  const auto coefficients = [&](int64_t b, int64_t list, int64_t first, int64_t number,
                                const float* of_negatives, float* c) {
    const float weight = weights[b];
    if (weight == 0.0f) return clear(c, padded(number));
    known.shift(of_negatives, list * k + first, number, targets[b], c);
    for (int64_t i = 0; i < number; i += kLanes) {
      store(c + i, weight * exp((load(c + i) - maxima[b]) - logs[b]));
    }
  };
  const auto run = [&](RowSums* sums) {
    in_precision(workers.precision, queries, batch, tables.dim, [&](const auto* operand) {
      if (rows < kProductFrom) {
        few_queries_backward(tables, lists, operand, grad_queries, sums, batch, threads,
                             coefficients);
      } else {
        lists_backward(tables, lists, operand, true, grad_queries, sums, batch, threads,
                       coefficients);
      }
    });
    if (grad_queries) subtract_targets(tables, targets, weights, batch, grad_queries, threads);
  };
  if (!grad_ids) return run(nullptr);

  RowSums sums(tables, groups, grad_ids, threads);
  sums.add(batch, [&](int64_t b, float* sum) {
    const float* query = queries + b * tables.dim + tables.null_offset;
    for (int64_t j = 0; j < tables.id.cols; ++j) sum[j] -= weights[b] * query[j];
    return -weights[b] * scores[b];
  });
  run(&sums);
  sums.finish();
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
