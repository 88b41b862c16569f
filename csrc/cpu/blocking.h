// How much of the catalog and of the queries is worked on at a time, so that it stays in the caches.
#pragma once

#include <cstdint>

namespace alphafuse {

struct Blocking {
  int64_t items;    // of a tile: its panels and its rows fill half of the second-level cache
  int64_t queries;  // scored against a tile at a time: half of the first-level cache
};

// For fused rows of `dim` columns of so many bytes, from this machine's cache sizes. Both are multiples
// of what every instruction set's product kernel takes at a time, and even.
Blocking blocking(int64_t dim, int64_t bytes = sizeof(float));

}  // namespace alphafuse
