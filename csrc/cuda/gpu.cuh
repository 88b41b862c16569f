// nvcc's half of device.cuh: instructions that have no name in CUDA C++, launches, checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "launch.h"

namespace alphafuse {
namespace cuda {

constexpr bool kEmulated = false;
constexpr int64_t kMaxBlocks = 65535;
constexpr std::size_t kSharedGap = 0;

#define ALPHAFUSE_SHARED(type, name, count) __shared__ type name[count]

#define ALPHAFUSE_DYNAMIC_SHARED(name)                   \
  extern __shared__ __align__(128) unsigned char name[]; \
  constexpr std::size_t name##_bytes = ~static_cast<std::size_t>(0)

__host__ __device__ inline void close_gap(unsigned char*, unsigned char*, bool) {}

// Out of line: what a kernel does not do costs it no registers.
[[noreturn]] static __device__ __noinline__ void fail_index(const char* argument, int64_t id,
                                                            int64_t place, int64_t min_id,
                                                            int64_t max_id) {
  printf("alphafuse_ext: %s: got %lld at position %lld; expected %lld <= id <= %lld\n", argument,
         static_cast<long long>(id), static_cast<long long>(place), static_cast<long long>(min_id),
         static_cast<long long>(max_id));
  __trap();
}

// --- Launching ------------------------------------------------------------------------------------

inline std::string version_of(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

inline void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string text = std::string(op) + ": CUDA error: " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    text += driver == 0 ? ". There is no driver"
                        : ". The driver is for CUDA " + version_of(driver) + " at most";
    text += ", and alphafuse_ext was built with CUDA " + version_of(runtime) +
            ": a newer driver runs it, or install it again with an nvcc of the driver's version";
  }
  if (error == cudaErrorNoKernelImageForDevice) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    text += ". This GPU has compute capability " + std::to_string(major) + "." +
            std::to_string(minor) +
            ", and alphafuse_ext was built for " ALPHAFUSE_CUDA_ARCHS
            "; install it again with ALPHAFUSE_CUDA_ARCHS=" +
            std::to_string(major) + std::to_string(minor);
  }
  throw std::runtime_error(text);
}

// The device of a launch is the current one within a scope. To set a device makes its context, of
// hundreds of megabytes: none is set that need not be.
class OnDevice {
 public:
  explicit OnDevice(const Launch& launch) {
    check("device", cudaGetDevice(&before_));
    changes_ = launch.device() != before_;
    if (changes_) check("device", cudaSetDevice(launch.device()));
  }
  ~OnDevice() {
    if (changes_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changes_ = false;
};

// Lets a kernel have as much dynamic shared memory as there is on the current device, for good: what
// one launch needs would be too little for that of another thread.
inline void allow_all_shared(const char* op, const void* kernel, int device) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device}) != 0) return;
  int max_shared = 0;
  cudaFuncAttributes attributes;
  check(op, cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(op, cudaFuncGetAttributes(&attributes, kernel));
  max_shared -= static_cast<int>(attributes.sharedSizeBytes);  // what it has without asking
  check(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, max_shared));
  allowed.insert({kernel, device});
}

template <class... P, class... A>
void enqueue(Launch& launch, const char* op, void (*kernel)(P...), dim3 grid, dim3 block,
             std::size_t shared_bytes, A&&... arguments) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  const OnDevice on(launch);
  if (shared_bytes > kWithoutAsking) {
    allow_all_shared(op, reinterpret_cast<const void*>(kernel), launch.device());
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(launch.stream())>>>(
      static_cast<P>(arguments)...);
  check(op, cudaGetLastError());
}

inline void fill_zero(Launch& launch, const char* op, void* memory, std::size_t bytes) {
  const OnDevice on(launch);
  check(op, cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(launch.stream())));
}

inline int multiprocessors(const Launch& launch) {
  int count = 0;
  check("device", cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, launch.device()));
  return count;
}

// --- Asynchronous copies --------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int keep>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(keep) : "memory");
}

// --- Arithmetic -----------------------------------------------------------------------------------

// Without the cases that keep denormal results, which nothing here asks for.
__device__ __forceinline__ float fast_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x));
  return power;
}

__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// --- Tensor cores ---------------------------------------------------------------------------------

