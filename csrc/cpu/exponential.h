// exp of a vector, and the sums of a softmax.
#pragma once

#include "cpu/isa.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// exp(x) to about one unit in the last place, for x <= 88; 0 below -87.3; NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec min_x = fill(-87.3f), max_x = fill(88.0f);
  Vec y = x > min_x ? x : min_x;
  y = y < max_x ? y : max_x;
  // x = n log(2) + r with |r| <= log(2) / 2. Adding 1.5 * 2^23 rounds to a whole number, which is
  // then also in the low bits; log(2) is split so that n times its first part is exact.
  const Vec shift = fill(0x1.8p23f);
  const Vec shifted = multiply_add(shift, y, fill(1.44269504f));
  const Vec n = shifted - shift;
  const Vec r = multiply_add(multiply_add(y, n, fill(-0.693359375f)), n, fill(2.12194440e-4f));
  Vec p = fill(1.0f / 5040);
  p = multiply_add(fill(1.0f / 720), p, r);
  p = multiply_add(fill(1.0f / 120), p, r);
  p = multiply_add(fill(1.0f / 24), p, r);
  p = multiply_add(fill(1.0f / 6), p, r);
  p = multiply_add(fill(0.5f), p, r);
  p = multiply_add(fill(1.0f), p, r);
  p = multiply_add(fill(1.0f), p, r);
  const IntVec power = ((IntVec)shifted - (IntVec)shift + 127) << 23;  // the bits of 2^n
  p *= (Vec)power;
  p = x < min_x ? Vec{} : p;
  return x == x ? p : x;
}

// The largest of row[0, count), count a multiple of kLanes; NaN is passed over.
inline float row_max(const float* row, int64_t count) {
  Vec largest = load(row);
  largest = largest == largest ? largest : fill(-__builtin_inff());
  for (int64_t i = kLanes; i < count; i += kLanes) {
    const Vec x = load(row + i);
    largest = x > largest ? x : largest;
  }
  float result = largest[0];
  for (int64_t l = 1; l < kLanes; ++l) result = largest[l] > result ? largest[l] : result;
  return result;
}

// sum(exp(row[i] - shift)), count a multiple of kLanes.
inline float row_sum_exp(const float* row, int64_t count, float shift) {
  Vec sum = {};
  for (int64_t i = 0; i < count; i += kLanes) sum += exp(load(row + i) - shift);
  float result = 0.0f;
  for (int64_t l = 0; l < kLanes; ++l) result += sum[l];
  return result;
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
