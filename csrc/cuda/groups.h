// Entries (places in a list of ids) brought together by id, as a device holds them: how many ids
// differ is known to the device only, and nobody waits to learn it.
#pragma once

#include <cstdint>

namespace alphafuse {
namespace cuda {

// Entry entries[i] belongs to row rows[i] of a gradient of `num_rows` rows. Rows ascend, entries of
// one row are in the order of the list; rows from num_rows on, those of the padding, come last and
// are nobody's.
struct Groups {
  int64_t count;
  const int64_t* rows;
  const int64_t* entries;
  int64_t num_rows;
};

}  // namespace cuda
}  // namespace alphafuse
