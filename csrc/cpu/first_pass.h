// Exact results by way of cheap scores: what a compressed copy of the items says, give or take a
// bound, decides most items; the rest are scored in float32.
//
// Let t = t' + r be a fused row, its approximation and the residual, and q = q' + s a query, rounded
// to integers. Then |q.t - q'.t'| <= |q| |r| + |s| |t'|, and all roundings of float32, in the exact
// score as in this one, are below (dim + 16) 2^-23 |q| (|t'| + |r|) together, and below kUnderflow
// where numbers are too small for their relative precision.
#pragma once

#include "compressed.h"
#include "cpu/integer_product.h"
#include "cpu/scan.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr float kUnderflow = 1e-34f;

inline FirstPassCount total(const FirstPassCount* counts, int64_t parts) {
  FirstPassCount sum = {0, 0};
  for (int64_t part = 0; part < parts; ++part) {
    sum.blocks += counts[part].blocks;
    sum.redone += counts[part].redone;
  }
  return sum;
}

class FirstPass {
 public:
  FirstPass(const Tables& tables, const Compressed& compressed, const float* queries, int64_t batch,
            int64_t max_items);

  // Makes ready for the items first, first + 1, ...; first is a multiple of kGroup.
  void read(int64_t first, int64_t count);

  // approximate[r * stride + i]: about the scores of queries b, b + 1, ... with the items read.
  void score(int64_t b, int64_t count, float* approximate, int64_t stride) const;

  // How far approximate scores of query b with kLanes items from the i-th on may be off.
  Vec error(int64_t b, int64_t i) const {
    return norms_[b] * load(residuals_ + i) + (slacks_[b] * load(sizes_ + i) + kUnderflow);
  }

  // The least that the scores of query b with the items read can be; the next call overwrites it.
  float* lower_bounds(int64_t b, const float* approximate) const {
    for (int64_t i = 0; i < count_; i += kLanes) {
      store(lower_ + i, load(approximate + i) - error(b, i));
    }
    return lower_;
  }

 private:
  // The queries' columns of one table, in whole numbers.
  struct Side {
    Side(const Table& table, int64_t batch, int64_t bytes);
    void set(int64_t b, int64_t d, int16_t number) const;
    const int64_t cols, bytes;     // columns, rounded up as those of codes; bytes of a number
    const Buffer<int8_t> numbers;  // (batch, cols, bytes), as product_ takes them
    const Buffer<int32_t> sums;    // (batch,)
  };
  void multiply(const Side& side, const CompressedTable& table, int64_t b, int64_t count,
                float* approximate, int64_t stride, bool add) const;

  const Tables& tables_;
  const Compressed& compressed_;
  const IntegerProduct& product_;
  const Side semantic_, id_;
  const Buffer<float> units_, norms_, slacks_;  // (batch,)
  const Buffer<float> residuals_, sizes_;       // of the items read: |r| and |t'| + |r|
  const Buffer<float> lower_;                   // bounds of one query
  int64_t first_ = 0, count_ = 0;
};

// Items of a tile that the first pass left undecided.
struct Survivors {
  int64_t* queries;
  int64_t* rows;
  int64_t count;
  int64_t capacity;
  bool add(int64_t b, int64_t row) {
    if (count == capacity) return false;
    queries[count] = b;
    rows[count++] = row;
    return true;
  }
};

// visit_row(b, row, score) for each survivor, with its float32 score.
template <class VisitRow>
void rescore(const Tables& tables, const float* queries, const Survivors& survivors, float* scratch,
             const VisitRow& visit_row) {
  const auto pairs_from = [&](int64_t i) { return min(kWidth, survivors.count - i); };
  for (int64_t i = 0; i < survivors.count; i += kWidth) {
    const int64_t next = i + kWidth;
    if (next < survivors.count) {
      Strip::of_rows(tables, survivors.rows + next, pairs_from(next)).prefetch();
    }
    float exact[kWidth];
    score_pairs(tables, queries, survivors.queries + i, survivors.rows + i, pairs_from(i), scratch,
                exact);
    for (int64_t j = 0; j < pairs_from(i); ++j) {
      visit_row(survivors.queries[i + j], survivors.rows[i + j], exact[j]);
    }
  }
}

