#include "cuda/grouping.cuh"

namespace alphafuse {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kThreads) join_runs_kernel(RunSums sums) {
  const int team = static_cast<int>(threadIdx.x) / sums.team;
  const int lane = static_cast<int>(threadIdx.x) % sums.team;
  const int64_t teams = kThreads / sums.team;
  for (int64_t w = teams * blockIdx.x + team; w < sums.windows; w += teams * gridDim.x) {
    const int64_t begin = w * kWindow, end = begin + kWindow;
    const int64_t row = sums.row(end - 1);
    const bool begins_here = sums.row(begin) != row || sums.row(begin - 1) != row;
    if (row < 0 || row >= sums.groups.num_rows || sums.row(end) != row || !begins_here) continue;
    for (int64_t column = lane; column < sums.cols; column += sums.team) {
      float sum = sums.going(w)[column];
      for (int64_t next = w + 1; next < sums.windows && sums.row(next * kWindow) == row; ++next) {
        sum += sums.coming(next)[column];
      }
      sums.out[row * sums.cols + column] = sum;
    }
  }
}

}  // namespace

void enqueue_join(Launch& launch, const char* op, const RunSums& sums) {
  enqueue(launch, op, join_runs_kernel, grid_of(sums.windows, kThreads / sums.team), kThreads, 0,
          sums);
}

}  // namespace cuda
}  // namespace alphafuse
