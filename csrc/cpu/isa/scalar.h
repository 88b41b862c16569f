// The compiler's baseline for the machine: short vectors that it makes of what there is.
#pragma once

#include <cstdint>

namespace alphafuse {
namespace ALPHAFUSE_ISA {
constexpr int64_t kLanes = 4;
constexpr int64_t kQueries = 4;
}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#include "cpu/vectors.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

inline uint32_t lanes_that_hold(IntVec comparison) {
  uint32_t bits = 0;
  for (int64_t l = 0; l < kLanes; ++l) bits |= comparison[l] ? uint32_t{1} << l : 0;
  return bits;
}

inline Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }

inline Vec from_float16(const uint16_t* p) {
  // The product moves the exponent's bias from 15 to 127 and normalises subnormals.
  const IntVec h = widened(p), sign = (h & 0x8000) << 16, shifted = (h & 0x7fff) << 13;
  const IntVec finite = (IntVec)((Vec)shifted * 0x1p112f);
  return (Vec)(sign | (shifted >= 0x0f800000 ? shifted | 0x7f800000 : finite));
}

inline ShortVec two_columns(const int8_t* codes) {
  typedef int8_t Codes __attribute__((vector_size(2 * kLanes), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Codes*>(codes), ShortVec);
}

inline IntVec multiply_add(IntVec sum, ShortVec a, ShortVec b) {
  const IntVec x = (IntVec)a, y = (IntVec)b;
  return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
