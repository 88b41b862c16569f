// AVX-512 with BF16: products of pairs of bfloat16 at the rate of float32's.
#pragma once

#define ALPHAFUSE_HAS_PAIRS
#include "cpu/isa/avx512.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

inline Vec multiply_add(Vec sum, PairVec a, PairVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

inline PairVec pairs_of(Vec even, Vec odd) {
  constexpr ShortVec kOrder = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                               8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  return (PairVec)_mm512_permutexvar_epi16((__m512i)kOrder, (__m512i)rounded);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
