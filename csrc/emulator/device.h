// The emulator's half of device.cuh: CUDA's language as far as the kernels use it, for g++ and
// clang++. It is compiled with the kernels, under their sanitizers.
#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <tuple>
#include <type_traits>

#include "emulator/block.h"
#include "emulator/half.h"
#include "emulator/warp.h"
#include "launch.h"

#if defined(__SANITIZE_ADDRESS__)
#define ALPHAFUSE_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ALPHAFUSE_ASAN
#endif
#endif
#if defined(ALPHAFUSE_ASAN)
#include <sanitizer/asan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// The last argument of what can go wrong: the kernel's line.
#define ALPHAFUSE_PLACE ::alphafuse::emulator::Place place = {__builtin_FILE(), __builtin_LINE()}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

namespace alphafuse {
namespace emulator {

// For words that are read and written whatever type lies there.
using Word __attribute__((may_alias)) = uint32_t;
using HalfWord __attribute__((may_alias)) = uint16_t;

inline void poison(const void* from, std::size_t bytes) {
#if defined(ALPHAFUSE_ASAN)
  __asan_poison_memory_region(from, bytes);
#else
  (void)from, (void)bytes;
#endif
}
inline void take_poison_away(const void* from, std::size_t bytes) {
#if defined(ALPHAFUSE_ASAN)
  __asan_unpoison_memory_region(from, bytes);
#else
  (void)from, (void)bytes;
#endif
}

template <class T>
T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 8 && std::is_trivially_copyable<T>::value,
                "a shuffle moves 4 or 8 bytes");
  Shuffle operands{};
  operands.source = source;
  std::memcpy(operands.in, &value, sizeof(T));
  meet(mask, execute_shuffle, &operands, false, place);
  std::memcpy(&value, operands.out, sizeof(T));
  return value;
}

template <class T>
T reduce(unsigned mask, T value, Reduce::Operation operation, Place place) {
  Reduce operands{static_cast<uint32_t>(value), 0, operation};
  meet(mask, execute_reduce, &operands, false, place);
  return static_cast<T>(operands.out);
}

inline uint32_t vote(unsigned mask, uint32_t value, Execute execute, Place place) {
  Vote operands{value, 0};
  meet(mask, execute, &operands, false, place);
  return operands.out;
}

// Relaxed, as on the device, and truly atomic: ThreadSanitizer distinguishes them from plain accesses.
template <class T, class Change>
T atomic(T* address, Change change) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static_assert(sizeof(T) == sizeof(Bits), "an atomic has 4 or 8 bytes");
  auto* const bits = reinterpret_cast<Bits*>(address);
  Bits old_bits = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    T old;
    std::memcpy(&old, &old_bits, sizeof(T));
    const T value = change(old);
    Bits new_bits;
    std::memcpy(&new_bits, &value, sizeof(T));
    if (__atomic_compare_exchange_n(bits, &old_bits, new_bits, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      return old;
    }
  }
}

}  // namespace emulator
}  // namespace alphafuse

// --- Synchronisation ------------------------------------------------------------------------------

inline void __syncthreads(ALPHAFUSE_PLACE) { alphafuse::emulator::barrier(0, place); }
inline int __syncthreads_count(int predicate, ALPHAFUSE_PLACE) {
  return alphafuse::emulator::barrier(predicate, place).count;
}
inline int __syncthreads_or(int predicate, ALPHAFUSE_PLACE) {
  return alphafuse::emulator::barrier(predicate, place).any;
}
inline int __syncthreads_and(int predicate, ALPHAFUSE_PLACE) {
  return alphafuse::emulator::barrier(predicate, place).all;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, ALPHAFUSE_PLACE) {
  alphafuse::emulator::meet(mask, alphafuse::emulator::execute_nothing, nullptr, true, place);
}
inline void __threadfence() { alphafuse::emulator::fence(); }
inline void __threadfence_block() { alphafuse::emulator::fence(); }

// --- Warps ----------------------------------------------------------------------------------------

