#include "cpu/memory.h"

#include <cstdlib>
#include <new>

namespace alphafuse {

namespace {
constexpr std::size_t kAlignment = 64;
}

void* allocate(std::size_t bytes) {
  const std::size_t rounded = (bytes / kAlignment + 1) * kAlignment;
  void* data = std::aligned_alloc(kAlignment, rounded);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

void release(void* data) { std::free(data); }

}  // namespace alphafuse
