// Integer products (isa.h) by those of 16-bit numbers, which the instruction set's own header has
// as multiply_add(s, a, b): s + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] in lane i.
#pragma once

namespace alphafuse {
namespace ALPHAFUSE_ISA {

typedef int16_t Number;
constexpr int32_t kCodeOffset = 0;

// Of each four, the first and third, and the second and fourth.
struct Shorts {
  ShortVec even, odd;
};

inline Shorts four_codes(const int8_t* codes) {
  typedef int16_t Loose __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));
  const ShortVec both = *reinterpret_cast<const Loose*>(codes);
  return {both << 8 >> 8, both >> 8};
}

inline Shorts four_numbers(const int16_t* numbers) {
  int32_t pairs[2];
  __builtin_memcpy(pairs, numbers, sizeof pairs);
  return {(ShortVec)(pairs[0] - IntVec{}), (ShortVec)(pairs[1] - IntVec{})};
}

inline IntVec multiply_add(IntVec sum, Shorts a, Shorts b) {
  return multiply_add(multiply_add(sum, a.even, b.even), a.odd, b.odd);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
