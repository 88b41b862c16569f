// The k best items of each query: a short list per query, and a vector comparison that passes over
// what cannot enter it.
#include "cpu/kernels.h"
#include "cpu/scan.h"
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

// The scores of query b with the items first_id, first_id + 1, ...
void add_row(TopList& list, const float* scores, int64_t first_id, int64_t count, int64_t b,
             const ExcludedIds& exclude) {
  for (int64_t begin = 0; begin < count; begin += kWidth) {
    const bool full = list.size == list.capacity;
    if (full && !may_enter(scores + begin, list.scores[0])) continue;
    const int64_t end = least(count, begin + kWidth);
    for (int64_t i = begin; i < end; ++i) {
      if (list.size == list.capacity && scores[i] <= list.scores[0]) continue;
      const int64_t id = first_id + i;
      if (!excludes(exclude, b, id)) offer(list, scores[i], id);
    }
  }
}

}  // namespace

void topk(const Tables& tables, const float* queries, int64_t batch, int64_t k,
          const ExcludedIds& exclude, float* values, int64_t* ids, int threads) {
  const int64_t parts = parts_for_threads(tables, threads);
  // Part p's lists are lists[p * batch + b]; none needs to be longer than the part.
  const int64_t capacity = least(k, ceil_div(ceil_div(tables.rows, kGrain), parts) * kGrain);
  const Buffer<float> list_scores(parts * batch * capacity);
  const Buffer<int64_t> list_ids(parts * batch * capacity);
  const Buffer<TopList> lists(parts * batch);
  for (int64_t i = 0; i < parts * batch; ++i) {
    lists[i] = {list_scores + i * capacity, list_ids + i * capacity, capacity, 0};
  }

  auto body = [&](int64_t part) {
    scan(tables, queries, batch, part, parts,
         [&](int64_t b, const float* scores, int64_t first, int64_t count) {
           add_row(lists[part * batch + b], scores, tables.first_id + first, count, b, exclude);
         });
  };
  parallel(parts, threads, body);

  auto merge_lists = [&](int64_t b) {
    merge(lists + b, parts, batch, k, values + b * k, ids + b * k);
  };
  parallel(batch, threads, merge_lists);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
