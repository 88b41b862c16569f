// A compressed copy of the item table, for a first pass that is rescored: see csrc/cpu/first_pass.h.
//
// Plain structs, as in tables.h.
#pragma once

#include <cstdint>

namespace alphafuse {

// Rows are stored in groups, so that one load takes the same columns of several items.
constexpr int64_t kGroup = 16;

// One of the two tables, padded_rows(rows) rows; `codes` is null where there is none.
//
// int8: row i is about scales[i] * code, codes in [-127, 127]. The codes of a group lie together, four
// columns of each row side by side: element (row i, column d) is
// codes[(i / 16 * cols / 4 + d / 4) * 64 + i % 16 * 4 + d % 4], `cols` rounded up to a multiple of 4.
struct CompressedTable {
  const int8_t* codes;
  const float* scales;
  const float* residuals;  // |row - its approximation|, never less
  const float* norms;      // |approximation| + residual, never less
};

struct Compressed {
  CompressedTable semantic;
  CompressedTable id;
  const float* inverse_norms;  // cosine: those of the fused rows
};

// Counts of the score tiles (some items by a few queries) of a first pass.
struct FirstPassCount {
  int64_t blocks;
  int64_t redone;  // in float32, as the bound left too many items
};

// A whole number of groups, and of what any instruction set takes at a time.
constexpr int64_t padded_rows(int64_t rows) { return (rows + 63) / 64 * 64; }
constexpr int64_t padded_cols(int64_t cols) { return (cols + 3) / 4 * 4; }
constexpr int64_t codes_of(int64_t rows, int64_t cols) {
  return padded_rows(rows) * padded_cols(cols);
}

}  // namespace alphafuse