// A source outside the segment of `width` lanes is the lane itself, but for __shfl_sync.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ALPHAFUSE_PLACE) {
  const int first = alphafuse::emulator::lane() / width * width;
  return alphafuse::emulator::shuffle(mask, value, first + (source & (width - 1)), place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, ALPHAFUSE_PLACE) {
  const int own = alphafuse::emulator::lane(), source = own ^ bits;
  return alphafuse::emulator::shuffle(mask, value, source / width > own / width ? own : source,
                                      place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, ALPHAFUSE_PLACE) {
  const int own = alphafuse::emulator::lane(), source = own - by;
  return alphafuse::emulator::shuffle(mask, value, source < own / width * width ? own : source,
                                      place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, ALPHAFUSE_PLACE) {
  const int own = alphafuse::emulator::lane(), source = own + by;
  return alphafuse::emulator::shuffle(mask, value, source / width > own / width ? own : source,
                                      place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, ALPHAFUSE_PLACE) {
  namespace e = alphafuse::emulator;
  return e::vote(mask, predicate != 0, e::execute_ballot, place);
}
inline int __any_sync(unsigned mask, int predicate, ALPHAFUSE_PLACE) {
  namespace e = alphafuse::emulator;
  return e::vote(mask, predicate != 0, e::execute_ballot, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ALPHAFUSE_PLACE) {
  namespace e = alphafuse::emulator;
  return e::vote(mask, predicate == 0, e::execute_ballot, place) == 0;
}
inline unsigned __match_any_sync(unsigned mask, unsigned value, ALPHAFUSE_PLACE) {
  namespace e = alphafuse::emulator;
  return e::vote(mask, value, e::execute_match, place);
}
#define ALPHAFUSE_REDUCE(name, type, operation)                                             \
  inline type __reduce_##name##_sync(unsigned mask, type value, ALPHAFUSE_PLACE) {          \
    return alphafuse::emulator::reduce(mask, value, alphafuse::emulator::Reduce::operation, \
                                       place);                                              \
  }
ALPHAFUSE_REDUCE(add, unsigned, kAdd)
ALPHAFUSE_REDUCE(min, unsigned, kMin)
ALPHAFUSE_REDUCE(max, unsigned, kMax)
ALPHAFUSE_REDUCE(add, int, kAdd)
ALPHAFUSE_REDUCE(min, int, kSignedMin)
ALPHAFUSE_REDUCE(max, int, kSignedMax)
ALPHAFUSE_REDUCE(and, unsigned, kAnd)
ALPHAFUSE_REDUCE(or, unsigned, kOr)
ALPHAFUSE_REDUCE(xor, unsigned, kXor)
#undef ALPHAFUSE_REDUCE

// --- Atomics --------------------------------------------------------------------------------------

template <class T>
T atomicAdd(T* address, std::common_type_t<T> by) {
  return alphafuse::emulator::atomic(address, [=](T old) { return static_cast<T>(old + by); });
}
template <class T>
T atomicMax(T* address, std::common_type_t<T> with) {
  return alphafuse::emulator::atomic(address, [=](T old) { return old < with ? with : old; });
}
template <class T>
T atomicMin(T* address, std::common_type_t<T> with) {
  return alphafuse::emulator::atomic(address, [=](T old) { return with < old ? with : old; });
}
template <class T>
T atomicExch(T* address, std::common_type_t<T> value) {
  return alphafuse::emulator::atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return alphafuse::emulator::atomic(address, [=](T old) { return old == expected ? value : old; });
}

// --- Arithmetic -----------------------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// Macros, since the C library declares functions of these names.
#define __expf(x) ::expf(x)
#define __logf(x) ::logf(x)

// --- What device.cuh promises in both halves; see there -------------------------------------------

namespace alphafuse {
namespace cuda {

constexpr bool kEmulated = true;
// Few, so that blocks take a second round even with the small inputs of tests.
constexpr int64_t kMaxBlocks = 3;
constexpr std::size_t kSharedGap = 64;

#define ALPHAFUSE_SHARED(type, name, count)          \
  static const char name##_key = 0;                  \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::alphafuse::emulator::static_shared(&name##_key, sizeof(type) * (count)))

#define ALPHAFUSE_DYNAMIC_SHARED(name) \
  std::size_t name##_bytes = 0;        \
  unsigned char* const name = ::alphafuse::emulator::dynamic_shared(name##_bytes)

inline void close_gap(unsigned char* from, unsigned char* to, bool there) {
  if (!there) emulator::fail("more shared memory is taken than the launch asked for");
  emulator::forbid(from, to);
  emulator::poison(from, static_cast<std::size_t>(to - from));
}

// As check_ids() of ids.h says it.
[[noreturn]] inline void fail_index(const char* argument, int64_t id, int64_t place, int64_t min_id,
                                    int64_t max_id) {
  emulator::fail_index("%s: got %lld at position %lld; expected %lld <= id <= %lld", argument,
                       static_cast<long long>(id), static_cast<long long>(place),
                       static_cast<long long>(min_id), static_cast<long long>(max_id));
}

template <class... P, class... A>
void enqueue(Launch&, const char* op, void (*kernel)(P...), dim3 grid, dim3 block,
             std::size_t shared_bytes, A&&... arguments) {
  const std::tuple<P...> values(static_cast<P>(arguments)...);
  const auto call = [&] { std::apply(kernel, values); };  // each thread has copies of its own
  emulator::run(
      op, grid, block, shared_bytes,
      [](void* context) { (*static_cast<decltype(call)*>(context))(); },
      const_cast<void*>(static_cast<const void*>(&call)));
}

inline void fill_zero(Launch&, const char*, void* memory, std::size_t bytes) {
  std::memset(memory, 0, bytes);
}

inline int multiprocessors(const Launch&) { return emulator::multiprocessors(); }

inline float fast_exp2(float x) {
  const float power = ::exp2f(x);
  return power < 0x1p-126f ? 0.0f : power;
}

inline uint32_t pack_bfloat16(float low, float high) {
  return __float2bfloat16(low).bits | uint32_t{__float2bfloat16(high).bits} << 16;
}

// Until it is waited for, the destination is NaN, and poison to AddressSanitizer.
inline void copy_async(void* shared, const void* global, int bytes = 16) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    emulator::fail("copy_async: the addresses %p and %p are not both multiples of 16", shared,
                   global);
  }
  const auto* const from = static_cast<const unsigned char*>(global);
  for (int i = 0; i < bytes; ++i) (void)static_cast<const volatile unsigned char*>(from)[i];
  auto* const to = static_cast<unsigned char*>(shared);
  for (int i = 0; i < 4; ++i) reinterpret_cast<emulator::Word*>(to)[i] = 0xffffffffu;
  emulator::poison(to, 16);
  emulator::issue_copy({to, from, bytes, 16});
}
inline void commit_copies() { emulator::commit_copies(); }
namespace emulated {
inline void make(const emulator::Copy& copy) {
  emulator::take_poison_away(copy.to, static_cast<std::size_t>(copy.size));
  for (int i = 0; i < copy.size; ++i) {
    copy.to[i] = i < copy.bytes ? copy.from[i] : static_cast<unsigned char>(0);
  }
}
}  // namespace emulated
template <int keep>
void wait_copies() {
  emulator::Copy copies[emulator::kMaxCopies];
  const int count = emulator::finished_copies(keep, copies);
  for (int i = 0; i < count; ++i) emulated::make(copies[i]);
}

template <int matrices, bool transposed = false>
void load_matrices(uint32_t (&registers)[matrices], const void* row, ALPHAFUSE_PLACE) {
  static_assert(matrices == 1 || matrices == 2 || matrices == 4, "ldmatrix loads 1, 2 or 4");
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    emulator::fail("load_matrices: the address %p is not a multiple of 16", row);
  }
  emulator::LoadMatrices operands{row, {}, matrices, transposed};
  emulator::meet(0xffffffffu, emulator::execute_load_matrices, &operands, false, place);
  const int lane = emulator::lane();
  for (int m = 0; m < matrices; ++m) {  // each lane reads by itself, for the sanitizers to see
    if (transposed) {
      const auto* const low = static_cast<const emulator::HalfWord*>(operands.rows[m][0]);
      const auto* const high = static_cast<const emulator::HalfWord*>(operands.rows[m][1]);
      registers[m] = low[lane / 4] | static_cast<uint32_t>(high[lane / 4]) << 16;
    } else {
      registers[m] = static_cast<const emulator::Word*>(operands.rows[m][0])[lane % 4];
    }
  }
}

namespace emulated {
inline void mma(emulator::Execute execute, float& c0, float& c1, float& c2, float& c3,
                const uint32_t (&a)[4], uint32_t b0, uint32_t b1, emulator::Place place) {
  emulator::Mma operands{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c0, c1, c2, c3}};
  emulator::meet(0xffffffffu, execute, &operands, false, place);
  c0 = operands.c[0], c1 = operands.c[1], c2 = operands.c[2], c3 = operands.c[3];
}
}  // namespace emulated

inline void mma_bfloat16(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4],
                         uint32_t b0, uint32_t b1, ALPHAFUSE_PLACE) {
  emulated::mma(emulator::execute_mma_bfloat16, c0, c1, c2, c3, a, b0, b1, place);
}
inline void mma_float16(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4],
                        uint32_t b0, uint32_t b1, ALPHAFUSE_PLACE) {
  emulated::mma(emulator::execute_mma_float16, c0, c1, c2, c3, a, b0, b1, place);
}
inline void mma_tf32(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4],
                     uint32_t b0, uint32_t b1, ALPHAFUSE_PLACE) {
  emulated::mma(emulator::execute_mma_tf32, c0, c1, c2, c3, a, b0, b1, place);
}

