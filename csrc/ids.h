// The checks of ids that ops take.
#pragma once

#include <cstdint>

namespace alphafuse {

// Throws std::out_of_range (an IndexError in Python) naming the first id outside [min_id, max_id].
void check_ids(const char* argument, const int64_t* ids, int64_t count, int64_t min_id,
               int64_t max_id);

// Likewise the first id that is not above the one before it, or not in [0, max_id].
void check_ascending(const char* argument, const int64_t* ids, int64_t count, int64_t max_id);

}  // namespace alphafuse
