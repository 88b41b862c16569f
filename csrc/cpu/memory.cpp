#include "cpu/memory.h"

#include <stdlib.h>

#include <new>

namespace alphafuse {

namespace {
constexpr std::size_t kAlignment = 64;
}

void* allocate(std::size_t bytes) {
  // Not std::aligned_alloc, which older versions of macOS lack.
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, bytes) != 0) throw std::bad_alloc();
  return data;
}

void release(void* data) noexcept { free(data); }

}  // namespace alphafuse
