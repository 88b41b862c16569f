// What ops do with ids before they use them: check their range, bring equal ones together.
#include "cuda/device.cuh"
#include "cuda/ids.h"
#include "cuda/sort.cuh"

namespace alphafuse {
namespace cuda {
namespace {

// As an argument of a kernel: the host's strings are not the device's.
struct Text {
  char characters[32];

  explicit Text(const std::string& text) : characters{} {
    for (std::size_t i = 0; i < text.size() && i + 1 < sizeof characters; ++i) {
      characters[i] = text[i];
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    check_ids_kernel(Text argument, const int64_t* ids, int64_t count, int64_t min_id,
                     int64_t max_id) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < count; i += step) {
    if (ids[i] < min_id || ids[i] > max_id) {
      fail_index(argument.characters, ids[i], i, min_id, max_id);
    }
  }
}

__global__ void __launch_bounds__(kThreads) count_up_kernel(int64_t count, int64_t* out) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < count; i += step) out[i] = i;
}

}  // namespace

void check_ids(std::string argument, Array<const int64_t, kCount> ids, int64_t min_id,
               int64_t max_id, Launch& launch) {
  const int64_t count = ids.size[0];
  if (launch.measuring() || count == 0) return;
  enqueue(launch, "check_ids", check_ids_kernel, grid_of(count), kThreads, 0, Text(argument), ids,
          count, min_id, max_id);
}

void group_ids(Array<const int64_t, kCount> ids, int64_t max_id, Array<int64_t, kCount> sorted,
               Array<int64_t, kCount> entries, Launch& launch) {
  const int64_t count = ids.size[0];
  if (count == 0) return;
  const std::size_t bytes = sort_bytes(launch, "group_ids", count);
  auto* const places = launch.scratch<int64_t>(count);
  auto* const scratch = launch.scratch<unsigned char>(static_cast<int64_t>(bytes));
  if (launch.measuring()) return;
  enqueue(launch, "group_ids", count_up_kernel, grid_of(count), kThreads, 0, count, places);
  sort_pairs(launch, "group_ids", ids, places, count, bits_of(max_id), sorted, entries, scratch,
             bytes);
}

}  // namespace cuda
}  // namespace alphafuse
