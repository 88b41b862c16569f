#include "cpu/exclude.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ids.h"

namespace alphafuse {

bool excludes(const ExcludedIds& exclude, int64_t query, int64_t id) {
  if (exclude.offsets == nullptr) return false;
  return std::binary_search(exclude.ids + exclude.offsets[query],
                            exclude.ids + exclude.offsets[query + 1], id);
}

int64_t first_excluded(const ExcludedIds& exclude, int64_t query, int64_t id) {
  return std::lower_bound(exclude.ids + exclude.offsets[query],
                          exclude.ids + exclude.offsets[query + 1], id) -
         exclude.ids;
}

void Exclude::append_row(const int64_t* ids, int64_t count, int64_t num_embeddings) {
  const std::size_t begin = ids_.size();
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] != -1 && ids[i] != num_embeddings) ids_.push_back(ids[i]);
  }
  const auto row = ids_.begin() + static_cast<std::ptrdiff_t>(begin);
  std::sort(row, ids_.end());
  ids_.erase(std::unique(row, ids_.end()), ids_.end());
  offsets_.push_back(static_cast<int64_t>(ids_.size()));
}

Exclude Exclude::from_padded(const int64_t* ids, int64_t batch, int64_t width,
                             int64_t num_embeddings) {
  check_ids("exclude", ids, batch * width, -1, num_embeddings);
  Exclude exclude;
  for (int64_t b = 0; b < batch; ++b) exclude.append_row(ids + b * width, width, num_embeddings);
  return exclude;
}

Exclude Exclude::from_offsets(const int64_t* offsets, int64_t batch, const int64_t* ids,
                              int64_t count, int64_t num_embeddings) {
  bool rising = offsets[0] == 0 && offsets[batch] == count;
  for (int64_t b = 0; b < batch; ++b) rising = rising && offsets[b] <= offsets[b + 1];
  if (!rising) {
    const std::string total = std::to_string(count);
    throw std::invalid_argument(
        "exclude: got offsets that do not rise from 0 to the number of ids (" + total +
        "); expected offsets[0] = 0 <= offsets[1] <= ... <= offsets[B] = " + total);
  }
  check_ids("exclude", ids, count, -1, num_embeddings);
  Exclude exclude;
  for (int64_t b = 0; b < batch; ++b) {
    exclude.append_row(ids + offsets[b], offsets[b + 1] - offsets[b], num_embeddings);
  }
  return exclude;
}

}  // namespace alphafuse
