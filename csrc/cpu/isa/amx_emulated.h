// The instructions of AMX in plain C++, for tests on any machine; other kernels are scalar's.
//
// As Intel's manual defines them, faults included: what a processor refuses ends the program here too.
#pragma once

#define ALPHAFUSE_HAS_TILES
#include "cpu/isa/scalar.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int kTiles = 8;

struct TileRegister {
  int rows, row_bytes;
  char bytes[16][64];
};
inline thread_local TileRegister tile_registers[kTiles];

inline void fault_unless(bool defined) {
  if (!defined) __builtin_trap();
}
inline TileRegister& tile_register(int tile) {
  fault_unless(tile >= 0 && tile < kTiles && tile_registers[tile].rows > 0);
  return tile_registers[tile];
}

inline void _tile_release() { __builtin_memset(tile_registers, 0, sizeof tile_registers); }

inline void _tile_loadconfig(const void* config) {
  unsigned char bytes[64];
  __builtin_memcpy(bytes, config, sizeof bytes);
  fault_unless(bytes[0] == 1);
  for (int i = 1; i < 16; ++i) fault_unless(bytes[i] == 0);
  _tile_release();
  for (int tile = 0; tile < 16; ++tile) {
    const int row_bytes = bytes[16 + 2 * tile] + 256 * bytes[17 + 2 * tile];
    const int rows = bytes[48 + tile];
    fault_unless(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0));
    fault_unless(tile < kTiles || rows == 0);
    if (tile >= kTiles) continue;
    tile_registers[tile].rows = rows;
    tile_registers[tile].row_bytes = row_bytes;
  }
}

inline void _tile_zero(int tile) {
  TileRegister& t = tile_register(tile);
  __builtin_memset(t.bytes, 0, sizeof t.bytes);
}

inline void _tile_loadd(int tile, const void* from, int64_t stride) {
  _tile_zero(tile);
  TileRegister& t = tile_register(tile);
  for (int r = 0; r < t.rows; ++r) {
    __builtin_memcpy(t.bytes[r], static_cast<const char*>(from) + r * stride,
                     static_cast<std::size_t>(t.row_bytes));
  }
}

inline void _tile_stored(int tile, void* to, int64_t stride) {
  const TileRegister& t = tile_register(tile);
  for (int r = 0; r < t.rows; ++r) {
    __builtin_memcpy(static_cast<char*>(to) + r * stride, t.bytes[r],
                     static_cast<std::size_t>(t.row_bytes));
  }
}

// element(sum, m, n) of each element of the sums.
template <class T, class Element>
inline void multiply_tiles(int sums, int a, int b, const Element& element) {
  TileRegister& c = tile_register(sums);
  const TileRegister &left = tile_register(a), &right = tile_register(b);
  fault_unless(sums != a && sums != b && a != b);
  fault_unless(c.rows == left.rows && c.row_bytes == right.row_bytes);
  fault_unless(c.row_bytes % 4 == 0 && left.row_bytes == 4 * right.rows);
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      T sum;
      __builtin_memcpy(&sum, c.bytes[m] + 4 * n, 4);
      sum = element(sum, left, m, right, n);
      __builtin_memcpy(c.bytes[m] + 4 * n, &sum, 4);
    }
  }
}

inline void _tile_dpbssd(int sums, int a, int b) {
  multiply_tiles<int32_t>(
      sums, a, b,
      [](int32_t sum, const TileRegister& left, int m, const TileRegister& right, int n) {
        for (int k = 0; k < left.row_bytes; ++k) {
          const auto x = static_cast<int8_t>(left.bytes[m][k]);
          const auto y = static_cast<int8_t>(right.bytes[k / 4][4 * n + k % 4]);
          sum += x * y;
        }
        return sum;
      });
}

// Numbers below 2^-126 are taken for 0, in operands and in results.
inline float flushed(float x) {
  return x < 0x1p-126f && x > -0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

// The sums of first and of second halves begin with 0; each of their steps is rounded once, then their
// sum, then what that is added to.
inline void _tile_dpbf16ps(int sums, int a, int b) {
  const auto half = [](const char* pair, int which) {
    uint32_t bits;
    __builtin_memcpy(&bits, pair, 4);
    bits = which == 0 ? bits << 16 : bits & 0xffff0000u;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return static_cast<double>(flushed(value));
  };
  multiply_tiles<float>(
      sums, a, b,
      [&](float sum, const TileRegister& left, int m, const TileRegister& right, int n) {
        float halves[2] = {};
        for (int k = 0; k < right.rows; ++k) {
          for (int i = 0; i < 2; ++i) {
            // The product is exact in double, and rounding the sum of it twice is as rounding it once.
            const double x = half(left.bytes[m] + 4 * k, i), y = half(right.bytes[k] + 4 * n, i);
            halves[i] = flushed(static_cast<float>(x * y + static_cast<double>(halves[i])));
          }
        }
        return flushed(flushed(sum) + flushed(halves[0] + halves[1]));
      });
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
