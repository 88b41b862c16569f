// Arrays as they cross the border: typed, each with the sizes that its kernel names. A size that is
// named twice in one call is the same number; csrc/python/arguments.h checks it before a kernel runs.
//
// Nothing here may become a function of its own, for the reason that tables.h gives.
#pragma once

#include <cstdint>

#include "tables.h"

namespace alphafuse {

// The first size of an array takes in all dimensions before those named: ids of any shape are
// (count,), a single query (dim,) is a batch of one.
enum Size : int {
  kItems,    // rows of the tables
  kDim,      // columns of a fused row
  kNullDim,  // those of them that the ID embeddings reach
  kBatch,
  kCount,        // ids of any shape
  kLists,        // of candidates, each for a number of queries
  kListQueries,  // of one list
  kCandidates,   // of one list
  kGroups,       // of entries with the same id (grouping.h)
  kOffsets,      // one more than groups, or queries
  kEntries,      // in all groups
  kGradRows,     // of the gradient of ID embeddings: one for each group, or for each item
  kPlaces,       // of a ranking
  kCodes,        // of a compressed copy (compressed.h)
  kBounds,       // kinds of them in a compressed copy
  kPaddedItems,
  kBytes,
  kSizes,
};
constexpr const char* kSizeNames[] = {
    "items",   "dim",        "null_dim", "batch",        "count",   "lists",
    "queries", "candidates", "groups",   "offsets",      "entries", "grad_rows",
    "places",  "codes",      "bounds",   "padded_items", "bytes"};
static_assert(sizeof(kSizeNames) / sizeof(char*) == kSizes, "a name for each size");

// Contiguous, row-major. Reads as a pointer.
template <class T, Size... names>
struct Array {
  T* data;
  int64_t size[sizeof...(names)];
  __attribute__((always_inline)) operator T*() const { return data; }
};

// Of float32, bfloat16 or float16. `Void` is void, or const void for an array that is only read.
template <class Void, Size... names>
struct FloatArray {
  Void* data;
  int64_t size[sizeof...(names)];
  DType dtype;
  __attribute__((always_inline)) operator Void*() const { return data; }
};

// May be left out: then it is a null pointer, with sizes of 0.
template <class Any>
struct Optional : Any {};

}  // namespace alphafuse
