// The one product kernel: out (rows x cols) = or += a (rows x depth) b (depth x cols), of float32 or
// of pairs of bfloat16, which are two steps of the depth in one.
//
// Every element is one chain of multiply-adds in the order of `depth`, whatever its place in the
// block: equal operands give bitwise equal results. `a` is read at a[row * a_row + step * a_step],
// so it may be a transposed view: one of the two is 1. Columns are taken in whole widths: those of `b`
// at b[step * b_step], and from there one width after the other, b_width between them.
#pragma once

#include "cpu/isa.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

template <int64_t kRows, class T>
inline void product_block(const T* a, int64_t a_row, int64_t a_step, int64_t depth, const T* b,
                          int64_t b_step, float* out, int64_t out_row, bool add) {
  Vec sum[kRows][2];
  for (int64_t r = 0; r < kRows; ++r) {
    sum[r][0] = add ? load(out + r * out_row) : Vec{};
    sum[r][1] = add ? load(out + r * out_row + kLanes) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const auto low = load(b + k * b_step), high = load(b + k * b_step + kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      const auto x = fill(a[r * a_row + k * a_step]);
      sum[r][0] = multiply_add(sum[r][0], x, low);
      sum[r][1] = multiply_add(sum[r][1], x, high);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    store(out + r * out_row, sum[r][0]);
    store(out + r * out_row + kLanes, sum[r][1]);
  }
}

// The last rows, fewer than kQueries: the block of the right size.
template <int64_t kRows, class T>
inline void product_tail(int64_t rows, const T* a, int64_t a_row, int64_t a_step, int64_t depth,
                         const T* b, int64_t b_step, float* out, int64_t out_row, bool add) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      product_block<kRows>(a, a_row, a_step, depth, b, b_step, out, out_row, add);
    } else {
      product_tail<kRows - 1>(rows, a, a_row, a_step, depth, b, b_step, out, out_row, add);
    }
  }
}

template <class T>
inline void product(const T* a, int64_t a_row, int64_t a_step, int64_t rows, int64_t depth,
                    const T* b, int64_t b_step, int64_t b_width, float* out, int64_t out_row,
                    int64_t cols, bool add) {
  for (int64_t c = 0; c < cols; c += kWidth, b += b_width, out += kWidth) {
    int64_t r = 0;
    for (; r + kQueries <= rows; r += kQueries) {
      product_block<kQueries>(a + r * a_row, a_row, a_step, depth, b, b_step, out + r * out_row,
                              out_row, add);
    }
    product_tail<kQueries - 1>(rows - r, a + r * a_row, a_row, a_step, depth, b, b_step,
                               out + r * out_row, out_row, add);
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
