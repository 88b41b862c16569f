#include "ids.h"

#include <stdexcept>
#include <string>

namespace alphafuse {

namespace {

[[noreturn]] void refuse(const char* argument, int64_t id, int64_t place, int64_t min_id,
                         int64_t max_id) {
  throw std::out_of_range(std::string(argument) + ": got " + std::to_string(id) + " at position " +
                          std::to_string(place) + "; expected " + std::to_string(min_id) +
                          " <= id <= " + std::to_string(max_id));
}

}  // namespace

void check_ids(const char* argument, const int64_t* ids, int64_t count, int64_t min_id,
               int64_t max_id) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < min_id || ids[i] > max_id) refuse(argument, ids[i], i, min_id, max_id);
  }
}

void check_ascending(const char* argument, const int64_t* ids, int64_t count, int64_t max_id) {
  int64_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < next || ids[i] > max_id) refuse(argument, ids[i], i, next, max_id);
    next = ids[i] + 1;
  }
}

}  // namespace alphafuse
