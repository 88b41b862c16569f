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

// Bytes as VNNI has them, codes without a sign: what it computes is tested on any machine.
typedef int8_t Number;
constexpr int32_t kCodeOffset = 128;

inline ByteVec four_codes(const int8_t* codes) {
  return load_bytes(codes) ^ int8_t { -128 };
}

inline IntVec multiply_add(IntVec sum, ByteVec codes, ByteVec numbers) {
  const IntVec x = (IntVec)codes, y = (IntVec)numbers;
  for (int shift = 0; shift < 32; shift += 8) {
    sum += (x >> shift & 0xff) * (y << (24 - shift) >> 24);
  }
  return sum;
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
