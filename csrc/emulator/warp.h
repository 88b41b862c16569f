// What the lanes of a warp do together, operand by operand. Compiled without sanitizers, as block.h.
#pragma once

#include <cstdint>

namespace alphafuse {
namespace emulator {

struct Shuffle {
  uint32_t in[2], out[2];
  int source;  // the lane whose `in` becomes this one's `out`
};
void execute_shuffle(void* const* operands, unsigned mask);

struct Reduce {
  enum Operation { kAdd, kMin, kMax, kSignedMin, kSignedMax, kAnd, kOr, kXor };
  uint32_t in, out;
  Operation operation;
};
void execute_reduce(void* const* operands, unsigned mask);

struct Vote {
  uint32_t in, out;
};
void execute_ballot(void* const* operands, unsigned mask);  // out: which lanes' `in` is not 0
void execute_match(void* const* operands, unsigned mask);   // out: which lanes' `in` is the same

void execute_nothing(void* const* operands, unsigned mask);

// ldmatrix: the rows of up to four 8 x 8 matrices of 16-bit elements are given by the lanes, eight
// by eight. `rows[m]` becomes the row of matrix m that holds lane's register m, or (transposed) the
// first of the two rows that do.
struct LoadMatrices {
  const void* row;
  const void* rows[4][2];
  int matrices;
  bool transposed;
};
void execute_load_matrices(void* const* operands, unsigned mask);

// mma.sync: c += a b, A 16 x 16 and B 16 x 8 of 16-bit elements (half or bfloat16), or A 16 x 8 and
// B 8 x 8 of TF32; C 16 x 8.
struct Mma {
  uint32_t a[4], b[2];
  float c[4];
};
void execute_mma_bfloat16(void* const* operands, unsigned mask);
void execute_mma_float16(void* const* operands, unsigned mask);
void execute_mma_tf32(void* const* operands, unsigned mask);

}  // namespace emulator
}  // namespace alphafuse
