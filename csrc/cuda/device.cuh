// All that kernels see of CUDA. Compiled by nvcc it is CUDA (gpu.cuh); compiled by a C++ compiler it
// is the emulator (../emulator/device.h), and the same kernel runs on the CPU. Beyond what CUDA itself
// names, both halves have:
//
//   enqueue(launch, op, kernel, grid, block, shared_bytes, arguments...)
//       puts a kernel on the stream of a Launch; errors are exceptions that begin with `op`
//   fill_zero(launch, op, memory, bytes); multiprocessors(launch), of the device
//   kEmulated; kMaxBlocks: kernels stride over more work than this many blocks have
//   ALPHAFUSE_SHARED(type, name, count)   a shared array of the block
//   ALPHAFUSE_DYNAMIC_SHARED(name)        the launch's shared memory; see SharedMemoryArena
//   fail_index(argument, id, place, min_id, max_id)
//       ends the kernel, in Release builds as well: an exception in the emulator, on a GPU a line on
//       standard output and an error of the launches that follow
//   copy_async(shared, global, bytes)     cp.async of 16 bytes, of which those after `bytes` are
//       zeros; commit_copies(), wait_copies<keep>()
//   load_matrices<1 | 2 | 4, transposed>(registers, row)       ldmatrix
//   fast_exp2(x): 2^x to a few units in the last place, 0 where that is below 2^-126
//   pack_bfloat16(low, high): two values in a register, rounded to nearest
//   mma_bfloat16, mma_float16 (m16n8k16), mma_tf32 (m16n8k8); to_tf32(bits), rounded to nearest
//   kWgmma: built for sm_90a's wgmma; has_wgmma(launch): and this device has it. Where it is not built
//   the rest is there and never called:
//   shared_address(p): of shared memory, from 0 on
//   fence_for_wgmma(): before the barrier after which others multiply what this thread has written
//   begin_wgmma(), wgmma_bfloat16, wgmma_float16 (m64n128k16), end_wgmma(), by all of four warps;
//       wgmma_registers (m64n64k16, bfloat16), whose left factor lies as mma's, and whose right one has
//       columns next to each other
//   copy_bulk(shared, global, bytes, barrier)    cp.async.bulk, multiples of 16, of which an mbarrier's
//       phase waits: init_barrier(barrier, arrivals), and fence_for_wgmma() before the first copy;
//       arrive(barrier); arrive_expecting(barrier, bytes), of copies; wait_barrier(barrier, parity):
//       for the end of a phase, of which the first has parity 0, and the one before it is over
#pragma once

#include "launch.h"
#include "tables.h"

namespace alphafuse {
namespace cuda {
#if defined(ALPHAFUSE_WGMMA)
constexpr bool kWgmma = true;
#else
constexpr bool kWgmma = false;
#endif
}  // namespace cuda
}  // namespace alphafuse

#if defined(__CUDACC__)
#include "cuda/gpu.cuh"
#else
#include "emulator/device.h"
#endif

namespace alphafuse {
namespace cuda {

constexpr int kThreads = 256;  // of a block, where nothing asks for another number
constexpr int kWarpLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
__host__ __device__ inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

// Blocks for `count` pieces of work of which each block does `of_block` at a time; kernels stride
// over the grid.
inline unsigned int grid_of(int64_t count, int64_t of_block = kThreads) {
  return static_cast<unsigned int>(max(1, min(ceil_div(count, of_block), kMaxBlocks)));
}

// --- Memory, array by array -----------------------------------------------------------------------

// Hands out parts of a block's shared memory, each aligned to 16 bytes. Begun at null it hands out
// nothing and counts: the same code says how much to ask for and where each array lies. In the
// emulator no thread may touch the gap after an array.
class SharedMemoryArena {
 public:
  __host__ __device__ explicit SharedMemoryArena(unsigned char* begin = nullptr,
                                                 std::size_t room = 0)
      : begin_(begin), room_(room) {}

  template <class T>
  __host__ __device__ T* take(int64_t count) {
    const std::size_t from = used_, bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ = from + (bytes + 15) / 16 * 16 + kSharedGap;
    if (begin_ == nullptr) return nullptr;
    close_gap(begin_ + from + bytes, begin_ + used_, used_ <= room_);
    return reinterpret_cast<T*>(begin_ + from);
  }

  __host__ __device__ std::size_t used() const { return used_; }

