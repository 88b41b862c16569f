// What a kernel file is written with: its instruction set's vectors, scratch memory, parallel loop.
//
// Everything here lies in a namespace named after the instruction set (ALPHAFUSE_ISA), and kernel
// files use nothing of the standard library that the compiler might emit as a function of its own:
// the linker keeps one copy of such a function, and a machine without AVX-512 could meet the
// AVX-512 one. Sources that need containers are compiled once (exclude.cpp, top_list.cpp, ...).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/memory.h"
#include "cpu/threads.h"

// One header for each instruction set. It says
//
//   kLanes, kQueries       floats of a vector; rows of the product kernel: kQueries x 2 accumulators
//   multiply_add(s, a, b)  s + a b, rounded once where the set can: a score is the same chain of
//                          these in every kernel, so equal rows score bitwise equal
//   lanes_that_hold(c)     bit l: whether lane l of a comparison's result holds
//   from_float16(p)        kLanes float16 numbers, widened
//   four_codes(codes)      those of kLanes items in four columns (compressed.h), kCodeOffset added
//   multiply_add(s, a, b)  s + the sum of the four products, in int32, of such codes and of what
//                          four_numbers(p) reads: four numbers of a query, of type Number
//
// (the last two by shorts.h where the set multiplies 16-bit integers) and, where it defines
// ALPHAFUSE_HAS_PAIRS (else pairs.h has them),
//
//   pairs_of(even, odd)    lane l: even[l] and odd[l], rounded to bfloat16
//   multiply_add(s, a, b)  of pairs: s + a's odd b's odd, and to that the product of the even ones,
//                          each sum rounded once; what is below 2^-126 may be taken for 0
//
// and everything else is written in those and in the compiler's vectors (vectors.h).
#define ALPHAFUSE_TEXT_OF(x) #x
#define ALPHAFUSE_TEXT(x) ALPHAFUSE_TEXT_OF(x)
// clang-format off: it takes the path for a division
#include ALPHAFUSE_TEXT(cpu/isa/ALPHAFUSE_ISA.h)
// clang-format on
#if !defined(ALPHAFUSE_HAS_PAIRS)
#include "cpu/pairs.h"
#endif

namespace alphafuse {
namespace ALPHAFUSE_ISA {

constexpr int64_t kWidth = 2 * kLanes;  // columns of the product kernel

// For functions that take a lambda whose captures must stay in registers, and for those that only
// prefetch, which the compiler would drop as having no effect before it inlines them.
#define ALPHAFUSE_INLINE inline __attribute__((always_inline))

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Columns rounded up, so that the product kernel may read and write whole widths.
inline int64_t padded(int64_t cols) { return ceil_div(cols, kWidth) * kWidth; }
// From one such row to the next: a cache line more, as rows a power of two apart would share the
// same few sets of the cache.
inline int64_t row_stride(int64_t cols) { return padded(cols) + 16; }

inline void copy(float* to, const float* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
}
inline void clear(float* to, int64_t count) {
  __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof(float));
}

// Uninitialised scratch memory.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(allocate(static_cast<std::size_t>(count) * sizeof(T)))) {}
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

// body(i) for every i in [0, tasks), on up to `threads` threads.
template <class Body>
void parallel(int64_t tasks, int threads, Body& body) {
  run_tasks(
      tasks, threads, [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); }, &body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