// --- wgmma ----------------------------------------------------------------------------------------
//
// Each thread multiplies its own scores, from shared memory, when it waits for them; until then they are
// NaN. What it reads has to be, when the multiplication begins and when it ends, as all threads of the
// block had it when they last fenced.

inline bool has_wgmma(const Launch&) { return kWgmma; }

inline uint32_t shared_address(const void* p) {
  std::size_t bytes = 0;
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) -
                               emulator::dynamic_shared(bytes));
}

inline void fence_for_wgmma() { emulator::fence_proxy(); }
inline void begin_wgmma(ALPHAFUSE_PLACE) {
  emulator::meet(0xffffffffu, emulator::execute_nothing, nullptr, false, place);
  emulator::begin_wgmmas();
}

namespace emulated {

// Row `row`, column `k` on of a piece by the manual's layout of a matrix that is not swizzled, eight
// rows together.
inline const unsigned char* wgmma_piece(uint64_t matrix, int row, int k) {
  std::size_t bytes = 0;
  const uint64_t at = (matrix & 0x3fff) + row / 8 * (matrix >> 32 & 0x3fff) + row % 8 +
                      k / 8 * (matrix >> 16 & 0x3fff);
  return emulator::dynamic_shared(bytes) + at * 16;
}
// The thread's first row of the left matrix, and its row of the right one for sum `i`.
inline int wgmma_row() {
  return static_cast<int>(threadIdx.x) / 32 % 4 * 16 + emulator::lane() / 4;
}
inline int wgmma_column(int i) { return i / 2 * 8 + emulator::lane() % 4 * 2 + i % 2; }

// Of the right factor, column i of the thread's at depth k.
inline const unsigned char* wgmma_right(const emulator::Wgmma& wgmma, int i, int k) {
  const int column = wgmma_column(i);
  if (!wgmma.of_registers) return wgmma_piece(wgmma.right, column, k) + k % 8 * 2;
  // Here the strides stand for each other: eight of the depth are together, then its next piece.
  std::size_t bytes = 0;
  const uint64_t at = (wgmma.right & 0x3fff) + column / 8 * (wgmma.right >> 32 & 0x3fff) + k % 8 +
                      k / 8 * (wgmma.right >> 16 & 0x3fff);
  return emulator::dynamic_shared(bytes) + at * 16 + column % 8 * 2;
}

inline bool wgmma_sees(const emulator::Wgmma& wgmma) {
  bool sees = true;
  for (int k = 0; k < 16; k += 8) {
    for (const int below : {0, 8}) {
      sees = sees && (wgmma.of_registers ||
                      emulator::wgmma_sees(wgmma_piece(wgmma.left, wgmma_row() + below, k), 16));
    }
  }
  const int step = wgmma.of_registers ? 1 : 8;  // of the depth, in a piece
  for (int k = 0; k < 16; k += step) {
    for (int i = 0; i < wgmma.sums; ++i) {
      sees = sees && emulator::wgmma_sees(wgmma_right(wgmma, i, k), 2 * step);
    }
  }
  return sees;
}

inline float half_value(const unsigned char* at, bool bfloat16) {
  const uint16_t bits = *reinterpret_cast<const emulator::HalfWord*>(at);
  return bfloat16 ? __uint_as_float(uint32_t{bits} << 16) : __half2float(__ushort_as_half(bits));
}

inline void wgmma(const emulator::Wgmma& wgmma, emulator::Place place) {
  emulator::meet_group(place);
  if (!wgmma_sees(wgmma)) {
    emulator::fail("%s:%d: wgmma reads what was written after the last fence_for_wgmma", place.file,
                   place.line);
  }
  emulator::issue_wgmma(wgmma);
  for (int i = 0; i < wgmma.sums; ++i) {
    wgmma.top[i] = wgmma.bottom[i] = __uint_as_float(0xffffffffu);
  }
}
}  // namespace emulated

