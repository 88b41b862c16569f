#include "cpu/integer_product.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"
#if defined(ALPHAFUSE_HAS_TILES)
#include "cpu/tiles.h"
#endif

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

constexpr int64_t kLine = 64;  // bytes of a cache line
// Bytes between the codes being read and those asked for: the processor foresees no two halves of a
// group, by turns.
constexpr int64_t kAhead = 4096;

// The codes of kLanes items from row `i` on, in the first columns.
inline const int8_t* codes_at(const CompressedTable& table, int64_t cols, int64_t i) {
  return table.codes + i / kGroup * kGroup * cols + i % kGroup * 4;
}

// What kLanes items from row `i` on are scaled by.
inline Vec scales_at(const CompressedTable& table, const float* factors, int64_t i) {
  const Vec scales = load(table.scales + i);
  return factors == nullptr ? scales : scales * load(factors + i);
}

inline void scale(IntVec sums, Vec scales, float unit, float* to, bool add) {
  const Vec product = __builtin_convertvector(sums, Vec) * scales * fill(unit);
  store(to, add ? load(to) + product : product);
}

// kRows queries by kWidth items, whose codes are `low` and `high`.
template <int64_t kRows>
inline void product_block(const int8_t* low, const int8_t* high, int64_t cols, const Vec* scales,
                          const IntegerQueries& queries, int64_t row, float* out, int64_t out_row,
                          bool add) {
  const Number* numbers = static_cast<const Number*>(queries.numbers) + row * queries.stride;
  IntVec sums[kRows][2];
  for (int64_t r = 0; r < kRows; ++r) {
    sums[r][0] = sums[r][1] = -kCodeOffset * queries.sums[row + r] - IntVec{};
  }
  for (int64_t d = 0; d < cols; d += 4) {
    const auto low_codes = four_codes(low + d * kGroup), high_codes = four_codes(high + d * kGroup);
    for (int64_t r = 0; r < kRows; ++r) {
      const auto query = four_numbers(numbers + r * queries.stride + d);
      sums[r][0] = multiply_add(sums[r][0], low_codes, query);
      sums[r][1] = multiply_add(sums[r][1], high_codes, query);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t half = 0; half < 2; ++half) {
      scale(sums[r][half], scales[half], queries.units[row + r],
            out + (row + r) * out_row + half * kLanes, add);
    }
  }
}

template <int64_t kRows>
inline void product_tail(int64_t rows, const int8_t* low, const int8_t* high, int64_t cols,
                         const Vec* scales, const IntegerQueries& queries, int64_t row, float* out,
                         int64_t out_row, bool add) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      product_block<kRows>(low, high, cols, scales, queries, row, out, out_row, add);
    } else {
      product_tail<kRows - 1>(rows, low, high, cols, scales, queries, row, out, out_row, add);
    }
  }
}

#if defined(ALPHAFUSE_HAS_TILES)
// From how many queries on; fewer wait for memory, whatever multiplies them.
constexpr int64_t kTiledFrom = kTileRows;

// A group's codes are a tile of `b` as they lie.
void run_by_tiles(const CompressedTable& table, int64_t cols, const float* factors, int64_t first,
                  int64_t items, const IntegerQueries& queries, int64_t rows, float* out,
                  int64_t out_row, bool add) {
  constexpr int64_t kAtOnce = 256;  // items
  const Buffer<int32_t> sums(rows * kAtOnce);
  for (int64_t begin = 0; begin < items; begin += kAtOnce) {
    const int64_t count = padded(min(kAtOnce, items - begin)), at = first + begin;
    tile_product<true>({queries.numbers, queries.stride, table.codes + at * cols, kLine, kGroup,
                        kGroup * cols, sums, kAtOnce * 4},
                       rows, cols / 4, ceil_div(count, kGroup) * kGroup, false);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Vec scales = scales_at(table, factors, at + i);
      for (int64_t r = 0; r < rows; ++r) {
        IntVec found;
        __builtin_memcpy(&found, sums + r * kAtOnce + i, sizeof found);
        scale(found, scales, queries.units[r], out + r * out_row + begin + i, add);
      }
    }
  }
}
#endif

void run(const CompressedTable& table, int64_t cols, const float* factors, int64_t first,
         int64_t items, const IntegerQueries& queries, int64_t rows, float* out, int64_t out_row,
         bool add) {
#if defined(ALPHAFUSE_HAS_TILES)
  if (rows >= kTiledFrom) {
    return run_by_tiles(table, cols, factors, first, items, queries, rows, out, out_row, add);
  }
#endif
  for (int64_t i = 0; i < items; i += kWidth) {
    const int64_t at = first + i;
    const int8_t* low = codes_at(table, cols, at);
    const int8_t* high = codes_at(table, cols, at + kLanes);
    const Vec scales[2] = {scales_at(table, factors, at), scales_at(table, factors, at + kLanes)};
    for (int64_t byte = 0; byte < kWidth * cols; byte += kLine) {
      __builtin_prefetch(low + kAhead + byte);
    }
    int64_t row = 0;
    for (; row + kQueries <= rows; row += kQueries) {
      product_block<kQueries>(low, high, cols, scales, queries, row, out + i, out_row, add);
    }
    product_tail<kQueries - 1>(rows - row, low, high, cols, scales, queries, row, out + i, out_row,
                               add);
  }
}

}  // namespace

const IntegerProduct kIntegerProduct = {sizeof(Number), sizeof(Number) == 1 ? 127.0f : 32767.0f,
                                        128.0f + kCodeOffset, &run};

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
