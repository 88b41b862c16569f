// The k best (score, id) pairs seen so far, in the order of the project: score downward, then id
// upward, NaN last.
#pragma once

#include <cstdint>

namespace alphafuse {

// A heap in memory that the caller owns; the worst pair is at its root.
struct TopList {
  float* scores;
  int64_t* ids;
  int64_t capacity;
  int64_t size;
};

// Takes the pair in if there is room or if it is ahead of the worst one, which it replaces.
void offer(TopList& list, float score, int64_t id);

// The first k pairs of several lists, in order; -inf and -1 after the last.
void merge(const TopList* lists, int64_t count, int64_t stride, int64_t k, float* scores,
           int64_t* ids);

}  // namespace alphafuse
