// The k best (score, id) pairs seen so far, in the order of the project: score downward, then id
// upward, NaN last.
#pragma once

#include <cstdint>

namespace alphafuse {

struct Scored {
  float score;
  int64_t id;
};

// In memory that the caller owns. Pairs are collected until there is no room for another; then those
// that are not among the best are dropped, all at once: for each pair that takes a few steps, however
// long the list.
struct TopList {
  Scored* pairs;
  int64_t capacity;  // k
  int64_t size;
  bool is_full;  // pairs have been dropped: what is not ahead of `worst` cannot enter
  Scored worst;  // the last of the best of then
};

// Pairs that a list of this capacity needs memory for.
int64_t room_of(int64_t capacity);

// Takes the pair in unless it cannot enter.
void offer(TopList& list, float score, int64_t id);

// Drops what is not among the best now: `worst` is then theirs, if there are as many.
void tighten(TopList& list);

// The number next below the `place`th best of these scores, NaN last, which are reordered; -inf if
// there are fewer.
float below_best(float* scores, int64_t count, int64_t place);

// The first k pairs of several lists, in order; -inf and -1 after the last.
void merge(const TopList* lists, int64_t count, int64_t stride, int64_t k, float* scores,
           int64_t* ids);

}  // namespace alphafuse
