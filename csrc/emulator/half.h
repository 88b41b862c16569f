// The two half types under CUDA's names; conversions round to nearest, ties to even.
#pragma once

#include <cstdint>

// __extension__: ISO C++17 has no such type.
__extension__ typedef _Float16 alphafuse_float16;

struct __half {
  alphafuse_float16 value;
};

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half h) { return static_cast<float>(h.value); }
inline __half __float2half(float value) { return {static_cast<alphafuse_float16>(value)}; }

inline __half __ushort_as_half(uint16_t bits) {
  __half h;
  __builtin_memcpy(&h, &bits, 2);
  return h;
}

inline float __bfloat162float(__nv_bfloat16 h) {
  const uint32_t bits = uint32_t{h.bits} << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline __nv_bfloat16 __float2bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value != value) return {static_cast<uint16_t>(0x7fff)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
