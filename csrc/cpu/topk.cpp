// The k best items of each query: a list per query, and a vector comparison that passes over
// what cannot enter it.
#include "cpu/first_pass.h"
#include "cpu/kernels.h"
#include "cpu/top_list.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

// Whether any of kWidth scores could enter a full list. Ids ascend, so a tie with the worst of the
// list comes after it. A comparison with NaN is false: NaN, on either side, goes on to the exact
// check.
inline bool may_enter(const float* scores, float threshold) {
  const IntVec low = load(scores) <= fill(threshold);
  const IntVec high = load(scores + kLanes) <= fill(threshold);
  return lanes_that_hold(low & high) != kAllLanes;
}

// The scores of query b with the items first_id, first_id + 1, ...
void add_row(TopList& list, const float* scores, int64_t first_id, int64_t count, int64_t b,
             const ExcludedIds& exclude) {
  for (int64_t begin = 0; begin < count; begin += kWidth) {
    if (list.is_full && !may_enter(scores + begin, list.worst.score)) continue;
    const int64_t end = min(count, begin + kWidth);
    for (int64_t i = begin; i < end; ++i) {
      if (list.is_full && scores[i] <= list.worst.score) continue;
      const int64_t id = first_id + i;
      if (!excludes(exclude, b, id)) offer(list, scores[i], id);
    }
  }
}

// What the scores of a tile must be above for query b's list to take them in, going by its list; or,
// while that is not full, by how many of the tile are above for certain.
float threshold_of(TopList& list, const FirstPass& pass, const float* approximate, int64_t first_id,
                   int64_t count, int64_t b, const ExcludedIds& exclude) {
  tighten(list);
  if (list.is_full) return list.worst.score;
  int64_t excluded = 0;
  if (exclude.offsets) {
    excluded = first_excluded(exclude, b, first_id + count) - first_excluded(exclude, b, first_id);
  }
  return below_best(pass.lower_bounds(b, approximate), count, list.capacity + excluded);
}

// The items first, first + 1, ... whose approximate scores do not leave them out.
void add_survivors(float above, const FirstPass& pass, const float* approximate, int64_t first,
                   int64_t count, int64_t b, Survivors& survivors) {
  const Vec threshold = fill(above);
  for (int64_t i = 0; i < count; i += kLanes) {
    const IntVec behind = load(approximate + i) + pass.error(b, i) <= threshold;
    uint32_t left = ~lanes_that_hold(behind) & kAllLanes;
    for (; left != 0; left &= left - 1) {
      const int64_t at = i + __builtin_ctz(left);
      if (at < count && !survivors.add(b, first + at)) return;
    }
  }
}

}  // namespace

FirstPassCount topk(const Tables& tables, Array<const float, kBatch, kDim> queries,
                    const ExcludedIds& exclude, const Compressed* compressed,
                    Array<float, kBatch, kPlaces> values, Array<int64_t, kBatch, kPlaces> ids,
                    int threads) {
  const int64_t batch = queries.size[0], k = values.size[1];
  threads = threads_for_scan(tables, batch, threads);
  const int64_t parts = parts_for_threads(tables, threads);
  // Part p's lists are lists[p * batch + b]; none needs to be longer than the part.
  const int64_t capacity = min(k, ceil_div(ceil_div(tables.rows, kGrain), parts) * kGrain);
  const int64_t room = room_of(capacity);
  const Buffer<Scored> pairs(parts * batch * room);
  const Buffer<TopList> lists(parts * batch);
  for (int64_t i = 0; i < parts * batch; ++i) lists[i] = {pairs + i * room, capacity, 0, false, {}};

  const Buffer<FirstPassCount> counts(parts);

  auto body = [&](int64_t part) {
    TopList* own = lists + part * batch;
    const auto visit_tile = [&](int64_t b, const float* scores, int64_t first, int64_t count) {
      add_row(own[b], scores, tables.first_id + first, count, b, exclude);
    };
    counts[part] = {0, 0};
    if (compressed == nullptr) return scan<float>(tables, queries, batch, part, parts, visit_tile);
    scan_in_two_passes(
        tables, *compressed, queries, batch, part, parts, counts[part],
        [&](int64_t b, const FirstPass& pass, const float* approximate, int64_t first,
            int64_t count, Survivors& survivors) {
          const float above =
              threshold_of(own[b], pass, approximate, tables.first_id + first, count, b, exclude);
          add_survivors(above, pass, approximate, first, count, b, survivors);
          return int64_t{0};
        },
        [](int64_t, int64_t, int64_t) {},
        [&](int64_t b, int64_t row, float score) {
          const int64_t id = tables.first_id + row;
          if (!excludes(exclude, b, id)) offer(own[b], score, id);
        },
        visit_tile);
  };
  parallel(parts, threads, body);

  auto merge_lists = [&](int64_t b) {
    merge(lists + b, parts, batch, k, values + b * k, ids + b * k);
  };
  constexpr int64_t kOffering = 32;  // to a list, beside a multiply-add
  parallel(batch, threads_for(batch * parts * capacity * kOffering, threads), merge_lists);
  return total(counts, parts);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
