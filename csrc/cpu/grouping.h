// Entries (places in a list of ids) brought together by id, so that each row of a gradient is
// summed by one thread in one order.
#pragma once

#include <cstdint>
#include <vector>

namespace alphafuse {

// What kernels see: group g has the id ids[g] and the entries
// entries[offsets[g] .. offsets[g + 1]), in the order of the list; ids ascend.
struct Groups {
  int64_t count;
  const int64_t* ids;
  const int64_t* offsets;
  const int64_t* entries;
};

class Grouping {
 public:
  // Ids outside [first_id, first_id + rows), such as the padding, are dropped.
  Grouping(const int64_t* ids, int64_t count, int64_t first_id, int64_t rows);

  int64_t count() const { return static_cast<int64_t>(ids_.size()); }
  void copy_ids(int64_t* out) const;
  Groups view() const { return {count(), ids_.data(), offsets_.data(), entries_.data()}; }

 private:
  std::vector<int64_t> ids_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> entries_;
};

}  // namespace alphafuse
