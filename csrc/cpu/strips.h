// Scores of few queries with rows that are read once: not worth a tile.
#pragma once

#include "cpu/rows.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kAhead = 2 * kWidth;  // rows between those being read and those asked for
constexpr float kMinNorm = 1e-8f;

// 1 / max(norm, kMinNorm) of rows with these sums of squares; 0 for a row of zeros, which has no
// direction.
inline Vec inverse_norms(Vec squares) {
  Vec inverse = {};
  for (int64_t l = 0; l < kLanes; ++l) {
    const float norm = __builtin_sqrtf(squares[l]);
    inverse[l] = norm == 0.0f ? 0.0f : 1.0f / (norm > kMinNorm ? norm : kMinNorm);
  }
  return inverse;
}

// out[0, count): the scores of the queries query_ids[i] with the rows rows[i], bitwise those of a tile;
// count at most kWidth. `scratch` holds kWidth * dim numbers.
void score_pairs(const Tables& tables, const float* queries, const int64_t* query_ids,
                 const int64_t* rows, int64_t count, float* scratch, float* out);

// From how many queries on it pays to pack the items into a tile before they are scored.
constexpr int64_t kPackedFrom = 5;

// As Tile::score, of fewer than kPackedFrom queries with the items first, first + 1, ...
void score_strips(const Tables& tables, int64_t first, int64_t count, const float* queries,
                  int64_t batch, float* scores, int64_t stride);

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
