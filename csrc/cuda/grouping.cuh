// Sums of entries by row: the gradient of whatever gathers rows. In a fixed order, without atomics,
// and with the work spread evenly however often one id comes.
//
// Entries, sorted by row, are cut into windows of equal length; a team of lanes sums the runs of one
// window. A run that goes on over the end of its window leaves a part for each window it touches, and
// a second kernel adds these up in order. Scratch memory: 2 * ceil(count / kWindow) * cols floats.
#pragma once

#include "cuda/groups.h"
#include "cuda/rows.cuh"

namespace alphafuse {
namespace cuda {

constexpr int64_t kWindow = 32;  // entries
constexpr int kColsOfLane = 4;   // at a time

inline int64_t windows_of(const Groups& groups) { return ceil_div(groups.count, kWindow); }
inline int64_t scratch_of_sums(const Groups& groups, int64_t cols) {
  return 2 * windows_of(groups) * cols;
}

// Neighbouring lanes that share the columns of a row: a power of two.
inline int team_of(int64_t cols) {
  int lanes = 1;
  while (lanes < kWarpLanes && lanes * kColsOfLane < cols) lanes *= 2;
  return lanes;
}

// partial: for each window (cols,) of the run that comes in from the window before, and then for each
// window (cols,) of the run that begins in it and goes on.
struct RunSums {
  Groups groups;
  int64_t cols, windows;
  int team;
  float* partial;
  float* out;

  __device__ int64_t row(int64_t i) const {
    return i >= 0 && i < groups.count ? groups.rows[i] : -1;
  }
  __device__ float* coming(int64_t window) const { return partial + window * cols; }
  __device__ float* going(int64_t window) const { return partial + (windows + window) * cols; }
};

__device__ inline void write_sum(const float (&sum)[kColsOfLane], int64_t column, int64_t cols,
                                 float* to) {
#pragma unroll
  for (int j = 0; j < kColsOfLane; ++j) {
    if (column + j < cols) to[column + j] = sum[j];
  }
}

// Source: __device__ void read(int64_t entry, int64_t column, float (&values)[kColsOfLane]) const;
// values of columns from `cols` on are ignored.
template <class Source>
__global__ void __launch_bounds__(kThreads) sum_runs_kernel(RunSums sums, Source source) {
  const int team = static_cast<int>(threadIdx.x) / sums.team;
  const int lane = static_cast<int>(threadIdx.x) % sums.team;
  const int64_t teams = kThreads / sums.team;
  const Groups& groups = sums.groups;
  for (int64_t w = teams * blockIdx.x + team; w < sums.windows; w += teams * gridDim.x) {
    const int64_t begin = w * kWindow, end = min(begin + kWindow, groups.count);
    for (int64_t column = lane * kColsOfLane; column < sums.cols;
         column += sums.team * kColsOfLane) {
      float sum[kColsOfLane] = {};
      bool comes_in = sums.row(begin - 1) == sums.row(begin);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = groups.rows[i];
        if (row >= groups.num_rows) break;
        float values[kColsOfLane];
        source.read(groups.entries[i], column, values);
#pragma unroll
        for (int j = 0; j < kColsOfLane; ++j) sum[j] += values[j];
        const bool goes_on = sums.row(i + 1) == row;
        if (goes_on && i + 1 < end) continue;
        write_sum(sum, column, sums.cols,
                  comes_in  ? sums.coming(w)
                  : goes_on ? sums.going(w)
                            : sums.out + row * sums.cols);
        comes_in = false;
#pragma unroll
        for (int j = 0; j < kColsOfLane; ++j) sum[j] = 0.0f;
      }
    }
  }
}

// Adds up the runs that begin in one window and end in another.
void enqueue_join(Launch& launch, const char* op, const RunSums& sums);

// Rows of `out` (groups.num_rows, cols) that have entries are written, others left as they are.
template <class Source>
void enqueue_sums(Launch& launch, const char* op, const Groups& groups, const Source& source,
                  int64_t cols, float* partial, float* out) {
  if (groups.count == 0) return;
  const RunSums sums{groups, cols, windows_of(groups), team_of(cols), partial, out};
  enqueue(launch, op, sum_runs_kernel<Source>, grid_of(sums.windows, kThreads / sums.team),
          kThreads, 0, sums, source);
  enqueue_join(launch, op, sums);
}

}  // namespace cuda
}  // namespace alphafuse
