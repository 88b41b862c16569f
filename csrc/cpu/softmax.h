// A running log-sum-exp of the scores of one query.
#pragma once

#include <math.h>

#include "cpu/exponential.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// The sum is that of exp(score - maximum), in double so that a million terms lose nothing.
struct Softmax {
  float maximum;
  double sum;
};

inline void add(Softmax& softmax, float maximum, double sum) {
  if (maximum > softmax.maximum) {
    softmax.sum *= ::exp(static_cast<double>(softmax.maximum) - static_cast<double>(maximum));
    softmax.maximum = maximum;
  } else if (maximum < softmax.maximum) {
    sum *= ::exp(static_cast<double>(maximum) - static_cast<double>(softmax.maximum));
  }
  softmax.sum += sum;
}

// `count` is a whole number of kWidth.
inline void add_row(Softmax& softmax, const float* scores, int64_t count) {
  const float largest = row_max(scores, count);
  const float maximum = largest > softmax.maximum ? largest : softmax.maximum;
  const float shift = maximum == -__builtin_inff() ? 0.0f : maximum;
  add(softmax, maximum, static_cast<double>(row_sum_exp(scores, count, shift)));
}

inline float log_of(const Softmax& softmax) { return static_cast<float>(::log(softmax.sum)); }

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