// scan() with a first pass. For each query and tile of items
//
//   decide(b, pass, approximate, first, count, survivors)
//
// reads approximate scores, adds undecided rows to `survivors` until that is full, and returns a
// result for the others, which is then passed to settle(b, found, first + count); visit_row(b, row,
// score) takes each survivor's float32 score. If too many survive, the results of the tile are
// discarded, and visit_tile(b, scores, first, count) takes its float32 scores.
template <class Decide, class Settle, class VisitRow, class VisitTile>
void scan_in_two_passes(const Tables& tables, const Compressed& compressed, const float* queries,
                        int64_t batch, int64_t part, int64_t parts, FirstPassCount& counted,
                        const Decide& decide, const Settle& settle, const VisitRow& visit_row,
                        const VisitTile& visit_tile) {
  // A survivor costs about as much as this many multiplications of a tile's row.
  constexpr int64_t kCostOfSurvivor = 32;
  // Maximum number of tiles scored directly in float32 after a first pass of the same queries has
  // failed; doubled each time, so that queries without gain lose little.
  constexpr int64_t kMaxSkipped = 16;
  Blocking block = blocking(tables.dim);
  // Few queries take as long as reading, which is quicker in long stretches.
  if (batch < kPackedFrom) block.items *= 8;
  const auto max_survivors = [](int64_t count, int64_t items) {
    return ceil_div((kReading + count) * items, kCostOfSurvivor);
  };
  const int64_t room = max_survivors(block.queries, block.items);
  FirstPass pass(tables, compressed, queries, batch, block.items);
  Tile tile(tables, block.items, false);
  const Buffer<float> scores(block.queries * block.items), scratch(kWidth * tables.dim);
  const Buffer<int64_t> survivor_queries(room), survivor_rows(room), found(block.queries);
  const int64_t query_blocks = ceil_div(batch, block.queries);
  const Buffer<int64_t> skip(query_blocks), skipped(query_blocks);
  for (int64_t i = 0; i < query_blocks; ++i) skip[i] = skipped[i] = 0;
  const int64_t end = part_begin(tables, part + 1, parts);
  for (int64_t first = part_begin(tables, part, parts); first < end; first += block.items) {
    const int64_t items = min(block.items, end - first);
    pass.read(first, items);
    bool tile_is_read = false;
    for (int64_t b = 0; b < batch; b += block.queries) {
      const int64_t count = min(block.queries, batch - b);
      check_interrupt();
      Survivors survivors = {survivor_queries, survivor_rows, 0, max_survivors(count, items)};
      int64_t& to_skip = skip[b / block.queries];
      int64_t& last_skipped = skipped[b / block.queries];
      bool decided = to_skip == 0;
      if (decided) pass.score(b, count, scores, block.items);
      for (int64_t r = 0; r < count && decided; ++r) {
        const float* row = scores + r * block.items;
        found[r] = decide(b + r, pass, row, first, items, survivors);
        decided = survivors.count < survivors.capacity;
      }
      ++counted.blocks;
      if (decided) {
        last_skipped = 0;
        for (int64_t r = 0; r < count; ++r) settle(b + r, found[r], first + items);
        rescore(tables, queries, survivors, scratch, visit_row);
        continue;
      }
      ++counted.redone;
      if (to_skip > 0) {
        --to_skip;
      } else {
        to_skip = last_skipped = min(kMaxSkipped, 2 * last_skipped + 1);
      }
      if (!tile_is_read) tile.read(first, items);
      tile_is_read = true;
      tile.score(queries + b * tables.dim, count, scores, block.items);
      for (int64_t r = 0; r < count; ++r) visit_tile(b + r, scores + r * block.items, first, items);
    }
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