template <int matrices, bool transposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[matrices], const void* row) {
  static_assert(matrices == 1 || matrices == 2 || matrices == 4, "ldmatrix loads 1, 2 or 4");
  const uint32_t from = shared_address(row);
  if constexpr (matrices == 4 && !transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  } else if constexpr (matrices == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  } else if constexpr (matrices == 2 && !transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (matrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (!transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
                 : "=r"(r[0])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n"
                 : "=r"(r[0])
                 : "r"(from)
                 : "memory");
  }
}

#define ALPHAFUSE_MMA(name, instruction)                                                          \
  __device__ __forceinline__ void name(float& c0, float& c1, float& c2, float& c3,                \
                                       const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {        \
    asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                 \
  }
ALPHAFUSE_MMA(mma_bfloat16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
ALPHAFUSE_MMA(mma_float16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
ALPHAFUSE_MMA(mma_tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef ALPHAFUSE_MMA

// --- wgmma ----------------------------------------------------------------------------------------

inline bool has_wgmma(const Launch& launch) {
  int major = 0, minor = 0;
  check("device",
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, launch.device()));
  check("device",
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, launch.device()));
  return kWgmma && major == 9 && minor == 0;
}

// In code for other devices, which has_wgmma() keeps from running, traps.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ALPHAFUSE_ON_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define ALPHAFUSE_ON_SM90A(...) __trap()
#endif

__device__ __forceinline__ void fence_for_wgmma() {
  ALPHAFUSE_ON_SM90A("fence.proxy.async.shared::cta;\n" :: : "memory");
}
__device__ __forceinline__ void begin_wgmma() {
  ALPHAFUSE_ON_SM90A("wgmma.fence.sync.aligned;\n" :: : "memory");
}
// The registers are the multiplication's until here.
template <int n>
__device__ __forceinline__ void end_wgmma(float (&top)[n], float (&bottom)[n]) {
  ALPHAFUSE_ON_SM90A(
      "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" :: : "memory");
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(top[i]), "+f"(bottom[i])::"memory");
}

// clang-format off
#define ALPHAFUSE_WGMMA_OF(name, types) \
  __device__ __forceinline__ void name(float (&top)[32], float (&bottom)[32], uint64_t left, \
                                       uint64_t right) { \
    ALPHAFUSE_ON_SM90A( \
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, 1, 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." types " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
        "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, " \
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, " \
        "%58, %59, %60, %61, %62, %63" \
        "}, %64, %65, adds, 1, 1, 0, 0;\n}\n" \
        : \
          "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1]), \
          "+f"(top[2]), "+f"(top[3]), "+f"(bottom[2]), "+f"(bottom[3]), \
          "+f"(top[4]), "+f"(top[5]), "+f"(bottom[4]), "+f"(bottom[5]), \
          "+f"(top[6]), "+f"(top[7]), "+f"(bottom[6]), "+f"(bottom[7]), \
          "+f"(top[8]), "+f"(top[9]), "+f"(bottom[8]), "+f"(bottom[9]), \
          "+f"(top[10]), "+f"(top[11]), "+f"(bottom[10]), "+f"(bottom[11]), \
          "+f"(top[12]), "+f"(top[13]), "+f"(bottom[12]), "+f"(bottom[13]), \
          "+f"(top[14]), "+f"(top[15]), "+f"(bottom[14]), "+f"(bottom[15]), \
          "+f"(top[16]), "+f"(top[17]), "+f"(bottom[16]), "+f"(bottom[17]), \
          "+f"(top[18]), "+f"(top[19]), "+f"(bottom[18]), "+f"(bottom[19]), \
          "+f"(top[20]), "+f"(top[21]), "+f"(bottom[20]), "+f"(bottom[21]), \
          "+f"(top[22]), "+f"(top[23]), "+f"(bottom[22]), "+f"(bottom[23]), \
          "+f"(top[24]), "+f"(top[25]), "+f"(bottom[24]), "+f"(bottom[25]), \
          "+f"(top[26]), "+f"(top[27]), "+f"(bottom[26]), "+f"(bottom[27]), \
          "+f"(top[28]), "+f"(top[29]), "+f"(bottom[28]), "+f"(bottom[29]), \
          "+f"(top[30]), "+f"(top[31]), "+f"(bottom[30]), "+f"(bottom[31]) \
        : "l"(left), "l"(right)); \
  }
ALPHAFUSE_WGMMA_OF(wgmma_bfloat16, "bf16.bf16")
ALPHAFUSE_WGMMA_OF(wgmma_float16, "f16.f16")
#undef ALPHAFUSE_WGMMA_OF
__device__ __forceinline__ void wgmma_registers(float (&top)[16], float (&bottom)[16],
                                                const uint32_t (&left)[4], uint64_t right) {
  ALPHAFUSE_ON_SM90A(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 1;\n}\n"
      : "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1]),
        "+f"(top[2]), "+f"(top[3]), "+f"(bottom[2]), "+f"(bottom[3]),
        "+f"(top[4]), "+f"(top[5]), "+f"(bottom[4]), "+f"(bottom[5]),
        "+f"(top[6]), "+f"(top[7]), "+f"(bottom[6]), "+f"(bottom[7]),
        "+f"(top[8]), "+f"(top[9]), "+f"(bottom[8]), "+f"(bottom[9]),
        "+f"(top[10]), "+f"(top[11]), "+f"(bottom[10]), "+f"(bottom[11]),
        "+f"(top[12]), "+f"(top[13]), "+f"(bottom[12]), "+f"(bottom[13]),
        "+f"(top[14]), "+f"(top[15]), "+f"(bottom[14]), "+f"(bottom[15])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}
// clang-format on

// --- Bulk copies ----------------------------------------------------------------------------------

__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  ALPHAFUSE_ON_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
                     "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  ALPHAFUSE_ON_SM90A(
      "mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  ALPHAFUSE_ON_SM90A(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
      "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_barrier(uint64_t* barrier, int parity) {
  uint32_t over = 1;
  do {
    ALPHAFUSE_ON_SM90A(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}\n" : "=r"(over) : "r"(shared_address(barrier)),
        "r"(parity) : "memory");
  } while (over == 0);
}
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes,
                                          uint64_t* barrier) {
  ALPHAFUSE_ON_SM90A(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
#undef ALPHAFUSE_ON_SM90A

__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

}  // namespace cuda
}  // namespace alphafuse
