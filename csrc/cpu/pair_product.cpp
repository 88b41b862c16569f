#include "cpu/kernels.h"
#include "cpu/product.h"
#if defined(ALPHAFUSE_HAS_TILES)
#include "cpu/rows.h"
#include "cpu/tiles.h"
#endif

namespace alphafuse {
namespace ALPHAFUSE_ISA {

#if defined(ALPHAFUSE_HAS_TILES)

void pair_product(const Pair* a, int64_t a_row, int64_t a_step, int64_t rows, int64_t depth,
                  const Pair* b, int64_t b_step, int64_t b_width, float* out, int64_t out_row,
                  int64_t cols, bool add) {
  constexpr int64_t kBytes = sizeof(Pair);
  const auto multiply = [&](const Pair* left, int64_t left_row) {
    tile_product<false>({left, left_row * kBytes, b, b_step * kBytes, kWidth, b_width * kBytes, out,
                         out_row * kBytes},
                        rows, depth, padded(cols), add);
  };
  if (a_step == 1) return multiply(a, a_row);
  // Tiles take rows whose steps lie side by side. To turn a square of 16 x 16 pairs around takes 64
  // shuffles, and so it takes about half as long as to multiply it by 128 columns.
  const int64_t row = ceil_div(depth, kLanes) * kLanes;
  const Buffer<Pair> turned(ceil_div(rows, kLanes) * kLanes * row);
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t k = 0; k < depth; k += kLanes) {
      Vec square[kLanes];
      for (int64_t l = 0; l < kLanes; ++l) {
        square[l] = k + l < depth ? (Vec)load(a + r + (k + l) * a_step) : Vec{};
      }
      transpose(square);
      for (int64_t l = 0; l < kLanes; ++l) store(turned + (r + l) * row + k, (PairVec)square[l]);
    }
  }
  multiply(turned, row);
}

#else

void pair_product(const Pair* a, int64_t a_row, int64_t a_step, int64_t rows, int64_t depth,
                  const Pair* b, int64_t b_step, int64_t b_width, float* out, int64_t out_row,
                  int64_t cols, bool add) {
  product(a, a_row, a_step, rows, depth, b, b_step, b_width, out, out_row, cols, add);
}

#endif

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
