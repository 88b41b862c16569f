// The item table as the kernels see it: two arrays, read where they lie and never fused in memory.
//
// Plain structs without member functions: this header is compiled for several instruction sets, and
// an inline function with one name in all of them would be kept by the linker only once.
#pragma once

#include <cstdint>

namespace alphafuse {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// One of the two arrays, row-major; `data` is null where there is none. `stride` counts elements
// from one row to the next.
struct Table {
  const void* data;
  DType dtype;
  int64_t stride;
  int64_t cols;
};

// A catalog, or a shard of one: rows `first_id .. first_id + rows - 1`. Results of shards can be
// merged into those of the whole catalog.
struct Tables {
  Table semantic;
  Table id;
  int64_t rows;
  int64_t first_id;
  int64_t dim;          // columns of a fused row
  int64_t null_offset;  // the first null column; those of `id` are [null_offset, dim)
  bool add;             // the null columns also have semantic values, and the two are added
  bool cosine;          // rows are divided by their norm
};

// Fills in `dim` and `null_offset`. Throws std::invalid_argument if the shapes do not fit.
Tables make_tables(const Table& semantic, const Table& id, int64_t rows, int64_t first_id, bool add,
                   bool cosine);

}  // namespace alphafuse
