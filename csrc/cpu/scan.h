// The scores of a part of the catalog, block by block, for an op to look at and forget.
#pragma once

#include "cpu/tile.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kGrain = 64;  // rows: parts of the catalog begin at multiples of it

// The catalog is cut into `parts` ranges; the items of a part are taken in order of id.
inline int64_t part_begin(const Tables& tables, int64_t part, int64_t parts) {
  return least(tables.rows, ceil_div(tables.rows, kGrain) * part / parts * kGrain);
}

// One for each thread: for results that do not depend on where the cuts are.
inline int64_t parts_for_threads(const Tables& tables, int threads) {
  return most(1, least(threads, ceil_div(tables.rows, kGrain)));
}

// As many as the catalog alone asks for: sums over the parts are the same for any number of threads.
inline int64_t parts_for_sums(const Tables& tables) {
  constexpr int64_t kRows = 1024, kMost = 32;
  return least(kMost, ceil_div(tables.rows, kRows));
}

// The scores of kRows queries with the items of a strip, sums[query][half]: bitwise those of a tile,
// for the price of reading the rows. `next` is the strip to ask the memory for.
template <int64_t kRows>
inline void score_strip(const Tables& tables, const Strip& strip, const Strip& next,
                        const float* queries, Vec (*sums)[2]) {
  const int64_t dim = tables.dim;
  Vec factors[2] = {}, total[kRows][2] = {};
  if (tables.cosine) {
    Vec squares[2] = {};
    strip.columns(next, [&](int64_t, auto half, Vec column) {
      squares[half.value] += column * column;
    });
    factors[0] = inverse_norms(squares[0]);
    factors[1] = inverse_norms(squares[1]);
    strip.columns(strip, [&](int64_t d, auto half, Vec column) {
      const Vec unit = column * factors[half.value];
      for (int64_t r = 0; r < kRows; ++r) {
        total[r][half.value] += fill(queries[r * dim + d]) * unit;
      }
    });
  } else {
    strip.columns(next, [&](int64_t d, auto half, Vec column) {
      for (int64_t r = 0; r < kRows; ++r) {
        total[r][half.value] += fill(queries[r * dim + d]) * column;
      }
    });
  }
  for (int64_t r = 0; r < kRows; ++r) {
    sums[r][0] = total[r][0];
    sums[r][1] = total[r][1];
  }
}

// From how many queries on it pays to pack the items before they are scored.
constexpr int64_t kPackedFrom = 5;

// As Tile::score, of fewer than kPackedFrom queries with the items first, first + 1, ...
inline void score_strips(const Tables& tables, int64_t first, int64_t count, const float* queries,
                         int64_t batch, float* scores, int64_t stride) {
  const auto strip_at = [&](int64_t row) {
    const int64_t from = least(row, tables.rows - 1);
    return Strip(tables, from, tables.rows - from);
  };
  for (int64_t i = 0; i < count; i += kWidth) {
    const Strip strip = strip_at(first + i), next = strip_at(first + i + kAhead);
    Vec sums[kPackedFrom - 1][2];
    for (int64_t b = 0; b < batch;) {
      const float* from = queries + b * tables.dim;
      if (batch - b >= 4) {
        score_strip<4>(tables, strip, next, from, sums + b);
        b += 4;
      } else if (batch - b >= 2) {
        score_strip<2>(tables, strip, next, from, sums + b);
        b += 2;
      } else {
        score_strip<1>(tables, strip, next, from, sums + b);
        b += 1;
      }
    }
    for (int64_t b = 0; b < batch; ++b) {
      store(scores + b * stride + i, sums[b][0]);
      store(scores + b * stride + i + kLanes, sums[b][1]);
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = count; i < padded(count); ++i) scores[b * stride + i] = -__builtin_inff();
  }
}

// look(b, scores, first, count) for each query b and block of items of a part: scores[0, count) are
// those with the items first, first + 1, ..., and -inf up to padded(count). For a query, blocks come
// in order of id.
template <class Look>
void scan(const Tables& tables, const float* queries, int64_t batch, int64_t part, int64_t parts,
          const Look& look) {
  const Blocking block = blocking(tables.dim);
  const bool packed = batch >= kPackedFrom;
  Tile tile(tables, packed ? block.items : 0, false);
  const Buffer<float> scores(least(batch, block.queries) * block.items);
  const int64_t end = part_begin(tables, part + 1, parts);
  for (int64_t first = part_begin(tables, part, parts); first < end; first += block.items) {
    const int64_t items = least(block.items, end - first);
    if (packed) tile.read(first, items);
    for (int64_t b = 0; b < batch; b += block.queries) {
      const int64_t count = least(block.queries, batch - b);
      if (packed) {
        tile.score(queries + b * tables.dim, count, scores, block.items);
      } else {
        score_strips(tables, first, items, queries, count, scores, block.items);
      }
      for (int64_t r = 0; r < count; ++r) look(b + r, scores + r * block.items, first, items);
    }
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
