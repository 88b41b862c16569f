// Sorting on the device: CUB's radix sort; in the emulator, which cannot run CUB, a plain one that
// promises the same. Both are stable.
#pragma once

#include "cuda/device.cuh"

namespace alphafuse {
namespace cuda {

// Bytes of scratch memory that sort_pairs() needs.
std::size_t sort_bytes(const Launch& launch, const char* op, int64_t count);

// Sorts `count` keys upward, each with its value. Keys are not negative and below 2^bits. The arrays
// that are sorted are left as they are.
void sort_pairs(Launch& launch, const char* op, const int64_t* keys, const int64_t* values,
                int64_t count, int bits, int64_t* sorted_keys, int64_t* sorted_values,
                void* scratch, std::size_t scratch_bytes);

// Bits of the numbers 0 .. largest.
inline int bits_of(int64_t largest) {
  int bits = 1;
  while (largest >> bits > 0) ++bits;
  return bits;
}

}  // namespace cuda
}  // namespace alphafuse
