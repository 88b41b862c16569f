// Scores of given candidates, shared by all rows (queries) of a group: the negatives of a batch, of
// a sequence or of a position. Rows are shared out among the threads; each row is one thread's.
#include "cpu/catalog_backward.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

constexpr int64_t kTile = 128, kQueryRows = 48;

// To gather a candidate takes as long as to multiply it with so many queries.
constexpr int64_t kGathering = 12;
int threads_for_lists(int64_t lists, int64_t queries, int64_t k, int64_t dim, int threads) {
  return threads_for(lists * (queries + kGathering) * k * dim, threads);
}

// visit(group, first, count) for the stretches of rows, each within one group, that make up a part.
template <class Visit>
void visit_rows(int64_t groups, int64_t rows, int64_t part, int64_t parts, const Visit& visit) {
  const int64_t end = groups * rows * (part + 1) / parts;
  for (int64_t first = groups * rows * part / parts; first < end;) {
    const int64_t group = first / rows;
    const int64_t count = min(end, (group + 1) * rows) - first;
    visit(group, first, count);
    first += count;
  }
}

}  // namespace

void score_candidates(const Tables& tables, Array<const float, kLists, kListQueries, kDim> queries,
                      Array<const int64_t, kLists, kCandidates> candidates,
                      Array<float, kLists, kListQueries, kCandidates> out, int threads) {
  const int64_t groups = out.size[0], rows = out.size[1], k = out.size[2];
  threads = threads_for_lists(groups, rows, k, tables.dim, threads);
  const int64_t parts = min(threads, groups * rows);
  auto body = [&](int64_t part) {
    Tile tile(tables, kTile, false);
    const Buffer<float> scores(kQueryRows * kTile);
    visit_rows(groups, rows, part, parts, [&](int64_t group, int64_t first, int64_t count) {
      for (int64_t j = 0; j < k; j += kTile) {
        const int64_t* ids = candidates + group * k + j;
        tile.gather(ids, min(kTile, k - j));
        for (int64_t b = first; b < first + count; b += kQueryRows) {
          const int64_t block = min(kQueryRows, first + count - b);
          check_interrupt();
          tile.score(queries + b * tables.dim, block, scores, kTile);
          for (int64_t r = 0; r < block; ++r) {
            float* to = out + (b + r) * k + j;
            for (int64_t i = 0; i < tile.size(); ++i) {
              to[i] = tile.has(ids[i]) ? scores[r * kTile + i] : -__builtin_inff();
            }
          }
        }
      }
    });
  };
  parallel(parts, threads, body);
}

void score_candidates_grad_queries(const Tables& tables,
                                   Array<const int64_t, kLists, kCandidates> candidates,
                                   Array<const float, kLists, kListQueries, kCandidates> grad,
                                   Array<float, kLists, kListQueries, kDim> grad_queries,
                                   int threads) {
  const int64_t groups = grad.size[0], rows = grad.size[1], k = grad.size[2];
  const int64_t dim = tables.dim, row = row_stride(dim);
  threads = threads_for_lists(groups, rows, k, dim, threads);
  const int64_t parts = min(threads, groups * rows);
  auto body = [&](int64_t part) {
    Tile tile(tables, kTile, true);
    const Buffer<float> c(kQueryRows * kTile);
    const Buffer<float> sums(ceil_div(groups * rows, parts) * row);
    visit_rows(groups, rows, part, parts, [&](int64_t group, int64_t first, int64_t count) {
      clear(sums, count * row);
      for (int64_t j = 0; j < k; j += kTile) {
        const int64_t* ids = candidates + group * k + j;
        tile.gather(ids, min(kTile, k - j));
        for (int64_t b = 0; b < count; b += kQueryRows) {
          const int64_t block = min(kQueryRows, count - b);
          check_interrupt();
          for (int64_t r = 0; r < block; ++r) {
            const float* from = grad + (first + b + r) * k + j;
            for (int64_t i = 0; i < tile.size(); ++i) {
              c[r * kTile + i] = tile.has(ids[i]) ? from[i] : 0.0f;
            }
          }
          for (int64_t d = 0; d < dim; d += kWidth) {
            product(c, kTile, 1, block, tile.size(), tile.row(0) + d, row, sums + b * row + d, row,
                    true);
          }
        }
      }
      for (int64_t b = 0; b < count; ++b) {
        copy(grad_queries + (first + b) * dim, sums + b * row, dim);
      }
    });
  };
  parallel(parts, threads, body);
}

void score_candidates_grad_ids(const Tables& tables,
                               Array<const float, kLists, kListQueries, kDim> queries,
                               Array<const int64_t, kLists, kCandidates>,  // the groups have them
                               Array<const float, kLists, kListQueries, kCandidates> scores,
                               Array<const float, kLists, kListQueries, kCandidates> grad,
                               const Groups& groups, Array<float, kGradRows, kNullDim> out,
                               int threads) {
  const int64_t rows = grad.size[1], k = grad.size[2], cols = tables.id.cols;
  auto body = [&](int64_t task) {
    const int64_t first = task * kTile, count = min(kTile, groups.count - first);
    Tile tile(tables, kTile, tables.cosine);
    const Buffer<float> sum(cols);
    if (tables.cosine) tile.gather(groups.ids + first, count);
    for (int64_t g = first; g < first + count; ++g) {
      float along = 0.0f;
      clear(sum, cols);
      for (int64_t e = groups.offsets[g]; e < groups.offsets[g + 1]; ++e) {
        const int64_t group = groups.entries[e] / k, candidate = groups.entries[e] % k;
        for (int64_t b = group * rows; b < (group + 1) * rows; ++b) {
          const float c = grad[b * k + candidate];
          const float* query = queries + b * tables.dim + tables.null_offset;
          for (int64_t j = 0; j < cols; ++j) sum[j] += c * query[j];
          along += c * scores[b * k + candidate];
        }
      }
      float* to = out + row_of(groups, g) * cols;
      write_id_gradient(tables, tile, g - first, sum, along, to);
    }
  };
  threads = threads_for_lists(grad.size[0], rows, k, cols, threads);
  parallel(ceil_div(groups.count, kTile), threads, body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
