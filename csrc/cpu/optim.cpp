// Steps of optimizers on the rows that a sparse gradient holds. Each row is one thread's, and each
// number comes of the same operations, rounded one by one, whatever the instruction set.
#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "ids.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {
constexpr int64_t kRowsOfTask = 256;
constexpr int64_t kStepping = 16;  // a number of a row somewhere, beside a multiply-add
constexpr int64_t kAhead = 8;      // rows between that being stepped and that being asked for
constexpr int64_t kSums = 16;      // that a row's squares are added up in, one after the other

using Ids = Array<const int64_t, kCount>;
using Gradient = FloatArray<const void, kCount, kNullDim>;
using Parameter = FloatArray<void, kItems, kNullDim>;

template <int64_t count>
struct Count {
  static constexpr int64_t value = count;
};

// For the lambdas below, which would be functions of their own where there are two calls.
#define ALPHAFUSE_INLINE_LAMBDA __attribute__((always_inline))

// columns(first, count) for all columns of a row: whole vectors, then fours, then one by one, each
// count known to the compiler, which on its own takes no fours after vectors of 16.
template <class Columns>
ALPHAFUSE_INLINE void in_vectors(int64_t cols, const Columns& columns) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) columns(c, Count<kLanes>{});
  if constexpr (kLanes > 4) {
    for (; c + 4 <= cols; c += 4) columns(c, Count<4>{});
  }
  for (; c < cols; ++c) columns(c, Count<1>{});
}

// step(row, gradient, values) for each of the rows, with both in float32; it changes the values.
// prefetch(row) for those that come after. The processor foresees no order of rows.
template <class Prefetch, class Step>
ALPHAFUSE_INLINE void step_rows(const Ids& ids, const Gradient& grad, const Parameter& parameter,
                                int threads, const Prefetch& prefetch, const Step& step) {
  const int64_t count = ids.size[0], cols = parameter.size[1];
  check_ascending("gradient", ids, count, parameter.size[0] - 1);
  const bool widens_grad = grad.dtype != DType::kFloat32;
  const bool widens = parameter.dtype != DType::kFloat32;
  const Table rows{parameter.data, parameter.dtype, cols, cols};
  auto body = [&](int64_t task) {
    const Buffer<float> wide_grad(widens_grad ? cols : 0), wide(widens ? cols : 0);
    const int64_t end = min(count, (task + 1) * kRowsOfTask);
    for (int64_t i = task * kRowsOfTask; i < end; ++i) {
      if (i + kAhead < end) {
        prefetch_row(rows, ids[i + kAhead] * cols);
        prefetch(ids[i + kAhead]);
      }
      const int64_t row = ids[i];
      const float* gradient = static_cast<const float*>(grad.data) + (widens_grad ? 0 : i * cols);
      if (widens_grad) {
        widen(grad, grad.dtype, i * cols, cols, wide_grad, false);
        gradient = wide_grad;
      }
      if (widens) {
        widen(parameter, parameter.dtype, row * cols, cols, wide, false);
        step(row, gradient, wide);
        narrow(wide, cols, parameter, parameter.dtype, row * cols);
      } else {
        step(row, gradient, static_cast<float*>(parameter.data) + row * cols);
      }
    }
  };
  parallel(ceil_div(count, kRowsOfTask), threads_for(count * cols * kStepping, threads), body);
}

inline float square_root(float x) { return __builtin_sqrtf(x); }

}  // namespace

void lazy_adam(Array<const int64_t, kCount> ids, FloatArray<const void, kCount, kNullDim> grad,
               FloatArray<void, kItems, kNullDim> parameter, Array<float, kItems, kNullDim> exp_avg,
               Array<float, kItems, kNullDim> exp_avg_sq, double step_size, double beta1,
               double beta2, double eps, int threads) {
  const int64_t cols = parameter.size[1];
  const float gain1 = static_cast<float>(1 - beta1), gain2 = static_cast<float>(1 - beta2);
  const float by = static_cast<float>(-step_size), least = static_cast<float>(eps);
  const Table moments1{exp_avg.data, DType::kFloat32, cols, cols};
  const Table moments2{exp_avg_sq.data, DType::kFloat32, cols, cols};
  step_rows(
      ids, grad, parameter, threads,
      [&](int64_t row) ALPHAFUSE_INLINE_LAMBDA {
        prefetch_row(moments1, row * cols);
        prefetch_row(moments2, row * cols);
      },
      [&](int64_t row, const float* __restrict g, float* __restrict values) {
        float* const __restrict m = exp_avg + row * cols;
        float* const __restrict v = exp_avg_sq + row * cols;
        in_vectors(cols, [&](int64_t first, auto count) ALPHAFUSE_INLINE_LAMBDA {
          for (int64_t c = first; c < first + count.value; ++c) {
            m[c] += (g[c] - m[c]) * gain1;
            v[c] += (g[c] * g[c] - v[c]) * gain2;
            values[c] += by * (m[c] / (square_root(v[c]) + least));
          }
        });
      });
}

void row_wise_adagrad(Array<const int64_t, kCount> ids,
                      FloatArray<const void, kCount, kNullDim> grad,
                      FloatArray<void, kItems, kNullDim> parameter, Array<float, kItems> sum,
                      double learning_rate, double eps, int threads) {
  const int64_t cols = parameter.size[1];
  const float rate = static_cast<float>(-learning_rate), least = static_cast<float>(eps);
  step_rows(
      ids, grad, parameter, threads,
      [&](int64_t row) ALPHAFUSE_INLINE_LAMBDA { __builtin_prefetch(sum + row); },
      [&](int64_t row, const float* __restrict g, float* __restrict values) {
        float sums[kSums] = {};
        int64_t c = 0;
        for (; c + kSums <= cols; c += kSums) {
          for (int64_t j = 0; j < kSums; ++j) sums[j] += g[c + j] * g[c + j];
        }
        for (int64_t j = 0; c + j < cols; ++j) sums[j] += g[c + j] * g[c + j];
        for (int64_t half = kSums / 2; half > 0; half /= 2) {
          for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
        }
        sum[row] += sums[0] / static_cast<float>(cols);
        const float by = rate / (square_root(sum[row]) + least);
        for (c = 0; c < cols; ++c) values[c] += by * g[c];
      });
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
