// The range check of every op that takes ids.
#pragma once

#include <cstdint>

namespace alphafuse {

// Throws std::out_of_range (an IndexError in Python) naming the first id outside [min_id, max_id].
void check_ids(const char* argument, const int64_t* ids, int64_t count, int64_t min_id,
               int64_t max_id);

}  // namespace alphafuse
