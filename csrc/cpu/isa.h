// What a kernel file is written with: its instruction set's vectors, scratch memory, parallel loop.
//
// Everything here lies in a namespace named after the instruction set (ALPHAFUSE_ISA), and kernel
// files use nothing of the standard library that the compiler might emit as a function of its own:
// the linker keeps one copy of such a function, and a machine without AVX-512 could meet the
// AVX-512 one. Sources that need containers are compiled once (exclude.cpp, top_list.cpp, ...).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/memory.h"
#include "cpu/threads.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
constexpr int64_t kQueries = 8;  // rows of the product kernel: kQueries x 2 accumulators
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
constexpr int64_t kQueries = 6;
#else
constexpr int64_t kLanes = 4;
constexpr int64_t kQueries = 4;
#endif
constexpr int64_t kWidth = 2 * kLanes;  // columns of the product kernel

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
// Subtraction, as x - 0 is x whatever its sign: a plain broadcast.
inline Vec fill(float x) { return x - Vec{}; }

// For functions that take a lambda whose captures must stay in registers, and for those that only
// prefetch, which the compiler would drop as having no effect before it inlines them.
#define ALPHAFUSE_INLINE inline __attribute__((always_inline))

// Bit l: whether lane l of a comparison's result holds.
inline uint32_t lanes_that_hold(IntVec comparison) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)comparison);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)comparison));
#else
  uint32_t bits = 0;
  for (int64_t l = 0; l < kLanes; ++l) bits |= comparison[l] ? uint32_t{1} << l : 0;
  return bits;
#endif
}
constexpr uint32_t kAllLanes = static_cast<uint32_t>((uint64_t{1} << kLanes) - 1);

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
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
      tasks, threads,
      [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); }, &body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
