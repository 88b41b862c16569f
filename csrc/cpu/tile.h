// A tile: items of the catalog in scratch memory that stays in the cache, and their scores.
#pragma once

#include "cpu/blocking.h"
#include "cpu/product.h"
#include "cpu/rows.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kAhead = 2 * kWidth;  // rows between those being read and those asked for
constexpr float kLeastNorm = 1e-8f;

// 1 / max(norm, kLeastNorm) of rows with these sums of squares; 0 for a row of zeros, which has no
// direction.
inline Vec inverse_norms(Vec squares) {
  Vec inverse = {};
  for (int64_t l = 0; l < kLanes; ++l) {
    const float norm = __builtin_sqrtf(squares[l]);
    inverse[l] = norm == 0.0f ? 0.0f : 1.0f / (norm > kLeastNorm ? norm : kLeastNorm);
  }
  return inverse;
}

class Tile {
 public:
  // Of at most `items`, a multiple of kWidth. `with_rows`: the fused rows are kept as rows too, for
  // products over the items.
  Tile(const Tables& tables, int64_t items, bool with_rows)
      : tables_(tables),
        row_(row_stride(tables.dim)),
        with_rows_(with_rows),
        rows_(with_rows ? items * row_ : 0),
        panels_(items * tables.dim),
        inverse_(items) {}

  // The rows first, first + 1, ... of this part of the catalog.
  void read(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    for (int64_t i = 0; i < count; i += kWidth) {
      pack(strip(first + i), strip(first + i + kAhead), i);
    }
    for (int64_t i = 0; with_rows_ && i < count; ++i) keep_row(first + i, i);
  }

  // The rows of `ids`. An id outside this part of the catalog gives some other row.
  void gather(const int64_t* ids, int64_t count) {
    count_ = count;
    for (int64_t i = 0; i < count; i += kWidth) {
      const int64_t next = least(i + kWidth, count - 1);
      pack(Strip(tables_, ids + i, count - i), Strip(tables_, ids + next, count - next), i);
    }
    for (int64_t i = 0; with_rows_ && i < count; ++i) {
      keep_row(has(ids[i]) ? ids[i] - tables_.first_id : 0, i);
    }
  }

  bool has(int64_t id) const {
    return id >= tables_.first_id && id < tables_.first_id + tables_.rows;
  }

  // scores[r * stride + i] of `count` queries with the items; -inf after the last item, up to a whole
  // kWidth. An item's score depends on nothing but its own row and the query.
  void score(const float* queries, int64_t count, float* scores, int64_t stride) const {
    const int64_t dim = tables_.dim;
    for (int64_t i = 0; i < count_; i += kWidth) {
      product(queries, dim, 1, count, dim, panels_ + i * dim, kWidth, scores + i, stride, false);
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = count_; i < padded(count_); ++i) scores[r * stride + i] = -__builtin_inff();
    }
  }

  int64_t first() const { return first_; }
  int64_t size() const { return count_; }
  // A fused row, divided by its norm if cosine, zeros beyond `dim`; row_stride(dim) to the next.
  const float* row(int64_t i) const { return rows_ + i * row_; }
  // Cosine: 1 / max(norm, kLeastNorm), or 0 for a row of zeros, which has no direction.
  float inverse_norm(int64_t i) const { return inverse_[i]; }
  // Cosine: whether the norm is above its clamp, so that it has a gradient.
  bool norm_varies(int64_t i) const {
    return inverse_[i] != 0.0f && inverse_[i] < 1.0f / kLeastNorm;
  }

 private:
  // kWidth rows from `first` on, as far as the catalog goes.
  Strip strip(int64_t first) const {
    const int64_t from = least(first, tables_.rows - 1);
    return Strip(tables_, from, tables_.rows - from);
  }

  // One panel: kWidth items, transposed: panel[d * kWidth + item], as the product kernel reads them.
  void pack(const Strip& strip, const Strip& next, int64_t first) {
    float* panel = panels_ + first * tables_.dim;
    strip.columns(next, [panel](int64_t d, auto half, Vec column) {
      store(panel + d * kWidth + half.value * kLanes, column);
    });
    if (tables_.cosine) normalise(panel, inverse_ + first);
  }

  void normalise(float* panel, float* inverse) const {
    for (int64_t half = 0; half < kWidth; half += kLanes) {
      Vec squares = {};
      for (int64_t d = 0; d < tables_.dim; ++d) {
        const Vec column = load(panel + d * kWidth + half);
        squares += column * column;
      }
      const Vec factors = inverse_norms(squares);
      store(inverse + half, factors);
      for (int64_t d = 0; d < tables_.dim; ++d) {
        float* column = panel + d * kWidth + half;
        store(column, load(column) * factors);
      }
    }
  }

  void keep_row(int64_t row, int64_t i) {
    float* out = rows_ + i * row_;
    fuse_row(tables_, row, out);
    clear(out + tables_.dim, row_ - tables_.dim);
    for (int64_t d = 0; tables_.cosine && d < tables_.dim; ++d) out[d] *= inverse_[i];
  }

  const Tables& tables_;
  const int64_t row_;
  const bool with_rows_;
  Buffer<float> rows_;
  Buffer<float> panels_;
  Buffer<float> inverse_;
  int64_t first_ = 0;
  int64_t count_ = 0;
};

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
