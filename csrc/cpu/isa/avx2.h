// AVX2 with FMA and F16C: 16 registers of 256 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace alphafuse {
namespace ALPHAFUSE_ISA {
constexpr int64_t kLanes = 8;
constexpr int64_t kQueries = 6;
}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#include "cpu/vectors.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

inline uint32_t lanes_that_hold(IntVec comparison) {
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)comparison));
}

inline Vec multiply_add(Vec sum, Vec a, Vec b) {
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
}

inline Vec from_float16(const uint16_t* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u*)p));
}

#if defined(__AVXVNNI__)
typedef int8_t Number;
constexpr int32_t kCodeOffset = 128;

inline ByteVec four_codes(const int8_t* codes) {
  return load_bytes(codes) ^ int8_t { -128 };
}

inline IntVec multiply_add(IntVec sum, ByteVec codes, ByteVec numbers) {
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)numbers);
}
#else
inline IntVec multiply_add(IntVec sum, ShortVec a, ShortVec b) {
  return sum + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#endif

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse

#if !defined(__AVXVNNI__)
#include "cpu/shorts.h"
#endif
