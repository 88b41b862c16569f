// A tile: items of the catalog in scratch memory that stays in the cache, and their scores.
#pragma once

#include "cpu/blocking.h"
#include "cpu/operands.h"
#include "cpu/strips.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// Of T, float32 or pairs of bfloat16.
template <class T = float>
class Tile {
 public:
  // Of at most `items`, a multiple of kWidth. `with_rows`: the fused rows are kept as rows too, for
  // products over the items.
  Tile(const Tables& tables, int64_t items, bool with_rows);

  // The rows first, first + 1, ... of this part of the catalog.
  void read(int64_t first, int64_t count);

  // The rows of `ids`. An id outside this part of the catalog gives some other row.
  void gather(const int64_t* ids, int64_t count);

  bool has(int64_t id) const {
    return id >= tables_.first_id && id < tables_.first_id + tables_.rows;
  }

  // scores[r * stride + i] of `count` queries with the items; -inf after the last item, up to a whole
  // kWidth. An item's score depends on nothing but its own row and the query.
  void score(const T* queries, int64_t count, float* scores, int64_t stride) const;

  int64_t size() const { return count_; }
  // A fused row, divided by its norm if cosine, zeros beyond `dim`; row_stride(dim) to the next.
  const float* row(int64_t i) const { return rows_ + i * row_; }
  // All of them as the second operand of a product over the items, row_stride(dim) to the next. Pairs
  // are, of each kWidth items, number l of the first half and number l of the second.
  const T* rows() const {
    if constexpr (kIsPair<T>) {
      return row_pairs_;
    } else {
      return rows_;
    }
  }
  // Cosine: 1 / max(norm, kMinNorm), or 0 for a row of zeros, which has no direction.
  float inverse_norm(int64_t i) const { return inverse_[i]; }
  // Cosine: whether the norm is above its clamp, so that it has a gradient.
  bool norm_varies(int64_t i) const { return inverse_[i] != 0.0f && inverse_[i] < 1.0f / kMinNorm; }

 private:
  // One panel: kWidth items, transposed: panel[step * kWidth + item], as the product kernel reads them.
  void pack(const Strip& strip, const Strip& next, int64_t first);
  void normalise(float* panel, float* inverse) const;
  void keep_row(int64_t row, int64_t i);
  void finish_rows();

  const Tables& tables_;
  const int64_t row_;
  const bool with_rows_;
  Buffer<float> rows_;
  Buffer<T> panels_;
  Buffer<float> inverse_;
  Buffer<float> columns_;  // of pairs: a panel before it is rounded
  Buffer<T> row_pairs_;
  int64_t count_ = 0;
};

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
