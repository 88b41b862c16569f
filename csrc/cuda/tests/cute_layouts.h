// Where CuTe, NVIDIA's own description in the CUTLASS headers, says that fragments lie: which element
// of a matrix, or bit of shared memory, is `value` of `lane`. Its headers and the emulator's exclude
// each other, so it stands behind plain functions.
#pragma once

#include "launch.h"

namespace alphafuse {
namespace cute_layouts {

// Of m16n8k16 or m16n8k8: row + 16 * k of A, column + 8 * k of B, row + 16 * column of C.
int a(Precision precision, int lane, int value);
int b(Precision precision, int lane, int value);
int c(Precision precision, int lane, int value);

// Of ldmatrix .x4: the bit, where lane l has the 128 bits from 128 * l on, that is bit `bit` of the
// four registers of `lane`.
int matrices(bool transposed, int lane, int bit);

// Of wgmma m64n128k16: row + 64 * column of the result that is `value` of thread 0 to 127.
int group_c(int thread, int value);

// Of wgmma m64n64k16 whose left factor is in registers: row + 64 * k of that, which is `value` of a thread,
// and the descriptor of a right factor of 64 columns next to each other, in pieces `stride_bytes` apart,
// each of 16 rows of 16 bytes.
int group_a(int thread, int value);
unsigned long long descriptor_of_columns();
constexpr int kColumnPieceBytes = 2048;

// The descriptor of a matrix in shared memory that is not swizzled.
unsigned long long descriptor(unsigned int address, int leading_bytes, int stride_bytes);

}  // namespace cute_layouts
}  // namespace alphafuse
