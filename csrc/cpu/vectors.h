// Vectors of kLanes numbers, which the instruction set's own header (cpu/isa) has set before it
// includes this one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// Bit l is lane l, as in lanes_that_hold.
constexpr uint32_t kAllLanes = static_cast<uint32_t>((uint64_t{1} << kLanes) - 1);

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef int16_t ShortVec __attribute__((vector_size(4 * kLanes)));  // twice as many
typedef int8_t ByteVec __attribute__((vector_size(4 * kLanes)));    // four times
typedef uint32_t PairVec __attribute__((vector_size(4 * kLanes)));  // of two bfloat16 each
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t LoosePairVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

using Pair = uint32_t;  // two bfloat16: the low half comes first

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
// Subtraction, as x - 0 is x whatever its sign: a plain broadcast.
inline Vec fill(float x) { return x - Vec{}; }

inline ByteVec load_bytes(const int8_t* p) {
  typedef int8_t Loose __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));
  return *reinterpret_cast<const Loose*>(p);
}
// The same four bytes in each lane.
inline ByteVec four_numbers(const int8_t* p) {
  int32_t all;
  __builtin_memcpy(&all, p, 4);
  return (ByteVec)(all - IntVec{});
}

inline PairVec load(const Pair* p) { return *reinterpret_cast<const LoosePairVec*>(p); }
inline void store(Pair* p, PairVec v) { *reinterpret_cast<LoosePairVec*>(p) = v; }
inline PairVec fill(Pair x) { return x + PairVec{}; }

// kLanes 16-bit numbers as the low bits of integers.
inline IntVec widened(const uint16_t* p) {
  typedef uint16_t Half __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), IntVec);
}

// Lane l of the result is that of `a` numbered Index::of(l), or, from kLanes on, of `b`.
template <class Index, std::size_t... l>
inline Vec shuffle(Vec a, Vec b, std::index_sequence<l...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index::of(l)...);
#else
  return __builtin_shuffle(a, b, IntVec{Index::of(l)...});
#endif
}
template <class Index>
inline Vec shuffle(Vec a, Vec b) {
  return shuffle<Index>(a, b, std::make_index_sequence<kLanes>());
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
