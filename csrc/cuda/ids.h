// What ops do with ids before they use them.
#pragma once

#include <string>

#include "array.h"
#include "launch.h"

namespace alphafuse {
namespace cuda {

// Ends the stream's work with an error that names the first id found outside [min_id, max_id]: an
// exception of the emulator, on a GPU one of the calls that follow. As check_ids() of ../ids.h.
void check_ids(std::string argument, Array<const int64_t, kCount> ids, int64_t min_id,
               int64_t max_id, Launch& launch);

// The ids 0 .. max_id, checked before, in ascending order, and of each its place in the list; equal
// ones in the order of the list. Scratch memory: 8 bytes an id and what a radix sort takes.
void group_ids(Array<const int64_t, kCount> ids, int64_t max_id, Array<int64_t, kCount> sorted,
               Array<int64_t, kCount> entries, Launch& launch);

}  // namespace cuda
}  // namespace alphafuse
