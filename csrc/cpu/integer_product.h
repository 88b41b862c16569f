// The inner loop of a first pass (first_pass.h): rounded queries by codes (compressed.h).
//
// Of 16-bit numbers, or of bytes, of which a processor may multiply twice as many at once. This part
// alone is compiled for instruction sets that nothing else gains by (CMakeLists.txt).
#pragma once

#include "compressed.h"

namespace alphafuse {

// Queries in whole numbers, for one of the tables.
struct IntegerQueries {
  // `stride` from row to row: int8, or int16 with the second and third of each four exchanged, as
  // the product takes them.
  const void* numbers;
  int64_t stride;
  const int32_t* sums;  // of each row's numbers
  const float* units;   // of each row
};

struct IntegerProduct {
  int64_t bytes;  // of a query's number: 1 or 2
  // A query's largest number, and with what a code is multiplied by it at most: sums are of int32.
  float max_number, max_product;
  // out[r * out_row + i] = or += the product of query r with row first + i of the table, exact until
  // it is scaled by scales[first + i], factors[first + i] (where not null) and units[r]; in whole
  // widths of items.
  void (*run)(const CompressedTable& table, int64_t cols, const float* factors, int64_t first,
              int64_t items, const IntegerQueries& queries, int64_t rows, float* out,
              int64_t out_row, bool add);
};

}  // namespace alphafuse