 private:
  unsigned char* begin_;
  std::size_t room_, used_ = 0;
};

// --- Values ---------------------------------------------------------------------------------------

__host__ __device__ inline int size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

template <class T>
constexpr DType dtype_of() {
  static_assert(sizeof(T) == sizeof(float), "half types have their own");
  return DType::kFloat32;
}
template <>
constexpr DType dtype_of<__half>() {
  return DType::kFloat16;
}
template <>
constexpr DType dtype_of<__nv_bfloat16>() {
  return DType::kBFloat16;
}

constexpr float kLog2E = 1.44269504f;

__device__ inline float fast_exp(float x) { return fast_exp2(x * kLog2E); }

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

// The lower 16 bits of a word as a value of one of the half types.
__device__ inline float float_of_half(uint32_t word, DType dtype) {
  return dtype == DType::kBFloat16 ? __uint_as_float(word << 16)
                                   : to_float(__ushort_as_half(static_cast<uint16_t>(word)));
}

__device__ inline float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::kFloat16:
      return to_float(static_cast<const __half*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

__device__ inline void store(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(data)[i] = from_float<__nv_bfloat16>(value);
      break;
    case DType::kFloat16:
      static_cast<__half*>(data)[i] = from_float<__half>(value);
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

// Column `d` of the fused row `row` of this part of the catalog.
__device__ inline float fused(const Tables& tables, int64_t row, int64_t d) {
  float value = 0.0f;
  if (d < tables.semantic.cols) {
    value = load(tables.semantic.data, tables.semantic.dtype, row * tables.semantic.stride + d);
  }
  if (d >= tables.null_offset) {  // of no column, where there are no ID embeddings
    value += load(tables.id.data, tables.id.dtype, row * tables.id.stride + d - tables.null_offset);
  }
  return value;
}

// --- Tensor cores ---------------------------------------------------------------------------------

template <Precision precision>
__device__ inline void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4],
                           uint32_t b0, uint32_t b1) {
  if constexpr (precision == Precision::kBFloat16) {
    mma_bfloat16(c0, c1, c2, c3, a, b0, b1);
  } else if constexpr (precision == Precision::kFloat16) {
    mma_float16(c0, c1, c2, c3, a, b0, b1);
  } else {
    static_assert(precision == Precision::kTF32, "tensor cores do not multiply float32");
    mma_tf32(c0, c1, c2, c3, a, b0, b1);
  }
}

constexpr int kWarpsOfGroup = 4;  // that wgmma multiplies by

// What wgmma is told of a matrix in shared memory, not swizzled: rows of two pieces of 16 bytes, from
// one to the other `piece_stride` bytes; eight rows lie together, and to the next eight it is
// `eight_stride`. Of one that is multiplied from its other side, by wgmma_registers, the two stand for
// each other: to the next eight rows, and to the next piece.
class MatrixInShared {
 public:
  __device__ MatrixInShared(const void* at, int piece_stride, int eight_stride)
      : bits_(sixteenths(shared_address(at)) |
              sixteenths(static_cast<uint32_t>(piece_stride)) << 16 |
              sixteenths(static_cast<uint32_t>(eight_stride)) << 32) {}

  __device__ void advance(int bytes) { bits_ += sixteenths(static_cast<uint32_t>(bytes)); }
  __device__ uint64_t bits() const { return bits_; }

 private:
  static __device__ uint64_t sixteenths(uint32_t bytes) { return (bytes & 0x3ffff) >> 4; }

  uint64_t bits_;
};

// Adds 64 x 128 scores over 16 columns; of these a thread has, as with mma, the row l / 4 of its warp
// in `top`, the row 8 below in `bottom`, and the columns l % 4 * 2 and the next one of every eight.
template <Precision precision>
__device__ inline void wgmma(float (&top)[32], float (&bottom)[32], const MatrixInShared& left,
                             const MatrixInShared& right) {
  if constexpr (precision == Precision::kBFloat16) {
    wgmma_bfloat16(top, bottom, left.bits(), right.bits());
  } else {
    static_assert(precision == Precision::kFloat16, "halves alone");
    wgmma_float16(top, bottom, left.bits(), right.bits());
  }
}

// --- Warps ----------------------------------------------------------------------------------------

// Sums over groups of `lanes` neighbouring lanes, in a fixed order; all lanes of the warp call.
template <int lanes>
__device__ inline float sum_lanes(float value) {
#pragma unroll
  for (int bit = lanes / 2; bit > 0; bit /= 2) value += __shfl_xor_sync(kAllLanes, value, bit);
  return value;
}

template <int lanes>
__device__ inline float max_lanes(float value) {
#pragma unroll
  for (int bit = lanes / 2; bit > 0; bit /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, bit));
  }
  return value;
}

}  // namespace cuda
}  // namespace alphafuse
