// What products are computed of: float32, or rounded to bfloat16, two of them (a pair) in one step.
#pragma once

#include <type_traits>

#include "cpu/convert.h"
#include "cpu/dispatch.h"
#include "cpu/product.h"
#include "launch.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

template <class T>
inline constexpr bool kIsPair = false;
template <>
inline constexpr bool kIsPair<Pair> = true;

// Of a product with a sum of `depth` terms.
template <class T>
inline int64_t steps(int64_t depth) {
  return kIsPair<T> ? ceil_div(depth, 2) : depth;
}

// product() of either; of pairs that of the set in use, which may be none of these kernels' own.
template <class T, class... Arguments>
inline void multiply(const T* a, Arguments... others) {
  if constexpr (kIsPair<T>) {
    kernels().pair_product(a, others...);
  } else {
    product<T>(a, others...);
  }
}

// Rows as the first operand of a product over their columns: steps(cols) pairs each.
inline void round_rows(const float* rows, int64_t count, int64_t cols, Pair* out) {
  for (int64_t r = 0; r < count; ++r, rows += cols, out += steps<Pair>(cols)) {
    for (int64_t k = 0; k < cols / 2; ++k) {
      out[k] = to_bfloat16(rows[2 * k]) | Pair{to_bfloat16(rows[2 * k + 1])} << 16;
    }
    if (cols % 2 != 0) out[cols / 2] = to_bfloat16(rows[cols - 1]);
  }
}

// Of a pointer to what products are computed of.
template <class Pointer>
using Element = std::remove_const_t<std::remove_pointer_t<Pointer>>;

// call(operand) with queries (count, dim) in the precision that is wanted, each of steps(dim).
template <class Call>
void in_precision(Precision precision, const float* queries, int64_t count, int64_t dim,
                  const Call& call) {
  if (precision == Precision::kFloat32) return call(queries);
  const Buffer<Pair> rounded(count * steps<Pair>(dim));
  round_rows(queries, count, dim, rounded);
  call(static_cast<const Pair*>(rounded));
}

// Two rows as one of pairs, whole widths of columns; without `odd`, with zeros.
inline void pair_rows(const float* even, const float* odd, int64_t cols, Pair* out) {
  for (int64_t d = 0; d < cols; d += kLanes) {
    store(out + d, pairs_of(load(even + d), odd == nullptr ? Vec{} : load(odd + d)));
  }
}

// The gradient of the scores of a block of queries with the items of a tile, as the first operand of
// two products: over the items, with fused rows, and over the queries, with rows of these.
//
// Query after query, row(r) is where its gradients are written, [0, padded(count)), and then finish().
template <class T>
class ScoreGradients {
 public:
  ScoreGradients(int64_t queries, int64_t items) : items_(items), c_(queries * items) {}

  float* row(int64_t r) const { return c_ + r * items_; }
  void finish(int64_t, int64_t, int64_t) const {}

  // out (queries, cols) += c rows, and out (count, cols) += c^T rows: `row` is from one row to the
  // next of either, whole widths.
  void add_over_items(int64_t queries, int64_t count, const float* rows, int64_t row, int64_t cols,
                      float* out) const {
    multiply<float>(c_, items_, int64_t{1}, queries, count, rows, row, kWidth, out, row, cols,
                    true);
  }
  void add_over_queries(int64_t queries, int64_t count, const float* rows, int64_t row,
                        int64_t cols, float* out) const {
    multiply<float>(c_, int64_t{1}, items_, count, queries, rows, row, kWidth, out, row, cols,
                    true);
  }

 private:
  const int64_t items_;
  const Buffer<float> c_;
};

// The rows of either product are pairs too: of items, as Tile has them, and of queries that follow
// each other.
template <>
class ScoreGradients<Pair> {
 public:
  ScoreGradients(int64_t queries, int64_t items)
      : items_(items),
        c_(2 * items),
        item_pairs_(queries * items / 2),
        query_pairs_(ceil_div(queries, 2) * items) {}

  float* row(int64_t r) const { return c_ + r % 2 * items_; }

  // Of query r of so many, with `count` items.
  void finish(int64_t r, int64_t queries, int64_t count) const {
    float* const c = row(r);
    clear(c + count, padded(count) - count);
    for (int64_t i = 0; i < count; i += kWidth) {
      store(item_pairs_ + (r * items_ + i) / 2, pairs_of(load(c + i), load(c + i + kLanes)));
    }
    if (r % 2 == 0 && r + 1 < queries) return;
    pair_rows(row(r - r % 2), r % 2 == 0 ? nullptr : c, count, query_pairs_ + r / 2 * items_);
  }

  void add_over_items(int64_t queries, int64_t count, const Pair* rows, int64_t row, int64_t cols,
                      float* out) const {
    multiply<Pair>(item_pairs_, items_ / 2, int64_t{1}, queries, padded(count) / 2, rows, row,
                   kWidth, out, row, cols, true);
  }
  void add_over_queries(int64_t queries, int64_t count, const Pair* rows, int64_t row, int64_t cols,
                        float* out) const {
    multiply<Pair>(query_pairs_, int64_t{1}, items_, count, steps<Pair>(queries), rows, row, kWidth,
                   out, row, cols, true);
  }

 private:
  const int64_t items_;
  const Buffer<float> c_;  // two rows
  const Buffer<Pair> item_pairs_, query_pairs_;
};

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
