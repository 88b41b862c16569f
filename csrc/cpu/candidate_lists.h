// Lists of candidates, each for as many queries: what ops that score them share.
//
// The gradient of a list's ID embeddings is a product of its coefficients, one for each score, with
// the queries' null columns. Where a list has many queries it is computed as such, and each result,
// that of one entry of the list, is then added to the row of its item: so a row is gathered once for
// all queries. Where it has few, the entries of a row are gone through one by one.
#pragma once

#include "cpu/catalog_backward.h"
#include "cpu/grouping.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

struct CandidateLists {
  const float* queries;  // (count, rows, dim)
  const int64_t* ids;    // (count, k)
  int64_t count, rows, k;
};

constexpr int64_t kListTile = 128, kQueriesAtOnce = 48;  // candidates and queries at a time

// From how many queries of a list on products pay; below, they are too short.
constexpr int64_t kProductFrom = 24;

// To gather a candidate takes as long as to multiply it with so many queries.
constexpr int64_t kGathering = 12;
inline int threads_for_lists(int64_t lists, int64_t queries, int64_t k, int64_t dim, int threads) {
  return threads_for(lists * (queries + kGathering) * k * dim, threads);
}

// visit(list, first, count) for the stretches of queries, each of one list, that make up a part.
template <class Visit>
void visit_rows(int64_t lists, int64_t rows, int64_t part, int64_t parts, const Visit& visit) {
  const int64_t end = lists * rows * (part + 1) / parts;
  for (int64_t first = lists * rows * part / parts; first < end;) {
    const int64_t list = first / rows;
    const int64_t count = min(end, (list + 1) * rows) - first;
    visit(list, first, count);
    first += count;
  }
}

// The gradient of ID embeddings, from that of the entries of each row, added up in their order.
class RowSums {
 public:
  RowSums(const Tables& tables, const Groups& groups, float* out, int threads)
      : tables_(tables),
        groups_(groups),
        out_(out),
        threads_(threads),
        next_(groups.count),
        along_(tables.cosine ? groups.count : 0) {
    for (int64_t g = 0; g < groups.count; ++g) {
      next_[g] = groups.offsets[g];
      clear(row(g), tables.id.cols);
    }
    if (tables.cosine) clear(along_, groups.count);
  }

  // Adds up the entries before `end` that have not been yet. add_entry(entry, sum) adds to the null
  // columns of the fused row, and returns what is added to the sum of gradient times score.
  template <class AddEntry>
  void add(int64_t end, const AddEntry& add_entry) {
    auto body = [&](int64_t task) {
      const int64_t last = min(groups_.count, (task + 1) * kListTile);
      for (int64_t g = task * kListTile; g < last; ++g) {
        float along = 0.0f;
        int64_t e = next_[g];
        if (tables_.cosine) along = along_[g];
        for (; e < groups_.offsets[g + 1] && groups_.entries[e] < end; ++e) {
          along += add_entry(groups_.entries[e], row(g));
        }
        next_[g] = e;
        if (tables_.cosine) along_[g] = along;
      }
    };
    parallel(ceil_div(groups_.count, kListTile), threads_, body);
  }

  // From the gradient of a row divided by its norm to that of the row.
  void finish() {
    if (!tables_.cosine) return;
    auto body = [&](int64_t task) {
      const int64_t first = task * kListTile, count = min(kListTile, groups_.count - first);
      Tile tile(tables_, kListTile, true);
      tile.gather(groups_.ids + first, count);
      for (int64_t g = first; g < first + count; ++g) {
        write_id_gradient(tables_, tile, g - first, row(g), along_[g], row(g));
      }
    };
    parallel(ceil_div(groups_.count, kListTile), threads_, body);
  }

 private:
  float* row(int64_t g) const { return out_ + row_of(groups_, g) * tables_.id.cols; }

  const Tables& tables_;
  const Groups& groups_;
  float* const out_;
  const int threads_;
  const Buffer<int64_t> next_;  // entry of each group
  const Buffer<float> along_;
};

// Adds to `sum` the gradient of one entry, a candidate of a list, query by query; returns the sum of
// gradient times score, with cosine. `c` and `scores` (lists, rows, k) begin with the list `first`.
inline float add_entry(const Tables& tables, const CandidateLists& lists, const float* c,
                       const float* scores, int64_t first, int64_t entry, float* sum) {
  const int64_t list = entry / lists.k, cols = tables.id.cols;
  const int64_t from = (list - first) * lists.rows * lists.k + entry % lists.k;
  const float* query = lists.queries + list * lists.rows * tables.dim + tables.null_offset;
  float along = 0.0f;
  for (int64_t b = 0; b < lists.rows; ++b, query += tables.dim) {
    const float weight = c[from + b * lists.k];
    for (int64_t j = 0; j < cols; ++j) sum[j] += weight * query[j];
    if (tables.cosine) along += weight * scores[from + b * lists.k];
  }
  return along;
}

