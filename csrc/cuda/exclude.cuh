// Items that a query leaves out, as an epilogue on tiles of scores reads them: a bit for each score,
// set from the query's sorted list, which is gone through once for each part of the catalog.
#pragma once

#include "cpu/exclude.h"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {

// The first place in [begin, end) of ascending `ids` that is not below `id`.
__device__ inline int64_t lower_bound(const int64_t* ids, int64_t begin, int64_t end, int64_t id) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (ids[middle] < id) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// An epilogue's part: begin() and mark() in its own begin() and visit_tile(), then has() for each
// score.
template <class Tile>
class ExcludedOfTile {
 public:
  static constexpr int kWords = Tile::kItems / 32;
  static_assert(Tile::kItems % 32 == 0, "whole words of bits");

  __host__ __device__ explicit ExcludedOfTile(SharedMemoryArena& arena)
      : next_(arena.take<int64_t>(Tile::kQueries)),
        bits_(arena.take<uint32_t>(Tile::kQueries * kWords)) {}

  __device__ void begin() { fresh_ = true; }

  // All threads call; each takes whole queries.
  __device__ void mark(const ExcludedIds& exclude, const Unit& unit, const Scores<Tile>& scores,
                       int64_t first_id) {
    if (exclude.offsets == nullptr) return;
    for (int q = static_cast<int>(threadIdx.x); q < scores.queries; q += Tile::kThreads) {
      uint32_t* const bits = bits_ + q * kWords;
      for (int w = 0; w < kWords; ++w) bits[w] = 0;
      const int64_t b = unit.first_query + q, first = first_id + scores.first_item;
      const int64_t end = exclude.offsets[b + 1];
      int64_t at = fresh_ ? lower_bound(exclude.ids, exclude.offsets[b], end, first) : next_[q];
      for (; at < end; ++at) {
        const int64_t i = exclude.ids[at] - first;
        if (i >= scores.items) break;
        bits[i / 32] |= 1u << i % 32;
      }
      next_[q] = at;
    }
    fresh_ = false;
    __syncthreads();
  }

  __device__ bool has(const ExcludedIds& exclude, int r, int c) const {
    if (exclude.offsets == nullptr) return false;
    return bits_[Tile::row(r) * kWords + Tile::col(c) / 32] >> Tile::col(c) % 32 & 1;
  }

 private:
  int64_t* next_;  // of each query, its place in its list
  uint32_t* bits_;
  bool fresh_ = true;
};

}  // namespace cuda
}  // namespace alphafuse
