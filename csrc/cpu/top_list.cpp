#include "cpu/top_list.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace alphafuse {
namespace {

bool ahead(float score, int64_t id, float other_score, int64_t other_id) {
  const bool is_nan = std::isnan(score), other_is_nan = std::isnan(other_score);
  if (is_nan != other_is_nan) return other_is_nan;
  if (is_nan || score == other_score) return id < other_id;
  return score > other_score;
}

void swap_pairs(TopList& list, int64_t i, int64_t j) {
  std::swap(list.scores[i], list.scores[j]);
  std::swap(list.ids[i], list.ids[j]);
}

bool ahead_in(const TopList& list, int64_t i, int64_t j) {
  return ahead(list.scores[i], list.ids[i], list.scores[j], list.ids[j]);
}

void sift_up(TopList& list, int64_t i) {
  while (i > 0) {
    const int64_t parent = (i - 1) / 2;
    if (!ahead_in(list, parent, i)) return;
    swap_pairs(list, i, parent);
    i = parent;
  }
}

void sift_down(TopList& list, int64_t i) {
  for (;;) {
    int64_t worst = i;
    for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < list.size; ++child) {
      if (ahead_in(list, worst, child)) worst = child;
    }
    if (worst == i) return;
    swap_pairs(list, i, worst);
    i = worst;
  }
}

}  // namespace

void offer(TopList& list, float score, int64_t id) {
  if (list.size < list.capacity) {
    list.scores[list.size] = score;
    list.ids[list.size] = id;
    sift_up(list, list.size++);
  } else if (ahead(score, id, list.scores[0], list.ids[0])) {
    list.scores[0] = score;
    list.ids[0] = id;
    sift_down(list, 0);
  }
}

void merge(const TopList* lists, int64_t count, int64_t stride, int64_t k, float* scores,
           int64_t* ids) {
  std::vector<std::pair<float, int64_t>> all;
  for (int64_t part = 0; part < count; ++part) {
    const TopList& list = lists[part * stride];
    for (int64_t i = 0; i < list.size; ++i) all.emplace_back(list.scores[i], list.ids[i]);
  }
  const int64_t found = std::min(k, static_cast<int64_t>(all.size()));
  std::partial_sort(all.begin(), all.begin() + found, all.end(), [](const auto& a, const auto& b) {
    return ahead(a.first, a.second, b.first, b.second);
  });
  const std::pair<float, int64_t> filler{-std::numeric_limits<float>::infinity(), -1};
  for (int64_t i = 0; i < k; ++i) {
    const auto& [score, id] = i < found ? all[static_cast<std::size_t>(i)] : filler;
    // One NaN for all: which of two that meet in a sum is passed on is up to the compiler.
    scores[i] = std::isnan(score) ? std::numeric_limits<float>::quiet_NaN() : score;
    ids[i] = id;
  }
}

}  // namespace alphafuse
