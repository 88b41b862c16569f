// The product of pairs of bfloat16 (vectors.h), for all kernels. This part alone is compiled for
// instruction sets that nothing else gains by (CMakeLists.txt).
#pragma once

#include <cstdint>

namespace alphafuse {

// As product() of product.h.
using PairProduct = void(const uint32_t* a, int64_t a_row, int64_t a_step, int64_t rows,
                         int64_t depth, const uint32_t* b, int64_t b_step, int64_t b_width,
                         float* out, int64_t out_row, int64_t cols, bool add);

}  // namespace alphafuse
