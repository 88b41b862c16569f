// Computes the scores of a part of the catalog in tiles, and passes each to a visitor.
#pragma once

#include "cpu/strips.h"
#include "cpu/tile.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kGrain = 64;  // rows: parts of the catalog begin at multiples of it

// The catalog is divided into `parts` ranges, for threads; within a part, items are in order of id.
inline int64_t part_begin(const Tables& tables, int64_t part, int64_t parts) {
  return min(tables.rows, ceil_div(tables.rows, kGrain) * part / parts * kGrain);
}

// Reading a row takes as long as multiplying it with this many queries.
constexpr int64_t kReading = 4;
inline int threads_for_scan(const Tables& tables, int64_t batch, int threads) {
  return threads_for(tables.rows * tables.dim * (kReading + batch), threads);
}

// One for each thread: for results that do not depend on the division.
inline int64_t parts_for_threads(const Tables& tables, int threads) {
  return max(1, min(threads, ceil_div(tables.rows, kGrain)));
}

// Depends on the catalog only, so that sums over parts do not depend on the number of threads.
inline int64_t parts_for_sums(const Tables& tables) {
  constexpr int64_t kRows = 1024, kMaxParts = 32;
  return min(kMaxParts, ceil_div(tables.rows, kRows));
}

// Of the tiles that are read.
template <class T>
inline Blocking blocking_of(int64_t dim) {
  return blocking(dim, kIsPair<T> ? sizeof(Pair) / 2 : sizeof(float));
}

// visit_tile(b, scores, first, count) for each query b and tile of items of a part: scores[0,
// count) are those with the items first, first + 1, ..., and -inf up to padded(count). For a query,
// tiles are in order of id. `queries` as in_precision() gives them.
template <class T, class VisitTile>
void scan(const Tables& tables, const T* queries, int64_t batch, int64_t part, int64_t parts,
          const VisitTile& visit_tile) {
  const Blocking block = blocking_of<T>(tables.dim);
  const bool packed = kIsPair<T> || batch >= kPackedFrom;
  Tile<T> tile(tables, packed ? block.items : 0, false);
  const Buffer<float> scores(min(batch, block.queries) * block.items);
  const int64_t end = part_begin(tables, part + 1, parts);
  for (int64_t first = part_begin(tables, part, parts); first < end; first += block.items) {
    const int64_t items = min(block.items, end - first);
    if (packed) tile.read(first, items);
    for (int64_t b = 0; b < batch; b += block.queries) {
      const int64_t count = min(block.queries, batch - b);
      check_interrupt();
      if (packed) {
        tile.score(queries + b * steps<T>(tables.dim), count, scores, block.items);
      } else if constexpr (!kIsPair<T>) {
        score_strips(tables, first, items, queries, count, scores, block.items);
      }
      for (int64_t r = 0; r < count; ++r) visit_tile(b + r, scores + r * block.items, first, items);
    }
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
