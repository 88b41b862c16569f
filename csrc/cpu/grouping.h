// Entries (places in a list of ids) brought together by id, so that each row of a gradient is
// summed by one thread in one order.
#pragma once

#include <cstdint>
#include <vector>

namespace alphafuse {

// What kernels read: group g has the id ids[g] and the entries
// entries[offsets[g] .. offsets[g + 1]), in the order of the list; ids ascend. A gradient has a row
// for each group, or (dense) for each of the `rows` items from first_id on.
struct Groups {
  int64_t count;
  const int64_t* ids;
  const int64_t* offsets;
  const int64_t* entries;
  int64_t first_id;
  int64_t rows;
  bool dense;
};

// The row of the gradient that group g writes.
__attribute__((always_inline)) inline int64_t row_of(const Groups& groups, int64_t g) {
  return groups.dense ? groups.ids[g] - groups.first_id : g;
}

class Grouping {
 public:
  // Ids outside [first_id, first_id + rows), such as the padding, are dropped.
  Grouping(const int64_t* ids, int64_t places, int64_t first_id, int64_t rows, bool dense);

  int64_t count() const { return static_cast<int64_t>(ids_.size()); }
  int64_t places() const { return places_; }  // in the list of ids
  void copy_ids(int64_t* out) const;
  Groups view() const {
    return {count(), ids_.data(), offsets_.data(), entries_.data(), first_id_, rows_, dense_};
  }

 private:
  int64_t places_, first_id_, rows_;
  bool dense_;
  std::vector<int64_t> ids_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> entries_;
};

}  // namespace alphafuse
