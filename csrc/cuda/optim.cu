// Steps of optimizers on the rows that a sparse gradient holds: a warp for each row.
#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int64_t kRowsOfBlock = kThreads / kWarpLanes;

// The rows of a parameter that are stepped, and their gradient.
struct Touched {
  const int64_t* ids;
  int64_t count;
  const void* grad;
  DType grad_dtype;
  void* values;
  DType dtype;
  int64_t rows, cols;

  // The row that gradient `i` is of: above the one before it, and there.
  __device__ int64_t row(int64_t i) const {
    const int64_t least = i == 0 ? 0 : ids[i - 1] + 1;
    if (ids[i] < least || ids[i] >= rows) fail_index("gradient", ids[i], i, least, rows - 1);
    return ids[i];
  }
  __device__ float gradient(int64_t i, int64_t column) const {
    return load(grad, grad_dtype, i * cols + column);
  }
  __device__ void add(int64_t row, int64_t column, float value) const {
    const int64_t at = row * cols + column;
    store(values, dtype, at, load(values, dtype, at) + value);
  }
};

Touched touched(const Array<const int64_t, kCount>& ids,
                const FloatArray<const void, kCount, kNullDim>& grad,
                const FloatArray<void, kItems, kNullDim>& parameter) {
  return {ids,       ids.size[0],     grad.data,         grad.dtype,
          parameter, parameter.dtype, parameter.size[0], parameter.size[1]};
}

// step(i, lane) of every gradient, by the lanes of a warp.
template <class Step>
__device__ inline void each_row(const Touched& touched, const Step& step) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  for (int64_t i = kRowsOfBlock * blockIdx.x + warp; i < touched.count;
       i += kRowsOfBlock * gridDim.x) {
    step(i, lane);
  }
}

struct Adam {
  float *exp_avg, *exp_avg_sq;
  float step_size, gain1, gain2, eps;
};

__global__ void __launch_bounds__(kThreads) lazy_adam_kernel(Touched touched, Adam adam) {
  each_row(touched, [&](int64_t i, int lane) {
    const int64_t row = touched.row(i);
    for (int64_t column = lane; column < touched.cols; column += kWarpLanes) {
      const int64_t at = row * touched.cols + column;
      const float grad = touched.gradient(i, column);
      const float m = adam.exp_avg[at] + (grad - adam.exp_avg[at]) * adam.gain1;
      const float v = adam.exp_avg_sq[at] + (grad * grad - adam.exp_avg_sq[at]) * adam.gain2;
      adam.exp_avg[at] = m;
      adam.exp_avg_sq[at] = v;
      touched.add(row, column, -adam.step_size * (m / (sqrtf(v) + adam.eps)));
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    row_wise_adagrad_kernel(Touched touched, float* sum, float learning_rate, float eps) {
  each_row(touched, [&](int64_t i, int lane) {
    const int64_t row = touched.row(i);
    float squares = 0.0f;
    for (int64_t column = lane; column < touched.cols; column += kWarpLanes) {
      const float grad = touched.gradient(i, column);
      squares += grad * grad;
    }
    squares = sum_lanes<kWarpLanes>(squares);
    const float total = sum[row] + squares / static_cast<float>(touched.cols);
    __syncwarp();  // before the first lane writes what all have read
    if (lane == 0) sum[row] = total;
    const float by = -learning_rate / (sqrtf(total) + eps);
    for (int64_t column = lane; column < touched.cols; column += kWarpLanes) {
      touched.add(row, column, by * touched.gradient(i, column));
    }
  });
}

}  // namespace

void lazy_adam(Array<const int64_t, kCount> ids, FloatArray<const void, kCount, kNullDim> grad,
               FloatArray<void, kItems, kNullDim> parameter, Array<float, kItems, kNullDim> exp_avg,
               Array<float, kItems, kNullDim> exp_avg_sq, double step_size, double beta1,
               double beta2, double eps, Launch& launch) {
  if (launch.measuring() || ids.size[0] == 0) return;
  const Adam adam{exp_avg,
                  exp_avg_sq,
                  static_cast<float>(step_size),
                  static_cast<float>(1 - beta1),
                  static_cast<float>(1 - beta2),
                  static_cast<float>(eps)};
  enqueue(launch, "lazy_adam", lazy_adam_kernel, grid_of(ids.size[0], kRowsOfBlock), kThreads, 0,
          touched(ids, grad, parameter), adam);
}

void row_wise_adagrad(Array<const int64_t, kCount> ids,
                      FloatArray<const void, kCount, kNullDim> grad,
                      FloatArray<void, kItems, kNullDim> parameter, Array<float, kItems> sum,
                      double learning_rate, double eps, Launch& launch) {
  if (launch.measuring() || ids.size[0] == 0) return;
  enqueue(launch, "row_wise_adagrad", row_wise_adagrad_kernel, grid_of(ids.size[0], kRowsOfBlock),
          kThreads, 0, touched(ids, grad, parameter), sum, static_cast<float>(learning_rate),
          static_cast<float>(eps));
}

}  // namespace cuda
}  // namespace alphafuse
