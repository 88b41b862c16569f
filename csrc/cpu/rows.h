// Fused rows read as columns: kWidth rows side by side, transposed in registers on the way from the
// tables, so that neither the fused rows nor their transpose need to be written anywhere.
#pragma once

#include "cpu/convert.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// kLanes rows of kLanes elements to as many columns: off-diagonal squares of 1, 2, 4, ... swapped.
template <int64_t kSquare>
struct UpperRow {
  static constexpr int of(int64_t l) {
    return static_cast<int>(l & kSquare ? l - kSquare + kLanes : l);
  }
};
template <int64_t kSquare>
struct LowerRow {
  static constexpr int of(int64_t l) {
    return static_cast<int>(l & kSquare ? l + kLanes : l + kSquare);
  }
};
template <int64_t kSquare>
inline void swap_squares(Vec* v) {
  for (int64_t i = 0; i < kLanes; ++i) {
    if (i & kSquare) continue;
    const Vec a = v[i], b = v[i + kSquare];
    v[i] = shuffle<UpperRow<kSquare>>(a, b);
    v[i + kSquare] = shuffle<LowerRow<kSquare>>(a, b);
  }
}
inline void transpose(Vec* v) {
  swap_squares<1>(v);
  swap_squares<2>(v);
  if constexpr (kLanes > 4) swap_squares<4>(v);
  if constexpr (kLanes > 8) swap_squares<8>(v);
}

// How a table's elements are read: kLanes of them, or one, `at` elements from its beginning.
struct Float32 {
  explicit Float32(const Table& table) : data(static_cast<const float*>(table.data)) {}
  Vec chunk(int64_t at) const { return load(data + at); }
  float element(int64_t at) const { return data[at]; }
  const void* address(int64_t at) const { return data + at; }

  static constexpr int64_t kLine = 16;  // elements of a cache line
  const float* data;
};

// bfloat16 or float16, or, beside such a table, float32. The branch on the type is the same for all
// rows, so it is foreseen; a copy of every loop for each pair of types would not be worth it.
struct Widened {
  explicit Widened(const Table& table)
      : data(static_cast<const uint16_t*>(table.data)), dtype(table.dtype) {}
  Vec chunk(int64_t at) const {
    if (dtype == DType::kFloat32) return load(reinterpret_cast<const float*>(data) + at);
    if (dtype == DType::kFloat16) return from_float16(data + at);
    return (Vec)(widened(data + at) << 16);
  }
  float element(int64_t at) const {
    if (dtype == DType::kFloat32) return reinterpret_cast<const float*>(data)[at];
    return dtype == DType::kBFloat16 ? from_bfloat16(data[at]) : from_float16(data[at]);
  }
  const void* address(int64_t at) const { return data + (dtype == DType::kFloat32 ? 2 * at : at); }

  static constexpr int64_t kLine = 16;
  const uint16_t* data;
  DType dtype;
};

// Which kLanes of kWidth, known to the compiler.
template <int64_t kHalf>
struct Half {
  static constexpr int64_t value = kHalf;
};

// kWidth rows of the tables, in any order and with repeats.
class Strip {
 public:
  // The rows first, first + 1, ...; after `count` of them, the last is repeated.
  Strip(const Tables& tables, int64_t first, int64_t count) : tables_(tables) {
    if (count >= kWidth) {  // the usual case, without a branch for each row
      for (int64_t i = 0; i < kWidth; ++i) set(i, first + i);
    } else {
      for (int64_t i = 0; i < kWidth; ++i) set(i, first + min(i, count - 1));
    }
  }

