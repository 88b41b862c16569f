// 64-bit Arm, any of them: 32 registers of 128 bits.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace alphafuse {
namespace ALPHAFUSE_ISA {
constexpr int64_t kLanes = 4;
constexpr int64_t kQueries = 8;
}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#include "cpu/vectors.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

inline uint32_t lanes_that_hold(IntVec comparison) {
  const uint32x4_t bit_of_lane = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32((uint32x4_t)comparison, bit_of_lane));
}

inline Vec multiply_add(Vec sum, Vec a, Vec b) {
  return (Vec)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
}

inline Vec from_float16(const uint16_t* p) {
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

inline IntVec multiply_add(IntVec sum, ShortVec a, ShortVec b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
  return sum + (IntVec)vpaddq_s32(low, vmull_high_s16(x, y));
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#include "cpu/shorts.h"
