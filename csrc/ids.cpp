#include "ids.h"

#include <stdexcept>
#include <string>

namespace alphafuse {

void check_ids(const char* argument, const int64_t* ids, int64_t count, int64_t min_id,
               int64_t max_id) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < min_id || ids[i] > max_id) {
      throw std::out_of_range(std::string(argument) + ": got " + std::to_string(ids[i]) +
                              " at position " + std::to_string(i) + "; expected " +
                              std::to_string(min_id) + " <= id <= " + std::to_string(max_id));
    }
  }
}

}  // namespace alphafuse
