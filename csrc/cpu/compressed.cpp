// The compressed copy of a table, and how far each row is from it.
//
// Bytes: the table is read once and a quarter of it written; the arithmetic is a few operations an
// element, so the floor is that of the memory.
#include "compressed.h"

#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/strips.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

constexpr float kMaxCode = 127.0f;
// Rows below are stored as zeros: their squares would underflow.
constexpr float kMinRow = 1e-30f;

inline float sum_of(Vec v) {
  float sum = 0.0f;
  for (int64_t l = 0; l < kLanes; ++l) sum += v[l];
  return sum;
}

struct RowBound {
  float scale, residual, norm;
};

// Codes of row[0, cols), written into out[0, width), zeros beyond cols; width a multiple of kLanes.
RowBound compress_row(const float* row, int64_t cols, int64_t width, int32_t* out) {
  Vec largest = {};
  bool finite = true;
  for (int64_t d = 0; d < width; d += kLanes) {
    const Vec x = load(row + d), size = x < 0.0f ? -x : x;
    largest = size > largest ? size : largest;
    for (int64_t l = 0; l < kLanes; ++l) finite = finite && size[l] <= 0x1.fffffep127f;
  }
  float max_size = 0.0f;
  for (int64_t l = 0; l < kLanes; ++l) max_size = largest[l] > max_size ? largest[l] : max_size;

  const float root = __builtin_sqrtf(static_cast<float>(cols));
  RowBound bound = {0.0f, max_size * root, max_size * root};
  const bool coded = finite && max_size >= kMinRow;
  if (coded) bound.scale = max_size / kMaxCode;
  const float inverse = coded ? kMaxCode / max_size : 0.0f;
  // Adding 1.5 * 2^23 rounds to the nearest whole number, which is then also in the low bits.
  const Vec shift = fill(0x1.8p23f);
  Vec errors = {}, squares = {};
  for (int64_t d = 0; d < width; d += kLanes) {
    const Vec x = coded ? load(row + d) * inverse : Vec{};
    const Vec shifted = x + shift, code = shifted - shift;
    *reinterpret_cast<IntVec*>(out + d) = (IntVec)shifted - (IntVec)shift;
    errors = multiply_add(errors, x - code, x - code);
    squares = multiply_add(squares, code, code);
  }
  if (coded) {
    // In units of the scale. 1e-4: what rounding x / scale and these sums can hide.
    const float error = __builtin_sqrtf(sum_of(errors)) * 1.0001f + 1e-4f * root;
    bound.residual = bound.scale * error;
    bound.norm = bound.scale * (__builtin_sqrtf(sum_of(squares)) * 1.0001f + error);
  }
  if (!finite) bound.residual = bound.norm = __builtin_inff();
  return bound;
}

}  // namespace

void compress(const Tables& tables, Array<int8_t, kCodes> codes,
              Array<float, kBounds, kPaddedItems> bounds, int threads) {
  const Table& table = tables.semantic.data != nullptr ? tables.semantic : tables.id;
  const int64_t rows = tables.rows;
  float* const scales = bounds;
  float* const residuals = scales + bounds.size[1];
  float* const norms = residuals + bounds.size[1];
  const int64_t cols = table.cols, width = padded(cols), quads = ceil_div(cols, 4);
  constexpr int64_t kGroupsOfTask = 64;
  const int64_t groups = padded_rows(rows) / kGroup;
  auto body = [&](int64_t task) {
    const Buffer<float> row(width);
    const Buffer<int32_t> row_codes(width);
    clear(row, width);
    const int64_t end = min(groups, (task + 1) * kGroupsOfTask);
    for (int64_t group = task * kGroupsOfTask; group < end; ++group) {
      int8_t* out = codes + group * quads * 4 * kGroup;
      for (int64_t i = 0; i < kGroup; ++i) {
        const int64_t r = group * kGroup + i;
        if (r < rows) {
          widen(table.data, table.dtype, r * table.stride, cols, row, false);
        } else {
          clear(row, width);
        }
        const RowBound bound = compress_row(row, cols, width, row_codes);
        scales[r] = bound.scale;
        residuals[r] = bound.residual;
        norms[r] = bound.norm;
        for (int64_t d = 0; d < 4 * quads; ++d) {
          out[d / 4 * 4 * kGroup + i * 4 + d % 4] = static_cast<int8_t>(row_codes[d]);
        }
      }
    }
  };
  parallel(ceil_div(groups, kGroupsOfTask), threads, body);
}

void inverse_row_norms(const Tables& tables, Array<float, kItems> out, int threads) {
  constexpr int64_t kRowsOfTask = 1024;
  auto body = [&](int64_t task) {
    const int64_t end = min(tables.rows, (task + 1) * kRowsOfTask);
    for (int64_t first = task * kRowsOfTask; first < end; first += kWidth) {
      const Strip strip = strip_from(tables, first), next = strip_from(tables, first + kAhead);
      Vec squares[2] = {};
      strip.columns(next, [&](int64_t, auto half, Vec column) {
        squares[half.value] = multiply_add(squares[half.value], column, column);
      });
      float found[kWidth];
      store(found, inverse_norms(squares[0]));
      store(found + kLanes, inverse_norms(squares[1]));
      copy(out + first, found, min(kWidth, end - first));
    }
  };
  parallel(ceil_div(tables.rows, kRowsOfTask), threads, body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
