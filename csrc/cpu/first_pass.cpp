#include "cpu/first_pass.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

// The same two integers of a query beside every item.
inline ShortVec two_integers(const int16_t* integers) {
  int32_t both;
  __builtin_memcpy(&both, integers, 4);
  return (ShortVec)(both - IntVec{});
}

// The codes of kLanes items from row `i` on.
inline const int8_t* codes_at(const CompressedTable& table, int64_t pairs, int64_t i) {
  return table.codes + (i / kGroup * pairs * kGroup + i % kGroup) * 2;
}

// Dot products of kRows queries with kWidth items from row `i` on, scaled: out = or += them.
template <int64_t kRows>
inline void product_block(const CompressedTable& table, int64_t pairs, int64_t i,
                          const int16_t* queries, int64_t stride, float* out, int64_t out_row,
                          bool add) {
  IntVec sums[kRows][2];
  for (int64_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = IntVec{};
  const int8_t* low_codes = codes_at(table, pairs, i);
  const int8_t* high_codes = codes_at(table, pairs, i + kLanes);
  for (int64_t p = 0; p < pairs; ++p) {
    const ShortVec low = two_columns(low_codes + p * 2 * kGroup);
    const ShortVec high = two_columns(high_codes + p * 2 * kGroup);
    for (int64_t r = 0; r < kRows; ++r) {
      const ShortVec query = two_integers(queries + r * stride + 2 * p);
      sums[r][0] = multiply_add(sums[r][0], low, query);
      sums[r][1] = multiply_add(sums[r][1], high, query);
    }
  }
  for (int64_t half = 0; half < 2; ++half) {
    const Vec scales = load(table.scales + i + half * kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      float* to = out + r * out_row + half * kLanes;
      const Vec product = __builtin_convertvector(sums[r][half], Vec) * scales;
      store(to, add ? load(to) + product : product);
    }
  }
}

template <int64_t kRows>
inline void product_tail(int64_t rows, const CompressedTable& table, int64_t pairs, int64_t i,
                         const int16_t* queries, int64_t stride, float* out, int64_t out_row,
                         bool add) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      product_block<kRows>(table, pairs, i, queries, stride, out, out_row, add);
    } else {
      product_tail<kRows - 1>(rows, table, pairs, i, queries, stride, out, out_row, add);
    }
  }
}

inline void product(const CompressedTable& table, int64_t pairs, int64_t i, int64_t rows,
                    const int16_t* queries, int64_t stride, float* out, int64_t out_row, bool add) {
  int64_t r = 0;
  for (; r + kQueries <= rows; r += kQueries) {
    product_block<kQueries>(table, pairs, i, queries + r * stride, stride, out + r * out_row,
                            out_row, add);
  }
  product_tail<kQueries - 1>(rows - r, table, pairs, i, queries + r * stride, stride,
                             out + r * out_row, out_row, add);
}

inline int64_t even(int64_t cols) { return (cols + 1) / 2 * 2; }

}  // namespace

FirstPass::FirstPass(const Tables& tables, const Compressed& compressed, const float* queries,
                     int64_t batch, int64_t max_items)
    : tables_(tables),
      compressed_(compressed),
      semantic_cols_(even(tables.semantic.cols)),
      id_cols_(even(tables.id.cols)),
      integers_(batch * (semantic_cols_ + id_cols_)),
      units_(batch),
      norms_(batch),
      slacks_(batch),
      residuals_(max_items),
      sizes_(max_items) {
  const int64_t dim = tables.dim, stride = semantic_cols_ + id_cols_;
  // Sums of dim products of 127 with the largest integer stay below 2^31.
  const float max_integer = dim <= 512 ? 32767.0f : 0x1p31f / 128.0f / static_cast<float>(dim);
  const float rounding = static_cast<float>(dim + 16) * 0x1p-23f;
  for (int64_t b = 0; b < batch; ++b) {
    const float* query = queries + b * dim;
    int16_t* integers = integers_ + b * stride;
    float largest = 0.0f;
    bool finite = true;
    for (int64_t d = 0; d < dim; ++d) {
      const float size = query[d] < 0.0f ? -query[d] : query[d];
      finite = finite && size <= 0x1.fffffep127f;
      largest = size > largest ? size : largest;
    }
    const bool coded = finite && largest >= 1e-30f;
    const float unit = coded ? largest / max_integer : 0.0f;
    double square = 0.0, off = 0.0;
    for (int64_t i = 0; i < stride; ++i) integers[i] = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const float nearest = coded ? __builtin_rintf(query[d] / largest * max_integer) : 0.0f;
      const int16_t integer = static_cast<int16_t>(nearest);
      if (d < tables.semantic.cols) integers[d] = integer;
      if (d >= tables.null_offset) integers[semantic_cols_ + d - tables.null_offset] = integer;
      const double x = query[d];
      const double error = x - static_cast<double>(unit) * static_cast<double>(nearest);
      square += x * x;
      off += error * error;
    }
    units_[b] = unit;
    norms_[b] = finite ? static_cast<float>(__builtin_sqrt(square)) * 1.00001f : __builtin_inff();
    slacks_[b] = static_cast<float>(__builtin_sqrt(off)) * 1.00001f + rounding * norms_[b];
  }
}

void FirstPass::read(int64_t first, int64_t count) {
  first_ = first;
  count_ = count;
  const CompressedTable& semantic = compressed_.semantic;
  const CompressedTable& id = compressed_.id;
  for (int64_t i = 0; i < padded(count); i += kLanes) {
    Vec residual = {}, size = {};
    if (semantic.codes != nullptr) {
      residual = load(semantic.residuals + first + i);
      size = load(semantic.norms + first + i);
    }
    if (id.codes != nullptr) {
      const Vec other = load(id.residuals + first + i);
      // Added residuals may point the same way; beside each other they are at a right angle.
      const Vec sum = residual + other;
      Vec side = sum;
      for (int64_t l = 0; l < kLanes && !tables_.add; ++l) {
        side[l] = __builtin_sqrtf(residual[l] * residual[l] + other[l] * other[l]) * 1.00001f;
      }
      // Squares that overflow or underflow give no bound: the sum does.
      residual = side > 1e-15f ? (side < 1e15f ? side : sum) : sum;
      size += load(id.norms + first + i);
    }
    if (tables_.cosine) {
      // Padded like the other arrays.
      const Vec inverse = load(compressed_.inverse_norms + first + i);
      residual *= inverse;
      size *= inverse;
    }
    store(residuals_ + i, residual);
    store(sizes_ + i, size);
  }
}

void FirstPass::score(int64_t b, int64_t count, float* approximate, int64_t stride) const {
  const int64_t row = semantic_cols_ + id_cols_;
  const int16_t* integers = integers_ + b * row;
  for (int64_t i = 0; i < count_; i += kWidth) {
    if (semantic_cols_ > 0) {
      product(compressed_.semantic, semantic_cols_ / 2, first_ + i, count, integers, row,
              approximate + i, stride, false);
    }
    if (id_cols_ > 0) {
      product(compressed_.id, id_cols_ / 2, first_ + i, count, integers + semantic_cols_, row,
              approximate + i, stride, semantic_cols_ > 0);
    }
    for (int64_t half = 0; half < kWidth; half += kLanes) {
      const int64_t at = i + half;
      const Vec factor =
          tables_.cosine ? load(compressed_.inverse_norms + first_ + at) : fill(1.0f);
      for (int64_t r = 0; r < count; ++r) {
        float* score = approximate + r * stride + at;
        store(score, load(score) * (units_[b + r] * factor));
      }
    }
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
