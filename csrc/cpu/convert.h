// float32 from and to bfloat16 and float16, in integer arithmetic: the same on every machine.
#pragma once

#include "cpu/isa.h"
#include "tables.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

inline float from_bfloat16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

inline float from_float16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t shifted = static_cast<uint32_t>(h & 0x7fffu) << 13;
  // The product moves the exponent's bias from 15 to 127 and normalises subnormals.
  const uint32_t finite = bits_of(float_of(shifted) * 0x1p112f);
  const uint32_t special = shifted | 0x7f800000u;  // infinities and NaN
  return float_of(sign | (shifted >= 0x0f800000u ? special : finite));
}

// Rounded to nearest, ties to even, as torch does.
inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the lowest bits.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// out[i] = values[i], widened; added to what is there if `add`.
inline void widen(const void* values, DType dtype, int64_t begin, int64_t count, float* out,
                  bool add) {
  if (dtype == DType::kFloat32) {
    const float* from = static_cast<const float*>(values) + begin;
    if (!add) return copy(out, from, count);
    for (int64_t i = 0; i < count; ++i) out[i] += from[i];
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(values) + begin;
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) out[i] = (add ? out[i] : 0.0f) + from_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = (add ? out[i] : 0.0f) + from_float16(from[i]);
  }
}

// out[begin + i] = values[i], narrowed.
inline void narrow(const float* values, int64_t count, void* out, DType dtype, int64_t begin) {
  if (dtype == DType::kFloat32) {
    copy(static_cast<float*>(out) + begin, values, count);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(out) + begin;
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_float16(values[i]);
  }
}

// Asks the memory for a row, whose first element is `first` from the table's beginning.
ALPHAFUSE_INLINE void prefetch_row(const Table& table, int64_t first) {
  constexpr int64_t kLineBytes = 64;
  const int64_t bytes = table.dtype == DType::kFloat32 ? 4 : 2;
  const char* const from = static_cast<const char*>(table.data) + first * bytes;
  for (int64_t at = 0; at < table.cols * bytes; at += kLineBytes) __builtin_prefetch(from + at);
}

// out[i] = a[i], or a[i] + b[i]: of a row, which is too short for a call of memcpy to pay.
ALPHAFUSE_INLINE void copy_row(const float* a, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(a + i));
  for (; i < count; ++i) out[i] = a[i];
}
ALPHAFUSE_INLINE void add_rows(const float* a, const float* b, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(a + i) + load(b + i));
  for (; i < count; ++i) out[i] = a[i] + b[i];
}

// Row `row` of this part of the catalog, fused and widened, into out[0, dim).
inline void fuse_row(const Tables& tables, int64_t row, float* out) {
  const Table& semantic = tables.semantic;
  const Table& id = tables.id;
  if (semantic.data != nullptr && id.data != nullptr && semantic.dtype == DType::kFloat32 &&
      id.dtype == DType::kFloat32) {
    const float* const a = static_cast<const float*>(semantic.data) + row * semantic.stride;
    const float* const b = static_cast<const float*>(id.data) + row * id.stride;
    const int64_t offset = tables.null_offset;
    copy_row(a, offset, out);
    if (tables.add) return add_rows(a + offset, b, id.cols, out + offset);
    return copy_row(b, id.cols, out + offset);
  }
  if (semantic.data != nullptr) {
    widen(semantic.data, semantic.dtype, row * semantic.stride, semantic.cols, out, false);
  }
  if (id.data != nullptr) {
    widen(id.data, id.dtype, row * id.stride, id.cols, out + tables.null_offset, tables.add);
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
