// How many items are ahead of each query's target: counted, not sorted.
#include "cpu/kernels.h"
#include "cpu/scan.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

// Items among scores[begin, end) that are ahead of a target with the score `target`: score
// downward, then id upward, NaN last. `before`: whether these items have lower ids than the target.
inline int64_t count_ahead(const float* scores, int64_t begin, int64_t end, float target,
                           bool before) {
  int count = 0;
  if (target != target) {
    for (int64_t i = begin; i < end; ++i) count += before || scores[i] == scores[i];
  } else if (before) {
    for (int64_t i = begin; i < end; ++i) count += scores[i] >= target;
  } else {
    for (int64_t i = begin; i < end; ++i) count += scores[i] > target;
  }
  return count;
}

}  // namespace

void target_ranks(const Tables& tables, const float* queries, int64_t batch,
                  const int64_t* targets, const float* scores, const ExcludedIds& exclude,
                  int64_t* out, int threads) {
  const int64_t parts = parts_for_threads(tables, threads);
  const Buffer<int64_t> counts(parts * batch);
  const Buffer<int64_t> next_excluded(exclude.offsets ? parts * batch : 0);

  auto body = [&](int64_t part) {
    int64_t* ahead = counts + part * batch;
    int64_t* next = next_excluded + part * batch;
    const int64_t begin = part_begin(tables, part, parts);
    for (int64_t b = 0; b < batch; ++b) ahead[b] = 0;
    for (int64_t b = 0; exclude.offsets && b < batch; ++b) {
      next[b] = first_excluded(exclude, b, tables.first_id + begin);
    }
    scan(tables, queries, batch, part, parts,
         [&](int64_t b, const float* row, int64_t first, int64_t count) {
           const int64_t first_id = tables.first_id + first;
           // The target itself stands at `place`, if in this block, and is not ahead of itself.
           const int64_t place = most(0, least(targets[b] - first_id, count));
           ahead[b] += count_ahead(row, 0, place, scores[b], true);
           ahead[b] += count_ahead(row, place, count, scores[b], false);
           if (!exclude.offsets) return;
           for (; next[b] < exclude.offsets[b + 1]; ++next[b]) {
             const int64_t i = exclude.ids[next[b]] - first_id;
             if (i >= count) break;
             if (i == targets[b] - first_id) continue;
             ahead[b] -= count_ahead(row, i, i + 1, scores[b], i < place);
           }
         });
  };
  parallel(parts, threads, body);

  for (int64_t b = 0; b < batch; ++b) {
    out[b] = 0;
    for (int64_t part = 0; part < parts; ++part) out[b] += counts[part * batch + b];
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
