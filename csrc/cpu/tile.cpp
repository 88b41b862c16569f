#include "cpu/tile.h"

#include "cpu/convert.h"
#include "cpu/strips.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

template <class T>
Tile<T>::Tile(const Tables& tables, int64_t items, bool with_rows)
    : tables_(tables),
      row_(row_stride(tables.dim)),
      with_rows_(with_rows),
      rows_(with_rows ? items * row_ : 0),
      panels_(items * steps<T>(tables.dim)),
      inverse_(items),
      columns_(kIsPair<T> ? kWidth * tables.dim : 0),
      row_pairs_(kIsPair<T> && with_rows ? items / 2 * row_ : 0) {}

template <class T>
void Tile<T>::read(int64_t first, int64_t count) {
  count_ = count;
  for (int64_t i = 0; i < count; i += kWidth) {
    pack(strip_from(tables_, first + i), strip_from(tables_, first + i + kAhead), i);
  }
  for (int64_t i = 0; with_rows_ && i < count; ++i) keep_row(first + i, i);
  if (with_rows_) finish_rows();
}

template <class T>
void Tile<T>::gather(const int64_t* ids, int64_t count) {
  count_ = count;
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t next = min(i + kWidth, count - 1);
    pack(Strip(tables_, ids + i, count - i), Strip(tables_, ids + next, count - next), i);
  }
  for (int64_t i = 0; with_rows_ && i < count; ++i) {
    keep_row(has(ids[i]) ? ids[i] - tables_.first_id : 0, i);
  }
  if (with_rows_) finish_rows();
}

template <class T>
void Tile<T>::score(const T* queries, int64_t count, float* scores, int64_t stride) const {
  const int64_t depth = steps<T>(tables_.dim);
  multiply(queries, depth, int64_t{1}, count, depth, panels_ + 0, kWidth, kWidth * depth, scores,
           stride, count_, false);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = count_; i < padded(count_); ++i) scores[r * stride + i] = -__builtin_inff();
  }
}

template <class T>
void Tile<T>::pack(const Strip& strip, const Strip& next, int64_t first) {
  T* const packed = panels_ + first * steps<T>(tables_.dim);
  float* panel;
  if constexpr (kIsPair<T>) {
    panel = columns_;
  } else {
    panel = packed;
  }
  strip.columns(next, [panel](int64_t d, auto half, Vec column) {
    store(panel + d * kWidth + half.value * kLanes, column);
  });
  if (tables_.cosine) normalise(panel, inverse_ + first);
  if constexpr (kIsPair<T>) {
    for (int64_t d = 0; d < tables_.dim; d += 2) {
      const float* const even = panel + d * kWidth;
      const float* const odd = d + 1 < tables_.dim ? even + kWidth : nullptr;
      pair_rows(even, odd, kWidth, packed + d / 2 * kWidth);
    }
  }
}

template <class T>
void Tile<T>::normalise(float* panel, float* inverse) const {
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

template <class T>
void Tile<T>::keep_row(int64_t row, int64_t i) {
  float* out = rows_ + i * row_;
  fuse_row(tables_, row, out);
  clear(out + tables_.dim, row_ - tables_.dim);
  for (int64_t d = 0; tables_.cosine && d < tables_.dim; ++d) out[d] *= inverse_[i];
}

template <class T>
void Tile<T>::finish_rows() {
  if constexpr (kIsPair<T>) {
    for (int64_t i = count_; i < padded(count_); ++i) clear(rows_ + i * row_, row_);
    for (int64_t i = 0; i < count_; i += kWidth) {
      for (int64_t l = i; l < i + kLanes; ++l) {
        pair_rows(row(l), row(l + kLanes), padded(tables_.dim),
                  row_pairs_ + (i / 2 + l - i) * row_);
      }
    }
  }
}

template class Tile<float>;
template class Tile<Pair>;

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
