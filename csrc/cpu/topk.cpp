// The k best items of each query: a short list per query, and a vector comparison that passes over
// what cannot enter it.
#include "cpu/kernels.h"
#include "cpu/tile.h"
#include "cpu/top_list.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

// Whether any of kWidth scores could enter a full list. Ids ascend, so a tie with the worst of the
// list comes after it. A comparison with NaN is false: NaN, on either side, goes on to the exact
// check.
inline bool may_enter(const float* scores, float threshold) {
  int candidates = 0;
  for (int64_t i = 0; i < kWidth; ++i) candidates += !(scores[i] <= threshold);
  return candidates != 0;
}

void add_row(TopList& list, const float* scores, const Tile& tile, const Tables& tables, int64_t b,
             const ExcludedIds& exclude) {
  for (int64_t begin = 0; begin < tile.size(); begin += kWidth) {
    const bool full = list.size == list.capacity;
    if (full && !may_enter(scores + begin, list.scores[0])) continue;
    const int64_t end = least(tile.size(), begin + kWidth);
    for (int64_t i = begin; i < end; ++i) {
      if (list.size == list.capacity && scores[i] <= list.scores[0]) continue;
      const int64_t id = tables.first_id + tile.first() + i;
      if (!excludes(exclude, b, id)) offer(list, scores[i], id);
    }
  }
}

}  // namespace

void topk(const Tables& tables, const float* queries, int64_t batch, int64_t k,
          const ExcludedIds& exclude, float* values, int64_t* ids, int threads) {
  const int64_t parts = catalog_parts(tables, threads);
  // Part p's lists are lists[p * batch + b]; none needs to be longer than the part.
  const int64_t capacity = least(k, ceil_div(ceil_div(tables.rows, kTile), parts) * kTile);
  const Buffer<float> list_scores(parts * batch * capacity);
  const Buffer<int64_t> list_ids(parts * batch * capacity);
  const Buffer<TopList> lists(parts * batch);
  for (int64_t i = 0; i < parts * batch; ++i) {
    lists[i] = {list_scores + i * capacity, list_ids + i * capacity, capacity, 0};
  }

  auto body = [&](int64_t part) {
    Tile tile(tables);
    const Buffer<float> scores(kQueryRows * kTile);
    const int64_t end = part_begin(tables, part + 1, parts);
    for (int64_t first = part_begin(tables, part, parts); first < end; first += kTile) {
      tile.read(first, least(kTile, end - first));
      for (int64_t b = 0; b < batch; b += kQueryRows) {
        const int64_t count = least(kQueryRows, batch - b);
        tile.score(queries + b * tables.dim, count, scores);
        for (int64_t r = 0; r < count; ++r) {
          add_row(lists[part * batch + b + r], scores + r * kTile, tile, tables, b + r, exclude);
        }
      }
    }
  };
  parallel(parts, threads, body);

  auto merge_lists = [&](int64_t b) {
    merge(lists + b, parts, batch, k, values + b * k, ids + b * k);
  };
  parallel(batch, threads, merge_lists);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
