#include "ids.h"

#include <stdexcept>
#include <string>

namespace alphafuse {

void check_ids(const char* argument, const int64_t* ids, int64_t count, int64_t least,
               int64_t greatest) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < least || ids[i] > greatest) {
      throw std::out_of_range(std::string(argument) + ": got " + std::to_string(ids[i]) +
                              " at position " + std::to_string(i) + "; expected " +
                              std::to_string(least) + " <= id <= " + std::to_string(greatest));
    }
  }
}

}  // namespace alphafuse
