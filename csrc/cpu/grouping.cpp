#include "cpu/grouping.h"

#include <algorithm>

namespace alphafuse {
namespace {

// Stable counting sort of the entries by one digit of their ids.
void sort_by_digit(const int64_t* ids, int shift, int64_t buckets, const std::vector<int64_t>& from,
                   std::vector<int64_t>& to) {
  std::vector<int64_t> begin(static_cast<std::size_t>(buckets) + 1, 0);
  const int64_t mask = buckets - 1;
  const auto digit = [&](int64_t entry) {
    return static_cast<std::size_t>((ids[entry] >> shift) & mask);
  };
  for (const int64_t entry : from) ++begin[digit(entry) + 1];
  for (std::size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
  for (const int64_t entry : from) to[static_cast<std::size_t>(begin[digit(entry)]++)] = entry;
}

}  // namespace

Grouping::Grouping(const int64_t* ids, int64_t places, int64_t first_id, int64_t rows, bool dense)
    : places_(places), first_id_(first_id), rows_(rows), dense_(dense) {
  constexpr int kDigit = 11;
  for (int64_t i = 0; i < places; ++i) {
    if (ids[i] >= first_id && ids[i] < first_id + rows) entries_.push_back(i);
  }
  std::vector<int64_t> sorted(entries_.size());
  for (int shift = 0; ((first_id + rows - 1) >> shift) > 0; shift += kDigit) {
    sort_by_digit(ids, shift, int64_t{1} << kDigit, entries_, sorted);
    entries_.swap(sorted);
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const int64_t id = ids[entries_[i]];
    if (ids_.empty() || ids_.back() != id) {
      ids_.push_back(id);
      offsets_.push_back(static_cast<int64_t>(i));
    }
  }
  offsets_.push_back(static_cast<int64_t>(entries_.size()));
}

void Grouping::copy_ids(int64_t* out) const { std::copy(ids_.begin(), ids_.end(), out); }

}  // namespace alphafuse
