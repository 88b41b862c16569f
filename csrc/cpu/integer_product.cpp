#include "cpu/integer_product.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"

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
    const Vec unit = fill(queries.units[row + r]);
    for (int64_t half = 0; half < 2; ++half) {
      float* to = out + (row + r) * out_row + half * kLanes;
      const Vec product = __builtin_convertvector(sums[r][half], Vec) * scales[half] * unit;
      store(to, add ? load(to) + product : product);
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

void run(const CompressedTable& table, int64_t cols, const float* factors, int64_t first,
         int64_t items, const IntegerQueries& queries, int64_t rows, float* out, int64_t out_row,
         bool add) {
  for (int64_t i = 0; i < items; i += kWidth) {
    const int64_t at = first + i;
    const int8_t* low = codes_at(table, cols, at);
    const int8_t* high = codes_at(table, cols, at + kLanes);
    Vec scales[2] = {load(table.scales + at), load(table.scales + at + kLanes)};
    if (factors != nullptr) {
      scales[0] *= load(factors + at);
      scales[1] *= load(factors + at + kLanes);
    }
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
