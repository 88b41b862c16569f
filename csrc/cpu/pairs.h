// Products of pairs of bfloat16 where the instruction set has none: the same numbers by other means.
#pragma once

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// Products of bfloat16 are exact in float32, so each sum is rounded once, as by the instruction.
inline Vec multiply_add(Vec sum, PairVec a, PairVec b) {
  const Vec of_odd = multiply_add(sum, (Vec)(a & 0xffff0000u), (Vec)(b & 0xffff0000u));
  return multiply_add(of_odd, (Vec)(a << 16), (Vec)(b << 16));
}

// Rounded to nearest, ties to even.
inline PairVec pairs_of(Vec even, Vec odd) {
  const auto rounded = [](Vec x) {
    const PairVec bits = (PairVec)x;
    const PairVec up = bits + 0x7fffu + ((bits >> 16) & 1u);
    return x == x ? up : bits | 0x400000u;
  };
  return (rounded(even) >> 16) | (rounded(odd) & 0xffff0000u);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
