// Rows as tiles read them: of the two tables, fused, or of the queries; into shared memory, in pieces
// of 16 bytes, whatever their types, sizes and alignment.
//
// The columns of a tile's row, its depth, are those of the semantic rows and then those of the ID
// embeddings, each filled up with zeros to a whole step of a multiplication; and the queries lie the
// same way. So fusion costs nothing: "concat" is one product over both, and with "add", whose null
// columns meet both tables, q (s + e) = q s + q e. (Where a tile holds float32, the two are added on
// the way instead, which halves the depth and is the sum the CPU makes.)
#pragma once

#include "cuda/device.cuh"

namespace alphafuse {
namespace cuda {

constexpr int kPieceBytes = 16;
constexpr int kStepBytes = 32;   // of a row that one mma multiplies
constexpr int kSliceBytes = 64;  // of a row that are in shared memory at a time
constexpr int kPiecesOfSlice = kSliceBytes / kPieceBytes;
constexpr int kSlicePitch =
    kSliceBytes + kPieceBytes;  // an odd number of pieces: eight rows lie in
                                // different banks

// How a slice of a tile's rows lies in shared memory: row after row, for ldmatrix and for threads ...
template <int kRows>
struct RowsOfSlice {
  static constexpr int kPitch = kSlicePitch, kPieceStride = kPieceBytes;
  static constexpr int kBytes = kRows * kPitch;
};

// ... or, for wgmma, the first piece of every row, then the second: eight of them are what it reads at
// a time. The gap keeps the pieces of a row, which are written side by side, in different banks.
template <int kRows>
struct PiecesOfSlice {
  static constexpr int kPitch = kPieceBytes, kPieceStride = (kRows + 2) * kPieceBytes;
  static constexpr int kBytes = kPiecesOfSlice * kPieceStride;
};

// Columns that lie next to each other in memory.
struct Part {
  const void* data;
  DType dtype;
  int64_t stride;  // elements from one row to the next
  int64_t cols;
  bool copied;   // a piece can be copied as it is, 16 bytes at a multiple of 16
  bool vectors;  // as many elements as a piece has can be read at once
};

constexpr int kNoSecond = 0x7fffffff;  // where a second part begins that is empty

struct Rows {
  Part first, second;
  int64_t count;
  int second_from;      // where the second part begins in the depth
  bool sum;             // it is added to what the first has there
  const float* scales;  // of each row; null: 1