  // The rows of `ids`; after `count` of them, and for ids outside this part, some other row.
  Strip(const Tables& tables, const int64_t* ids, int64_t count) : tables_(tables) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const int64_t row = ids[min(i, count - 1)] - tables.first_id;
      set(i, row >= 0 && row < tables.rows ? row : 0);
    }
  }

  // Given rows, all of them there; after `count` of them, the last is repeated.
  static Strip of_rows(const Tables& tables, const int64_t* rows, int64_t count) {
    Strip strip(tables);
    for (int64_t i = 0; i < kWidth; ++i) strip.set(i, rows[min(i, count - 1)]);
    return strip;
  }

  // Asks the memory for all rows at once, where there is no strip before this one.
  ALPHAFUSE_INLINE void prefetch() const {
    for (int64_t i = 0; i < kWidth; ++i) {
      prefetch_row(tables_.semantic, semantic_[i]);
      prefetch_row(tables_.id, id_[i] + tables_.null_offset);
    }
  }

  // visit(d, half, column): column d of the fused rows, kLanes of them at a time: those from row
  // half * kLanes on. d ascends within a half. Meanwhile the memory is asked for the rows of `next`, row by row: columns are read in an
  // order that the processor does not foresee.
  template <class Visit>
  ALPHAFUSE_INLINE void columns(const Strip& next, const Visit& visit) const {
    if (tables_.semantic.dtype == DType::kFloat32 && tables_.id.dtype == DType::kFloat32) {
      columns_of(Float32(tables_.semantic), Float32(tables_.id), next, visit);
    } else {
      columns_of(Widened(tables_.semantic), Widened(tables_.id), next, visit);
    }
  }

 private:
  explicit Strip(const Tables& tables) : tables_(tables) {}

  void set(int64_t i, int64_t row) {
    semantic_[i] = row * tables_.semantic.stride;
    id_[i] = row * tables_.id.stride - tables_.null_offset;
  }

  template <class Elements, class Visit>
  ALPHAFUSE_INLINE void columns_of(const Elements& semantic_elements, const Elements& id_elements,
                                   const Strip& next, const Visit& visit) const {
    const Rows<Elements> semantic{semantic_elements, semantic_, next.semantic_};
    const Rows<Elements> id{id_elements, id_, next.id_};
    segment(0, tables_.null_offset, semantic, visit);
    if (tables_.add) {
      segment(tables_.null_offset, tables_.dim, Sum<Elements>{semantic, id}, visit);
    } else {
      segment(tables_.null_offset, tables_.dim, id, visit);
    }
  }

  // What one table has at column d of the fused rows: a chunk from there on, or one element.
  template <class Elements>
  struct Rows {
    Elements elements;
    const int64_t *offsets, *next;
    ALPHAFUSE_INLINE void prefetch(int64_t i, int64_t begin, int64_t end) const {
      for (int64_t d = begin; d < end; d += Elements::kLine) {
        __builtin_prefetch(elements.address(next[i] + d));
      }
    }
    Vec chunk(int64_t i, int64_t d) const { return elements.chunk(offsets[i] + d); }
    float element(int64_t i, int64_t d) const { return elements.element(offsets[i] + d); }
  };

  template <class Elements>
  struct Sum {
    Rows<Elements> a, b;
    ALPHAFUSE_INLINE void prefetch(int64_t i, int64_t begin, int64_t end) const {
      a.prefetch(i, begin, end);
      b.prefetch(i, begin, end);
    }
    Vec chunk(int64_t i, int64_t d) const { return a.chunk(i, d) + b.chunk(i, d); }
    float element(int64_t i, int64_t d) const { return a.element(i, d) + b.element(i, d); }
  };
  template <class Source, class Visit>
  static ALPHAFUSE_INLINE void segment(int64_t begin, int64_t end, const Source& source,
                                       const Visit& visit) {
    const int64_t blocks = (end - begin) / kLanes;
    const int64_t rows_of_block = blocks == 0 ? 0 : ceil_div(kWidth, blocks);
    int64_t d = begin, asked = 0;
    for (; d + kLanes <= end; d += kLanes) {
      for (const int64_t due = min(asked + rows_of_block, kWidth); asked < due; ++asked) {
        source.prefetch(asked, begin, end);
      }
      square<0>(d, source, visit);
      square<1>(d, source, visit);
    }
    for (; d < end; ++d) {
      visit(d, Half<0>{}, column<0>(d, source));
      visit(d, Half<1>{}, column<1>(d, source));
    }
  }

  template <int64_t kHalf, class Source, class Visit>
  static ALPHAFUSE_INLINE void square(int64_t d, const Source& source, const Visit& visit) {
    Vec v[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) v[l] = source.chunk(kHalf * kLanes + l, d);
    transpose(v);
    for (int64_t j = 0; j < kLanes; ++j) visit(d + j, Half<kHalf>{}, v[j]);
  }

  template <int64_t kHalf, class Source>
  static Vec column(int64_t d, const Source& source) {
    Vec v = {};
    for (int64_t l = 0; l < kLanes; ++l) v[l] = source.element(kHalf * kLanes + l, d);
    return v;
  }

  const Tables& tables_;
  // Where element d = 0 of the fused row would be in each table.
  int64_t semantic_[kWidth], id_[kWidth];
};

// kWidth rows from `first` on, as far as the catalog goes.
inline Strip strip_from(const Tables& tables, int64_t first) {
  const int64_t from = min(first, tables.rows - 1);
  return Strip(tables, from, tables.rows - from);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
