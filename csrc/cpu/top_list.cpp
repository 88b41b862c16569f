#include "cpu/top_list.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace alphafuse {
namespace {

// No plain function: what sorts by it calls no pointer.
constexpr auto ahead = [](const Scored& a, const Scored& b) {
  if (a.score > b.score) return true;
  if (a.score < b.score) return false;
  const bool is_nan = std::isnan(a.score), other_is_nan = std::isnan(b.score);
  return is_nan == other_is_nan ? a.id < b.id : other_is_nan;
};

}  // namespace

int64_t room_of(int64_t capacity) { return capacity + std::max<int64_t>(32, capacity / 2); }

void offer(TopList& list, float score, int64_t id) {
  const Scored pair{score, id};
  if (list.is_full && !ahead(pair, list.worst)) return;
  list.pairs[list.size++] = pair;
  if (list.size == room_of(list.capacity)) tighten(list);
}

void tighten(TopList& list) {
  if (list.size < list.capacity || (list.is_full && list.size == list.capacity)) return;
  std::nth_element(list.pairs, list.pairs + list.capacity - 1, list.pairs + list.size, ahead);
  list.size = list.capacity;
  list.is_full = true;
  list.worst = list.pairs[list.capacity - 1];
}

float below_best(float* scores, int64_t count, int64_t place) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  if (place > count) return lowest;
  for (int64_t i = 0; i < count; ++i) scores[i] = std::isnan(scores[i]) ? lowest : scores[i];
  std::nth_element(scores, scores + place - 1, scores + count,
                   [](float a, float b) { return a > b; });
  return std::nextafter(scores[place - 1], lowest);
}

void merge(const TopList* lists, int64_t count, int64_t stride, int64_t k, float* scores,
           int64_t* ids) {
  std::vector<Scored> all;
  for (int64_t part = 0; part < count; ++part) {
    const TopList& list = lists[part * stride];
    all.insert(all.end(), list.pairs, list.pairs + list.size);
  }
  const int64_t found = std::min(k, static_cast<int64_t>(all.size()));
  const auto end = all.begin() + found;
  if (end != all.end()) std::nth_element(all.begin(), end, all.end(), ahead);
  std::sort(all.begin(), end, ahead);
  const Scored filler{-std::numeric_limits<float>::infinity(), -1};
  for (int64_t i = 0; i < k; ++i) {
    const auto& [score, id] = i < found ? all[static_cast<std::size_t>(i)] : filler;
    // One NaN for all: which of two that meet in a sum is passed on is up to the compiler.
    scores[i] = std::isnan(score) ? std::numeric_limits<float>::quiet_NaN() : score;
    ids[i] = id;
  }
}

}  // namespace alphafuse
