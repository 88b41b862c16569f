// Scratch memory for kernels, aligned for every vector width.
#pragma once

#include <cstddef>

namespace alphafuse {

void* allocate(std::size_t bytes);  // throws std::bad_alloc
void release(void* data) noexcept;

}  // namespace alphafuse
