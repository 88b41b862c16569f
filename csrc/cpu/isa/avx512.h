// 512-bit AVX-512 (F, BW, DQ, VL): 32 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace alphafuse {
namespace ALPHAFUSE_ISA {
constexpr int64_t kLanes = 16;
constexpr int64_t kQueries = 8;
}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#include "cpu/vectors.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

inline uint32_t lanes_that_hold(IntVec comparison) {
  return _mm512_movepi32_mask((__m512i)comparison);
}

inline Vec multiply_add(Vec sum, Vec a, Vec b) {
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}

inline Vec from_float16(const uint16_t* p) {
  // With a mask, of all lanes: GCC warns of its own header in the plain one.
  return (Vec)_mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256((const __m256i_u*)p));
}

#if defined(__AVX512VNNI__)
typedef int8_t Number;
constexpr int32_t kCodeOffset = 128;

inline ByteVec four_codes(const int8_t* codes) {
  return load_bytes(codes) ^ int8_t { -128 };
}

inline IntVec multiply_add(IntVec sum, ByteVec codes, ByteVec numbers) {
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)numbers);
}
#else
inline IntVec multiply_add(IntVec sum, ShortVec a, ShortVec b) {
  return sum + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#endif

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#if !defined(__AVX512VNNI__)
#include "cpu/shorts.h"
#endif
