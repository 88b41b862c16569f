// The two half types in plain arithmetic, so that no compiler's and no kernel's conversion is taken
// on trust.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "launch.h"
#include "tables.h"

namespace alphafuse {
namespace tests {

struct HalfType {
  int mantissa;  // bits of it
  int bias;      // of the exponent, whose largest value, 2 bias + 1, is for infinities and NaN
};
inline HalfType half_type(DType dtype) {
  return dtype == DType::kFloat16 ? HalfType{10, 15} : HalfType{7, 127};
}

inline double from_half(uint16_t bits, DType dtype) {
  const HalfType type = half_type(dtype);
  const int mantissa = bits & ((1 << type.mantissa) - 1);
  const int exponent = (bits & 0x7fff) >> type.mantissa;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 2 * type.bias + 1) return mantissa != 0 ? NAN : sign * INFINITY;
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << type.mantissa);
  return sign * std::ldexp(whole, (exponent == 0 ? 1 : exponent) - type.bias - type.mantissa);
}

// To nearest, ties to even; NaN becomes one of them.
inline uint16_t to_half(float value, DType dtype) {
  const HalfType type = half_type(dtype);
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const int infinity = (2 * type.bias + 1) << type.mantissa;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1 << (type.mantissa - 1));
  const double size = std::fabs(static_cast<double>(value));
  if (std::isinf(size)) return static_cast<uint16_t>(sign | infinity);
  int exponent = 0;
  std::frexp(size, &exponent);  // size = fraction 2^exponent, 1/2 <= fraction < 1, or 0
  exponent = size == 0.0 ? 2 - type.bias : std::max(exponent, 2 - type.bias);
  // As a whole number of the last place, whose carry goes on into the exponent.
  const double places = std::nearbyint(std::ldexp(size, type.mantissa + 1 - exponent));
  if (exponent > type.bias + 1) return static_cast<uint16_t>(sign | infinity);
  const int above_least = (exponent + type.bias - 2) << type.mantissa;
  return static_cast<uint16_t>(sign | (above_least + static_cast<int>(places)));
}

// What a product in a precision makes of an operand. TF32: to 10 bits of mantissa, ties away from 0.
inline double rounded(double value, Precision precision) {
  if (precision == Precision::kFloat32) return value;
  if (precision != Precision::kTF32) {
    const DType dtype = precision == Precision::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
    return from_half(to_half(static_cast<float>(value), dtype), dtype);
  }
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11);
}

}  // namespace tests
}  // namespace alphafuse