inline void wgmma_bfloat16(float (&top)[32], float (&bottom)[32], uint64_t left, uint64_t right,
                           ALPHAFUSE_PLACE) {
  emulated::wgmma({top, bottom, 32, left, right, true, false, {}}, place);
}
inline void wgmma_float16(float (&top)[32], float (&bottom)[32], uint64_t left, uint64_t right,
                          ALPHAFUSE_PLACE) {
  emulated::wgmma({top, bottom, 32, left, right, false, false, {}}, place);
}
inline void wgmma_registers(float (&top)[16], float (&bottom)[16], const uint32_t (&left)[4],
                            uint64_t right, ALPHAFUSE_PLACE) {
  emulator::Wgmma wgmma{top, bottom, 16, 0, right, true, true, {}};
  for (int lane = 0; lane < 4; ++lane) {  // the four that have the thread's rows
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair =
          emulator::shuffle(0xffffffffu, left[i], emulator::lane() / 4 * 4 + lane, place);
      float* const to = wgmma.rows[i % 2] + i / 2 * 8 + lane * 2;
      to[0] = __uint_as_float(pair << 16);
      to[1] = __uint_as_float(pair & 0xffff0000u);
    }
  }
  emulated::wgmma(wgmma, place);
}

template <int n>
void end_wgmma(float (&top)[n], float (&bottom)[n], ALPHAFUSE_PLACE) {
  emulator::meet(0xffffffffu, emulator::execute_nothing, nullptr, false, place);
  emulator::Wgmma wgmmas[emulator::kMaxWgmmas];
  const int count = emulator::finished_wgmmas(wgmmas);
  if (count == 0) return;
  if (wgmmas[0].top != top) emulator::fail("other registers than wgmma's are waited for");
  const float* const sums = emulator::kept_sums();
  for (int i = 0; i < n; ++i) {
    top[i] = sums[i];
    bottom[i] = sums[32 + i];
  }
  const int row = emulated::wgmma_row();
  for (int m = 0; m < count; ++m) {
    const emulator::Wgmma& wgmma = wgmmas[m];
    if (!emulated::wgmma_sees(wgmma)) {
      emulator::fail("%s:%d: what wgmma reads was written to before it was waited for", place.file,
                     place.line);
    }
    for (int k = 0; k < 16; ++k) {
      float rows[2] = {wgmma.rows[0][k], wgmma.rows[1][k]};
      for (int below = 0; below < 2 && !wgmma.of_registers; ++below) {
        const auto* const piece = emulated::wgmma_piece(wgmma.left, row + 8 * below, k);
        rows[below] = emulated::half_value(piece + k % 8 * 2, wgmma.bfloat16);
      }
      for (int i = 0; i < n; ++i) {
        const float other =
            emulated::half_value(emulated::wgmma_right(wgmma, i, k), wgmma.bfloat16);
        top[i] += rows[0] * other;
        bottom[i] += rows[1] * other;
      }
    }
  }
}

