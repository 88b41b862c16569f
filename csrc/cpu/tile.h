// A tile: up to kTile fused rows, in scratch memory that stays in the cache, and their scores.
#pragma once

#include "cpu/convert.h"
#include "cpu/product.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kTile = 128;      // items of a tile
constexpr int64_t kQueryRows = 48;  // queries scored against a tile at a time
constexpr float kLeastNorm = 1e-8f;

class Tile {
 public:
  explicit Tile(const Tables& tables)
      : tables_(tables),
        row_(row_stride(tables.dim)),
        rows_(kTile * row_),
        panels_(kTile * tables.dim) {}

  // The rows first, first + 1, ... of this part of the catalog.
  void read(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    for (int64_t i = 0; i < count; ++i) read_row(first + i, i);
    pack();
  }

  // The rows of `ids`. An id outside this part of the catalog gives a row of zeros.
  void gather(const int64_t* ids, int64_t count) {
    count_ = count;
    for (int64_t i = 0; i < count; ++i) {
      if (has(ids[i])) {
        read_row(ids[i] - tables_.first_id, i);
      } else {
        clear(rows_ + i * row_, row_);
      }
    }
    pack();
  }

  bool has(int64_t id) const {
    return id >= tables_.first_id && id < tables_.first_id + tables_.rows;
  }

  // scores[r * kTile + i] of `count` queries (at most kQueryRows) against the items. A row is -inf
  // from `size()` on. An item's score depends on nothing but its own row and the query.
  void score(const float* queries, int64_t count, float* scores) const {
    const int64_t dim = tables_.dim;
    for (int64_t i = 0; i < count_; i += kWidth) {
      product(queries, dim, 1, count, dim, panels_ + i * dim, kWidth, scores + i, kTile, false);
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = count_; i < kTile; ++i) scores[r * kTile + i] = -__builtin_inff();
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
  void read_row(int64_t row, int64_t i) {
    float* out = rows_ + i * row_;
    fuse_row(tables_, row, out);
    clear(out + tables_.dim, row_ - tables_.dim);
  }

  // Panels of kWidth items, transposed: panel[d * kWidth + item], as the product kernel reads them.
  void pack() {
    const int64_t dim = tables_.dim;
    for (int64_t i = count_; i < padded(count_); ++i) clear(rows_ + i * row_, row_);
    for (int64_t p = 0; p < count_; p += kWidth) {
      float* panel = panels_ + p * dim;
      const float* rows = rows_ + p * row_;
      for (int64_t w = 0; w < kWidth; ++w) {
        for (int64_t d = 0; d < dim; ++d) panel[d * kWidth + w] = rows[w * row_ + d];
      }
      if (tables_.cosine) normalise(p, panel);
    }
  }

  void normalise(int64_t p, float* panel) {
    const int64_t dim = tables_.dim;
    for (int64_t w = 0; w < kWidth; ++w) {
      float square = 0.0f;
      for (int64_t d = 0; d < dim; ++d) square += panel[d * kWidth + w] * panel[d * kWidth + w];
      const float norm = __builtin_sqrtf(square);
      const float inverse = norm == 0.0f ? 0.0f : 1.0f / (norm > kLeastNorm ? norm : kLeastNorm);
      inverse_[p + w] = inverse;
      for (int64_t d = 0; d < dim; ++d) panel[d * kWidth + w] *= inverse;
      float* row = rows_ + (p + w) * row_;
      for (int64_t d = 0; d < dim; ++d) row[d] *= inverse;
    }
  }

  const Tables& tables_;
  const int64_t row_;
  Buffer<float> rows_;
  Buffer<float> panels_;
  float inverse_[kTile];
  int64_t first_ = 0;
  int64_t count_ = 0;
};

// The catalog is cut into `parts` ranges of whole tiles; a part's tiles are taken in order of id.
inline int64_t catalog_parts(const Tables& tables, int threads) {
  return most(1, least(threads, ceil_div(tables.rows, kTile)));
}
inline int64_t part_begin(const Tables& tables, int64_t part, int64_t parts) {
  return least(tables.rows, ceil_div(tables.rows, kTile) * part / parts * kTile);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