// The backward pass by products, of queries as in_precision() gives them; a gradient whose place is null is not computed.
//
// coefficients(b, list, first, count, scores, c) writes c[0, count) for query b from its scores with
// the candidates first, first + 1, ... of the list. Without `scored` the scores are not computed, and
// with cosine `coefficients` writes these as well. Candidates of other parts of the catalog are to
// have a coefficient of 0 where grad_queries is computed. Their first entry is `first_entry`.
template <class T, class Coefficients>
void lists_backward(const Tables& tables, const CandidateLists& lists, const T* operand,
                    bool scored, float* grad_queries, RowSums* sums, int64_t first_entry,
                    int threads, const Coefficients& coefficients) {
  constexpr int64_t kRowsOfPart = 512, kMaxParts = 32;
  const int64_t dim = tables.dim, row = row_stride(dim), k = lists.k, rows = lists.rows;
  const int64_t cols = tables.id.cols, null_row = row_stride(cols);
  // Of one list a task has a part of the queries, and sums for all candidates; or, where the queries
  // have no sums of their own, a part of the candidates. Of how many there are threads know nothing.
  const int64_t fitting = max(1, kMaxPartial / max(1, k * null_row));
  const int64_t query_parts =
      grad_queries == nullptr ? 1 : max(1, min(min(kMaxParts, fitting), rows / kRowsOfPart));
  const int64_t candidate_parts = grad_queries == nullptr ? ceil_div(k, kListTile) : 1;
  const int64_t parts = query_parts * candidate_parts;
  const int64_t at_once = min(lists.count, max(1, fitting / query_parts));
  const Buffer<float> entries(sums ? at_once * query_parts * k * null_row : 0);
  const Buffer<float> along(sums && tables.cosine ? at_once * query_parts * k : 0);
  const bool gathered = scored || grad_queries != nullptr;

  for (int64_t first_list = 0; first_list < lists.count; first_list += at_once) {
    const int64_t end_list = min(lists.count, first_list + at_once);
    auto body = [&](int64_t task) {
      const int64_t list = first_list + task / parts, part = task % parts;
      const int64_t of_queries = part % query_parts, of_candidates = part / query_parts;
      const int64_t begin = list * rows + rows * of_queries / query_parts;
      const int64_t end = list * rows + rows * (of_queries + 1) / query_parts;
      const int64_t begin_k = candidate_parts > 1 ? of_candidates * kListTile : 0;
      const int64_t end_k = candidate_parts > 1 ? min(k, begin_k + kListTile) : k;
      const int64_t place = ((list - first_list) * query_parts + of_queries) * k;

      Tile<T> tile(tables, gathered ? kListTile : 0, grad_queries != nullptr);
      const Buffer<float> scores(kQueriesAtOnce * kListTile);
      const ScoreGradients<T> c(kQueriesAtOnce, kListTile);
      const Buffer<T> null_columns(steps<T>(kQueriesAtOnce) * null_row);
      const Buffer<float> query_sums(grad_queries ? (end - begin) * row : 0);
      if (grad_queries) clear(query_sums, (end - begin) * row);
      if (sums) clear(entries + (place + begin_k) * null_row, (end_k - begin_k) * null_row);
      if (sums && tables.cosine) clear(along + place + begin_k, end_k - begin_k);

      for (int64_t j = begin_k; j < end_k; j += kListTile) {
        const int64_t count = min(kListTile, end_k - j);
        if (gathered) tile.gather(lists.ids + list * k + j, count);
        for (int64_t b = begin; b < end; b += kQueriesAtOnce) {
          const int64_t block = min(kQueriesAtOnce, end - b);
          check_interrupt();
          if (scored) tile.score(operand + b * steps<T>(dim), block, scores, kListTile);
          for (int64_t r = 0; r < block; ++r) {
            float* const row_c = c.row(r);
            float* const row_scores = scores + r * kListTile;
            coefficients(b + r, list, j, count, row_scores, row_c);
            for (int64_t i = 0; sums && tables.cosine && i < count; ++i) {
              along[place + j + i] += row_c[i] * row_scores[i];
            }
            c.finish(r, block, count);
          }
          if (grad_queries) {
            c.add_over_items(block, count, tile.rows(), row, dim, query_sums + (b - begin) * row);
          }
          if (!sums) continue;
          copy_null_columns<T>(tables, lists.queries + b * dim, block, null_columns);
          c.add_over_queries(block, count, null_columns, null_row, cols,
                             entries + (place + j) * null_row);
        }
      }
      for (int64_t b = begin; grad_queries && b < end; ++b) {
        copy(grad_queries + b * dim, query_sums + (b - begin) * row, dim);
      }
    };
    parallel((end_list - first_list) * parts, threads, body);

    if (!sums) continue;
    sums->add(first_entry + end_list * k, [&](int64_t entry, float* sum) {
      const int64_t of_first_list = entry - first_entry - first_list * k;
      const int64_t list = of_first_list / k, candidate = of_first_list % k;
      float total = 0.0f;
      for (int64_t part = 0; part < query_parts; ++part) {
        const int64_t at = (list * query_parts + part) * k + candidate;
        const float* from = entries + at * null_row;
        for (int64_t d = 0; d < cols; ++d) sum[d] += from[d];
        if (tables.cosine) total += along[at];
      }
      return total;
    });
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
