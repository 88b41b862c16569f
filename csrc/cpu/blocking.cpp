#include "cpu/blocking.h"

#include <unistd.h>

#include <algorithm>

namespace alphafuse {
namespace {

constexpr int64_t kItemStep = 64;   // a multiple of every kWidth
constexpr int64_t kQueryStep = 24;  // a multiple of every kQueries

int64_t cache_bytes(int name, int64_t otherwise) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

int64_t stepped(int64_t count, int64_t step, int64_t limit) {
  return std::clamp(count / step * step, step, limit);
}

}  // namespace

Blocking blocking(int64_t dim, int64_t bytes) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t first_level = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  static const int64_t second_level = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10);
#else
  constexpr int64_t first_level = 32 << 10, second_level = 512 << 10;
#endif
  const int64_t row_bytes = dim * bytes;
  return {stepped(second_level / 2 / (2 * row_bytes), kItemStep, 8 * kItemStep),
          stepped(first_level / 2 / row_bytes, kQueryStep, 4 * kQueryStep)};
}

}  // namespace alphafuse
