#include "cuda/sort.cuh"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#include <numeric>
#include <vector>
#endif

namespace alphafuse {
namespace cuda {

#if defined(__CUDACC__)

std::size_t sort_bytes(const Launch& launch, const char* op, int64_t count) {
  const OnDevice on(launch);
  std::size_t bytes = 0;
  const int64_t* const in = nullptr;
  int64_t* const out = nullptr;
  check(op, cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, in, out, count));
  return bytes;
}

void sort_pairs(Launch& launch, const char* op, const int64_t* keys, const int64_t* values,
                int64_t count, int bits, int64_t* sorted_keys, int64_t* sorted_values,
                void* scratch, std::size_t scratch_bytes) {
  const OnDevice on(launch);
  check(op, cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, keys, sorted_keys, values,
                                            sorted_values, count, 0, bits,
                                            static_cast<cudaStream_t>(launch.stream())));
}

#else

std::size_t sort_bytes(const Launch&, const char*, int64_t) { return 0; }

// By as many bits of a key as a radix sort looks at.
void sort_pairs(Launch&, const char*, const int64_t* keys, const int64_t* values, int64_t count,
                int bits, int64_t* sorted_keys, int64_t* sorted_values, void*, std::size_t) {
  const int64_t mask = (int64_t{1} << bits) - 1;
  std::vector<int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
  for (const int64_t from : order) {
    *sorted_keys++ = keys[from];
    *sorted_values++ = values[from];
  }
}

#endif

}  // namespace cuda
}  // namespace alphafuse
