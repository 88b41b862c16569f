#include "cpu/tile.h"

#include "cpu/convert.h"
#include "cpu/product.h"
#include "cpu/strips.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

Tile::Tile(const Tables& tables, int64_t items, bool with_rows)
    : tables_(tables),
      row_(row_stride(tables.dim)),
      with_rows_(with_rows),
      rows_(with_rows ? items * row_ : 0),
      panels_(items * tables.dim),
      inverse_(items) {}

void Tile::read(int64_t first, int64_t count) {
  count_ = count;
  for (int64_t i = 0; i < count; i += kWidth) {
    pack(strip_from(tables_, first + i), strip_from(tables_, first + i + kAhead), i);
  }
  for (int64_t i = 0; with_rows_ && i < count; ++i) keep_row(first + i, i);
}

void Tile::gather(const int64_t* ids, int64_t count) {
  count_ = count;
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t next = min(i + kWidth, count - 1);
    pack(Strip(tables_, ids + i, count - i), Strip(tables_, ids + next, count - next), i);
  }
  for (int64_t i = 0; with_rows_ && i < count; ++i) {
    keep_row(has(ids[i]) ? ids[i] - tables_.first_id : 0, i);
  }
}

void Tile::score(const float* queries, int64_t count, float* scores, int64_t stride) const {
  const int64_t dim = tables_.dim;
  for (int64_t i = 0; i < count_; i += kWidth) {
    product(queries, dim, 1, count, dim, panels_ + i * dim, kWidth, scores + i, stride, false);
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = count_; i < padded(count_); ++i) scores[r * stride + i] = -__builtin_inff();
  }
}

void Tile::pack(const Strip& strip, const Strip& next, int64_t first) {
  float* panel = panels_ + first * tables_.dim;
  strip.columns(next, [panel](int64_t d, auto half, Vec column) {
    store(panel + d * kWidth + half.value * kLanes, column);
  });
  if (tables_.cosine) normalise(panel, inverse_ + first);
}

void Tile::normalise(float* panel, float* inverse) const {
  for (int64_t half = 0; half < kWidth; half += kLanes) {
    Vec squares = {};
    for (int64_t d = 0; d < tables_.dim; ++d) {
      const Vec column = load(panel + d * kWidth + half);
      squares = multiply_add(squares, column, column);
    }
    const Vec factors = inverse_norms(squares);
    store(inverse + half, factors);
    for (int64_t d = 0; d < tables_.dim; ++d) {
      float* column = panel + d * kWidth + half;
      store(column, load(column) * factors);
    }
  }
}

void Tile::keep_row(int64_t row, int64_t i) {
  float* out = rows_ + i * row_;
  fuse_row(tables_, row, out);
  clear(out + tables_.dim, row_ - tables_.dim);
  for (int64_t d = 0; tables_.cosine && d < tables_.dim; ++d) out[d] *= inverse_[i];
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
