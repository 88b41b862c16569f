// Ids to leave out for each query, sorted.
#pragma once

#include <cstdint>
#include <vector>

namespace alphafuse {

// What kernels read: ids[offsets[b] .. offsets[b + 1]) are query b's, ascending. No offsets: none.
struct ExcludedIds {
  const int64_t* offsets;
  const int64_t* ids;
};

// Whether `id` is among query b's.
bool excludes(const ExcludedIds& exclude, int64_t query, int64_t id);
// The first place in query b's list whose id is not below `id`.
int64_t first_excluded(const ExcludedIds& exclude, int64_t query, int64_t id);

class Exclude {
 public:
  // (batch, width), row-major: -1 is a filler, `num_embeddings` padding; both are dropped.
  static Exclude from_padded(const int64_t* ids, int64_t batch, int64_t width,
                             int64_t num_embeddings);
  // offsets (batch + 1,) from 0 to `count`, never falling; ids (count,).
  static Exclude from_offsets(const int64_t* offsets, int64_t batch, const int64_t* ids,
                              int64_t count, int64_t num_embeddings);

  int64_t batch() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  ExcludedIds view() const { return {offsets_.data(), ids_.data()}; }

 private:
  Exclude() : offsets_{0} {}
  void append_row(const int64_t* ids, int64_t count, int64_t num_embeddings);

  std::vector<int64_t> offsets_;
  std::vector<int64_t> ids_;
};

}  // namespace alphafuse
