// How many items are ahead of each query's target: counted, not sorted.
#include "cpu/first_pass.h"
#include "cpu/kernels.h"

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

// Lanes of the next `count` items.
inline uint32_t items_of(int64_t count) {
  return count >= kLanes ? kAllLanes : (uint32_t{1} << count) - 1;
}

// Whether approximate scores leave no doubt, lane by lane. With NaN they do.
struct Verdict {
  uint32_t ahead, behind;
  Verdict(const FirstPass& pass, const float* approximate, int64_t b, int64_t i, Vec target) {
    const Vec score = load(approximate + i), error = pass.error(b, i);
    ahead = lanes_that_hold(score - error > target);
    behind = lanes_that_hold(score + error < target);
  }
};

}  // namespace

FirstPassCount target_ranks(const Tables& tables, Array<const float, kBatch, kDim> queries,
                            Array<const int64_t, kBatch> targets, Array<const float, kBatch> scores,
                            const ExcludedIds& exclude, const Compressed* compressed,
                            Array<int64_t, kBatch> out, int threads) {
  const int64_t batch = queries.size[0];
  threads = threads_for_scan(tables, batch, threads);
  const int64_t parts = parts_for_threads(tables, threads);
  const Buffer<int64_t> counts(parts * batch);
  const Buffer<FirstPassCount> counts_of_blocks(parts);
  const Buffer<int64_t> next_excluded(exclude.offsets ? parts * batch : 0);

  auto body = [&](int64_t part) {
    int64_t* ahead = counts + part * batch;
    int64_t* next = next_excluded + part * batch;
    const int64_t begin = part_begin(tables, part, parts);
    counts_of_blocks[part] = {0, 0};
    for (int64_t b = 0; b < batch; ++b) ahead[b] = 0;
    for (int64_t b = 0; exclude.offsets && b < batch; ++b) {
      next[b] = first_excluded(exclude, b, tables.first_id + begin);
    }
    const auto visit_tile = [&](int64_t b, const float* row, int64_t first, int64_t count) {
      const int64_t first_id = tables.first_id + first;
      // The target itself stands at `place`, if in this block, and is not ahead of itself.
      const int64_t place = max(0, min(targets[b] - first_id, count));
      ahead[b] += count_ahead(row, 0, place, scores[b], true);
      ahead[b] += count_ahead(row, place, count, scores[b], false);
      if (!exclude.offsets) return;
      for (; next[b] < exclude.offsets[b + 1]; ++next[b]) {
        const int64_t i = exclude.ids[next[b]] - first_id;
        if (i >= count) break;
        if (i == targets[b] - first_id) continue;
        ahead[b] -= count_ahead(row, i, i + 1, scores[b], i < place);
      }
    };
    if (compressed == nullptr) return scan<float>(tables, queries, batch, part, parts, visit_tile);
    scan_in_two_passes(
        tables, *compressed, queries, batch, part, parts, counts_of_blocks[part],
        [&](int64_t b, const FirstPass& pass, const float* approximate, int64_t first,
            int64_t count, Survivors& survivors) {
          const Vec target = fill(scores[b]);
          int64_t found = 0;
          for (int64_t i = 0; i < count; i += kLanes) {
            const Verdict verdict(pass, approximate, b, i, target);
            found += __builtin_popcount(verdict.ahead & items_of(count - i));
            uint32_t left = ~(verdict.ahead | verdict.behind) & items_of(count - i);
            for (; left != 0; left &= left - 1) {
              if (!survivors.add(b, first + i + __builtin_ctz(left))) return found;
            }
          }
          if (!exclude.offsets) return found;
          for (int64_t e = next[b]; e < exclude.offsets[b + 1]; ++e) {
            const int64_t i = exclude.ids[e] - tables.first_id - first;
            if (i >= count) break;
            const int64_t lane = i % kLanes;
            const Verdict verdict(pass, approximate, b, i - lane, target);
            found -= verdict.ahead >> lane & 1;
          }
          return found;
        },
        [&](int64_t b, int64_t found, int64_t end) {
          ahead[b] += found;
          if (!exclude.offsets) return;
          while (next[b] < exclude.offsets[b + 1] && exclude.ids[next[b]] - tables.first_id < end) {
            ++next[b];
          }
        },
        [&](int64_t b, int64_t row, float score) {
          const int64_t id = tables.first_id + row;
          if (id == targets[b] || excludes(exclude, b, id)) return;
          ahead[b] += count_ahead(&score, 0, 1, scores[b], id < targets[b]);
        },
        visit_tile);
  };
  parallel(parts, threads, body);

  for (int64_t b = 0; b < batch; ++b) {
    out[b] = 0;
    for (int64_t part = 0; part < parts; ++part) out[b] += counts[part * batch + b];
  }
  return total(counts_of_blocks, parts);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