// --- Bulk copies ----------------------------------------------------------------------------------

inline void init_barrier(uint64_t* barrier, int arrivals) {
  emulator::init_phases(barrier, arrivals);
}
inline void arrive(uint64_t* barrier, ALPHAFUSE_PLACE) { emulator::arrive_at(barrier, 0, place); }
inline void arrive_expecting(uint64_t* barrier, int bytes, ALPHAFUSE_PLACE) {
  emulator::arrive_at(barrier, bytes, place);
}
inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0 || bytes % 16 != 0) {
    emulator::fail("copy_bulk: %p, %p and %d bytes are not all multiples of 16", shared, global,
                   bytes);
  }
  const auto* const from = static_cast<const unsigned char*>(global);
  for (int i = 0; i < bytes; ++i) (void)static_cast<const volatile unsigned char*>(from)[i];
  auto* const to = static_cast<unsigned char*>(shared);
  for (int i = 0; i < bytes / 4; ++i) reinterpret_cast<emulator::Word*>(to)[i] = 0xffffffffu;
  emulator::poison(to, static_cast<std::size_t>(bytes));
  emulator::issue_bulk_copy(barrier, {to, from, bytes, bytes});
}
inline void wait_barrier(uint64_t* barrier, int parity, ALPHAFUSE_PLACE) {
  emulator::Copy copies[emulator::kMaxBulkCopies];
  const int count = emulator::wait_for_phase(barrier, parity, copies, place);
  if (count < 0) return;
  for (int i = 0; i < count; ++i) emulated::make(copies[i]);
  emulator::end_phase(barrier);
}

// Rounded to the 10 bits of mantissa that a tensor core reads; ties away from zero.
inline uint32_t to_tf32(uint32_t bits) {
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace cuda
}  // namespace alphafuse