  void scale(const float* by) {
    scales = by;
    if (by != nullptr) first.copied = second.copied = false;
  }
};

// The depth of a tile in elements of the type that it holds.
struct Depth {
  int slices;
  int second_from;
  bool sum;
};

template <class Element>
Depth depth_of(const Tables& tables) {
  constexpr int kStep = kStepBytes / sizeof(Element), kSlice = kSliceBytes / sizeof(Element);
  const bool sum = tables.add && sizeof(Element) == sizeof(float);
  const int64_t first = ceil_div(tables.semantic.cols, kStep) * kStep;
  const int64_t whole = sum ? tables.dim : first + ceil_div(tables.id.cols, kStep) * kStep;
  return {static_cast<int>(ceil_div(whole, kSlice)),
          static_cast<int>(sum ? tables.null_offset : first), sum};
}

template <class Element>
Part part_of(const void* data, DType dtype, int64_t stride, int64_t cols) {
  constexpr int kPiece = kPieceBytes / sizeof(Element);
  const auto address = reinterpret_cast<uintptr_t>(data);
  const int64_t bytes = kPiece * size_of(dtype);  // of a piece where it lies
  const int64_t aligned = min(bytes, 16);
  const bool vectors = address % aligned == 0 && stride * size_of(dtype) % aligned == 0;
  return {data, dtype, stride, cols, vectors && dtype == dtype_of<Element>(), vectors};
}

template <class Element>
Rows rows_of_tables(const Tables& tables, const Depth& depth) {
  const auto part = [&](const Table& table) {
    Part of = part_of<Element>(table.data, table.dtype, table.stride, table.cols);
    if (depth.sum) of.copied = false;
    return of;
  };
  return {part(tables.semantic), part(tables.id), tables.rows,
          depth.second_from,     depth.sum,       nullptr};
}

// With the columns of fused rows, for read_fused().
template <class Element>
Rows rows_of_columns(const Tables& tables) {
  return rows_of_tables<Element>(tables, {0, static_cast<int>(tables.null_offset), tables.add});
}

// Queries (batch, dim), their columns where those of the tables are that they meet.
template <class Element>
Rows rows_of_queries(const Tables& tables, const Depth& depth, const void* queries, DType dtype,
                     int64_t batch) {
  const auto* const bytes = static_cast<const unsigned char*>(queries);
  const auto part = [&](int64_t from, int64_t cols) {
    return part_of<Element>(bytes + from * size_of(dtype), dtype, tables.dim, cols);
  };
  if (depth.sum) return {part(0, tables.dim), part(0, 0), batch, kNoSecond, false, nullptr};
  return {part(0, tables.semantic.cols),
          part(tables.null_offset, tables.id.cols),
          batch,
          depth.second_from,
          false,
          nullptr};
}

// --- On the device --------------------------------------------------------------------------------

template <class Element>
union Piece {
  uint4 bits;
  Element elements[kPieceBytes / sizeof(Element)];
  __device__ Piece() : bits{0, 0, 0, 0} {}
};

// `n` elements from `column` on of a row that exists, zeros from `cols` on, into values.
template <int n>
__device__ inline void read(const Part& part, int64_t row, int64_t column, float (&values)[n]) {
  const int64_t at = row * part.stride + column;
  if (part.vectors && column >= 0 && column + n <= part.cols && column % n == 0) {
    if (part.dtype == DType::kFloat32) {
      const auto* const from =
          reinterpret_cast<const float4*>(static_cast<const float*>(part.data) + at);
#pragma unroll
      for (int i = 0; i < n / 4; ++i) {
        const float4 four = from[i];
        values[4 * i] = four.x;
        values[4 * i + 1] = four.y;
        values[4 * i + 2] = four.z;
        values[4 * i + 3] = four.w;
      }
    } else {
      const auto* const from =
          reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(part.data) + at);
#pragma unroll
      for (int i = 0; i < n / 4; ++i) {
        const uint2 four = from[i];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t word = j < 2 ? four.x : four.y;
          values[4 * i + j] = float_of_half(word >> 16 * (j % 2), part.dtype);
        }
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const bool there = column + i >= 0 && column + i < part.cols;
    values[i] = there ? load(part.data, part.dtype, at + i) : 0.0f;
  }
}

// Columns [column, column + n) of a fused row that exists.
template <int n>
__device__ inline void read_fused(const Rows& rows, int64_t row, int column, float (&values)[n]) {
  const bool meets_second = rows.second.cols > 0 && column + n > rows.second_from;
  if (column < rows.first.cols) {
    read(rows.first, row, column, values);
    if (!meets_second) return;
    float more[n];
    read(rows.second, row, column - rows.second_from, more);
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] += more[j];
  } else {
    read(rows.second, row, column - rows.second_from, values);
  }
}

// A window of rows, on its way from global to shared memory, in pieces: `kRowsOfTile` rows of
// `kPieces` pieces; in shared memory rows are `kPitch` bytes apart, and the pieces of one
// `kPieceStride`. Between begin() and end() there is time for
// other work: what cannot be copied as it is waits in registers.
template <class Element, int kRowsOfTile, int kThreadsOfTile, int kPieces = kPiecesOfSlice,
          int kPitch = kSlicePitch, int kPieceStride = kPieceBytes>
class Loader {
 public:
  static constexpr int kPiece = kPieceBytes / sizeof(Element);  // elements

  // From now on, the rows from `first_row` on, of which there is one at least.
  __device__ void aim(const Rows& rows, int64_t first_row) {
    first_ = address(rows.first, first_row + row(0));
    second_ = address(rows.second, first_row + row(0));
    left_ = static_cast<int>(min(rows.count - first_row, kRowsOfTile));
  }

  // The rows of the next tile, which begins with `first_row`, another that there is.
  __device__ void aim_next(const Rows& rows, int64_t first_row) {
    first_ += static_cast<uintptr_t>(kRowsOfTile * rows.first.stride) * kElementBytes;
    second_ += static_cast<uintptr_t>(kRowsOfTile * rows.second.stride) * kElementBytes;
    left_ = static_cast<int>(min(rows.count - first_row, kRowsOfTile));
  }

  // Of these, the columns from `first_k` on, a multiple of kPiece. A Column is an integer that has
  // room for all of them.
  template <class Column>
  __device__ void begin(const Rows& rows, int64_t first_row, Column first_k, unsigned char* to) {
    const Window<Column> window(rows, first_k);
    copied_ = window.second ? rows.second.copied : rows.first.copied;
    to += place(0);
    if (copied_) {
      // Nothing is read where there is no row: the copy writes zeros. A copy of all or nothing is one
      // instruction with a predicate; of a part of a piece it is several.
      const Column left = window.cols - window.column;
      if (left >= kPiece || left <= 0) {
        copy_rows(rows, window, left > 0, [](bool there) { return there ? kPieceBytes : 0; }, to);
      } else {
        const int bytes = static_cast<int>(left) * kElementBytes;
        copy_rows(rows, window, true, [=](bool there) { return there ? bytes : 0; }, to);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        held_[i] = row(i) < left_ ? convert(rows, window, first_row + row(i)) : uint4{0, 0, 0, 0};
      }
    }
  }

