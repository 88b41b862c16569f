// Products by the tiles of AMX, eight registers of up to 16 rows of 64 bytes, whose instructions have
// the compilers' names: the processor's (isa/amx.h) or plain C++ (isa/amx_emulated.h).
//
// A block is two tiles high and two wide: tiles 0 to 3 are its sums, 4 and 5 are of `a`, 6 and 7 of `b`,
// so four products need four loads. By Intel's numbers for Sapphire Rapids a product starts every 16
// cycles: 16 x 16 x 32 multiply-adds of bfloat16, 1,024 operations a cycle, or twice as many of
// bytes; a load of a tile every 8. So products are the floor: 64 cycles for a step of a block, its loads
// 32, sums at most 24 a tile for the whole depth. To fill a panel of 32 items by 128 columns (tile.cpp)
// takes some 1,000 shuffles and 400 instructions to round: as long as its products with 180 queries.
// All of this is counted; nothing was timed.
#pragma once

#include "cpu/isa.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kTileRows = 16, kTileSteps = 16, kStepBytes = 4;

// In a step four bytes of a row of `a` meet four of a column of `b`: two bfloat16, summed in float32,
// or four int8, summed in int32. All strides are in bytes.
struct TileOperands {
  const void* a;  // the steps of a row lie side by side
  int64_t a_row;
  const void* b;  // as do the columns of a step, b_cols of them, and then those of the next panel
  int64_t b_step, b_cols, b_panel;
  void* out;
  int64_t out_row;
};

// The tiles for blocks of `upper` rows and `lower` more, none of either being more than a tile has.
inline void shape_tiles(int64_t upper, int64_t lower, int64_t cols, int64_t steps) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shapes = {};
  static_assert(sizeof shapes == 64);
  shapes.palette = 1;
  const auto shape = [&](int tile, int64_t rows, int64_t row_steps) {
    shapes.rows[tile] = static_cast<uint8_t>(rows);
    shapes.row_bytes[tile] = static_cast<uint16_t>(rows == 0 ? 0 : kStepBytes * row_steps);
  };
  for (int right = 0; right < 2; ++right) {
    shape(right, upper, cols);
    shape(2 + right, lower, cols);
    shape(6 + right, steps, cols);
  }
  shape(4, upper, steps);
  shape(5, lower, steps);
  // GCC takes the instruction to read eight bytes, and loads of tiles to read nothing.
  asm volatile("" : : "r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
}

// out (rows, cols) = or += a (rows, steps) b (steps, cols); `cols` a multiple of a tile's columns. How
// each element is summed depends on the steps alone, not on its place.
template <bool kOfBytes>
inline void tile_product(const TileOperands& of, int64_t rows, int64_t steps, int64_t cols,
                         bool add) {
// Tiles are named by numbers, not by constants.
#define ALPHAFUSE_TILE_PRODUCT(sums, a, b) \
  if constexpr (kOfBytes) {                \
    _tile_dpbssd(sums, a, b);              \
  } else {                                 \
    _tile_dpbf16ps(sums, a, b);            \
  }
  const int64_t tile_cols = min(kTileRows, of.b_cols), right = kStepBytes * tile_cols;
  const auto column = [&](int64_t c, int64_t step) {
    return static_cast<const char*>(of.b) + step * of.b_step + c / of.b_cols * of.b_panel +
           c % of.b_cols * kStepBytes;
  };
  // Of rows and steps whose tiles have one shape: it takes hundreds of cycles to change it.
  const auto multiply = [&](int64_t row, int64_t end_row, int64_t step, int64_t end_step) {
    if (row == end_row || step == end_step) return;
    const int64_t upper = min(kTileRows, end_row - row);
    const int64_t lower = min(kTileRows, end_row - row - upper);
    const int64_t deep = min(kTileSteps, end_step - step);
    const bool go_on = add || step > 0;
    shape_tiles(upper, lower, tile_cols, deep);
    for (int64_t c = 0; c < cols; c += 2 * tile_cols) {
      const bool wide = c + tile_cols < cols, tall = lower > 0;
      for (int64_t r = row; r < end_row; r += upper + lower) {
        const char* a = static_cast<const char*>(of.a) + r * of.a_row + step * kStepBytes;
        const char *b = column(c, step), *b_right = wide ? column(c + tile_cols, step) : b;
        char* const out = static_cast<char*>(of.out) + r * of.out_row + c * kStepBytes;
        char* const below = out + upper * of.out_row;
        if (go_on) {
          _tile_loadd(0, out, of.out_row);
          if (wide) _tile_loadd(1, out + right, of.out_row);
          if (tall) _tile_loadd(2, below, of.out_row);
          if (wide && tall) _tile_loadd(3, below + right, of.out_row);
        } else {
          _tile_zero(0);
          if (wide) _tile_zero(1);
          if (tall) _tile_zero(2);
          if (wide && tall) _tile_zero(3);
        }
        for (int64_t k = step; k < end_step; k += deep) {
          _tile_loadd(4, a, of.a_row);
          _tile_loadd(6, b, of.b_step);
          ALPHAFUSE_TILE_PRODUCT(0, 4, 6)
          if (wide) {
            _tile_loadd(7, b_right, of.b_step);
            ALPHAFUSE_TILE_PRODUCT(1, 4, 7)
          }
          if (tall) {
            _tile_loadd(5, a + upper * of.a_row, of.a_row);
            ALPHAFUSE_TILE_PRODUCT(2, 5, 6)
            if (wide) {
              ALPHAFUSE_TILE_PRODUCT(3, 5, 7)
            }
          }
          a += deep * kStepBytes;
          b += deep * of.b_step;
          b_right += deep * of.b_step;
        }
        _tile_stored(0, out, of.out_row);
        if (wide) _tile_stored(1, out + right, of.out_row);
        if (tall) _tile_stored(2, below, of.out_row);
        if (wide && tall) _tile_stored(3, below + right, of.out_row);
      }
    }
  };
#undef ALPHAFUSE_TILE_PRODUCT
  const int64_t whole_rows = rows / (2 * kTileRows) * (2 * kTileRows);
  const int64_t whole_steps = steps / kTileSteps * kTileSteps;
  multiply(0, whole_rows, 0, whole_steps);
  multiply(0, whole_rows, whole_steps, steps);
  multiply(whole_rows, rows, 0, whole_steps);
  multiply(whole_rows, rows, whole_steps, steps);
  // So that the system need not keep this thread's tiles, and others find none configured.
  _tile_release();
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