  // The same of any rows, without aim: row r of the tile is row_of(r), or zeros if that is below 0.
  template <class RowOf>
  __device__ void begin_gather(const Rows& rows, const RowOf& row_of, int first_k,
                               unsigned char* to) {
    const Window<int> window(rows, first_k);
    copied_ = window.second ? rows.second.copied : rows.first.copied;
    const Part& part = window.second ? rows.second : rows.first;
    const int there = static_cast<int>(min(max(window.cols - window.column, 0), kPiece));
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!is_row(row(i))) continue;
      const int64_t at = row_of(row(i));
      const bool is_there = at >= 0;
      if (copied_) {
        const uintptr_t from =
            address(part, at) + static_cast<uintptr_t>(window.column) * kElementBytes;
        copy_async(to + place(i), reinterpret_cast<const void*>(from),
                   is_there ? there * kElementBytes : 0);
      } else {
        held_[i] = is_there ? convert(rows, window, at) : uint4{0, 0, 0, 0};
      }
    }
  }

  __device__ void end(unsigned char* to) const {
    if (copied_) return;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!is_row(row(i))) continue;
      *reinterpret_cast<uint4*>(to + place(i)) = held_[i];
    }
  }

 private:
  static constexpr int kElementBytes = sizeof(Element);
  static constexpr int kRowsAtOnce = kThreadsOfTile / kPieces;
  static constexpr int kEach = (kRowsOfTile + kRowsAtOnce - 1) / kRowsAtOnce;

  static __device__ int piece() { return static_cast<int>(threadIdx.x) % kPieces; }
  static __device__ int row(int i) {
    return static_cast<int>(threadIdx.x) / kPieces + i * kRowsAtOnce;
  }
  static __device__ int place(int i) { return row(i) * kPitch + piece() * kPieceStride; }
  static __device__ bool is_row(int r) { return kRowsOfTile % kRowsAtOnce == 0 || r < kRowsOfTile; }

  // Not a pointer: of a row that does not exist it is not one.
  static __device__ uintptr_t address(const Part& part, int64_t at) {
    return reinterpret_cast<uintptr_t>(part.data) +
           static_cast<uintptr_t>(at * part.stride) * kElementBytes;
  }

  // The columns of this thread's piece: of which part, and from which column of it on.
  template <class Column>
  struct Window {
    Column k, column, cols;
    bool second;

    __device__ Window(const Rows& rows, Column first_k)
        : k(first_k + static_cast<Column>(piece() * kPiece)),
          second(!rows.sum && k >= rows.second_from) {
      column = second ? k - static_cast<Column>(rows.second_from) : k;
      cols = static_cast<Column>(second ? rows.second.cols : rows.first.cols);
    }
  };

  template <class Column, class Bytes>
  __device__ void copy_rows(const Rows& rows, const Window<Column>& window, bool has_columns,
                            const Bytes& bytes, unsigned char* to) const {
    uintptr_t from =
        (window.second ? second_ : first_) + static_cast<uintptr_t>(window.column) * kElementBytes;
    const int64_t stride = window.second ? rows.second.stride : rows.first.stride;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (is_row(row(i))) {
        copy_async(to + i * kRowsAtOnce * kPitch, reinterpret_cast<const void*>(from),
                   bytes(has_columns && row(i) < left_));
      }
      from += static_cast<uintptr_t>(kRowsAtOnce * stride) * kElementBytes;
    }
  }

  template <class Column>
  static __device__ uint4 convert(const Rows& rows, const Window<Column>& window, int64_t at) {
    Piece<Element> held;
    if (window.column >= window.cols && !rows.sum) return held.bits;
    float values[kPiece];
    read(window.second ? rows.second : rows.first, at, window.column, values);
    if (rows.sum && window.k + kPiece > rows.second_from) {
      float more[kPiece];
      read(rows.second, at, window.k - rows.second_from, more);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) values[j] += more[j];
    }
    const float scale = rows.scales == nullptr ? 1.0f : rows.scales[at];
#pragma unroll
    for (int j = 0; j < kPiece; ++j) held.elements[j] = from_float<Element>(values[j] * scale);
    return held.bits;
  }

  uintptr_t first_ = 0, second_ = 0;  // of this thread's piece of the first row, in each part
  int left_ = 0;                      // rows of the tile that there are
  uint4 held_[kEach];
  bool copied_ = true;
};

template <class Element, int kRowsOfTile, int kThreadsOfTile, class Slice>
using LoaderOf = Loader<Element, kRowsOfTile, kThreadsOfTile, kPiecesOfSlice, Slice::kPitch,
                        Slice::kPieceStride>;

}  // namespace cuda
}  // namespace alphafuse
