// Tests of the emulator itself: every instruction against its definition, and planted faults, each
// of which must be noticed by what the build can notice: the emulator alone, AddressSanitizer or
// ThreadSanitizer.
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/rows.cuh"
#include "tests/checks.h"

namespace alphafuse {
namespace cuda {
namespace {

using tests::expect;

std::mt19937 generator(11);
Launch host(-1, nullptr);

// --- Instructions ---------------------------------------------------------------------------------

__global__ void shuffles_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int* const row = out + (warp * 32 + lane) * 16;
  row[0] = __shfl_sync(kAllLanes, lane * 10, 5);
  row[1] = __shfl_xor_sync(kAllLanes, lane * 10, 3);
  row[2] = __shfl_up_sync(kAllLanes, lane * 10, 2);
  row[3] = __shfl_down_sync(kAllLanes, lane * 10, 2);
  row[4] = __shfl_down_sync(kAllLanes, lane * 10, 3, 8);
  row[5] = static_cast<int>(__ballot_sync(kAllLanes, lane % 3 == 0));
  row[6] = __any_sync(kAllLanes, lane == 31);
  row[7] = __all_sync(kAllLanes, lane < 31);
  row[8] = static_cast<int>(__match_any_sync(kAllLanes, static_cast<unsigned>(lane / 4)));
  row[9] = __reduce_add_sync(kAllLanes, lane - 3);
  row[10] = __reduce_min_sync(kAllLanes, lane - 3);
  row[11] = static_cast<int>(__reduce_max_sync(kAllLanes, static_cast<unsigned>(lane)));
  if (lane < 16) {  // half a warp by itself
    row[12] = __shfl_xor_sync(0xffffu, lane, 1);
  } else {
    row[12] = __shfl_xor_sync(0xffff0000u, lane, 2);
  }
  const double d = __shfl_xor_sync(kAllLanes, lane + 0.25, 16);
  row[13] = static_cast<int>(d * 4);
  row[14] = __syncthreads_count(lane == 7) * 100 + __syncthreads_or(lane == 3) * 10 +
            __syncthreads_and(lane != 3);
  row[15] = static_cast<int>(sum_lanes<8>(static_cast<float>(lane)));
}

void test_shuffles() {
  std::vector<int> out(64 * 16, -7);
  enqueue(host, "test", shuffles_kernel, 1, 64, 0, out.data());
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32, *const row = &out[t * 16];
    const int expected[16] = {
        50,
        (lane ^ 3) * 10,
        (lane < 2 ? lane : lane - 2) * 10,
        (lane > 29 ? lane : lane + 2) * 10,
        (lane % 8 > 4 ? lane : lane + 3) * 10,
        0x49249249,
        1,
        0,
        static_cast<int>(0xfu << lane / 4 * 4),
        496 - 96,
        -3,
        31,
        lane < 16 ? lane ^ 1 : lane ^ 2,
        (lane ^ 16) * 4 + 1,
        210,
        lane / 8 * 64 + 28,
    };
    for (int i = 0; i < 16; ++i) {
      expect(row[i] == expected[i], "shuffle " + std::to_string(i) + ": got " +
                                        std::to_string(row[i]) + ", expected " +
                                        std::to_string(expected[i]));
    }
  }
}

template <int matrices, bool transposed>
__global__ void load_matrices_kernel(const uint16_t* in, uint32_t* out) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  auto* const rows = arena.take<uint16_t>(32 * 8);
  for (int i = 0; i < 8; ++i) rows[threadIdx.x * 8 + i] = in[threadIdx.x * 8 + i];
  __syncthreads();
  uint32_t registers[matrices];
  load_matrices<matrices, transposed>(registers, rows + threadIdx.x * 8);
  for (int m = 0; m < matrices; ++m) out[m * 32 + threadIdx.x] = registers[m];
}

template <int matrices, bool transposed>
void test_load_matrices() {
  std::vector<uint16_t> in(32 * 8);
  for (auto& x : in) x = static_cast<uint16_t>(generator());
  std::vector<uint32_t> out(32 * 4);
  SharedMemoryArena arena;
  arena.take<uint16_t>(32 * 8);
  enqueue(host, "test", load_matrices_kernel<matrices, transposed>, 1, 32, arena.used(), in.data(),
          out.data());
  for (int m = 0; m < matrices; ++m) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) {
        // The PTX manual's figures: row and pair of columns; both turned over with .trans.
        const int r = transposed ? column : row, c = transposed ? row : column;
        const uint32_t word = out[m * 32 + r * 4 + c / 2];
        expect((word >> 16 * (c % 2) & 0xffff) == in[(m * 8 + row) * 8 + column], "ldmatrix");
      }
    }
  }
}

// Element types of mma: how many to a register, how to read one.
struct Kind {
  int of_word;
  float (*value)(uint32_t bits);
  void (*multiply)(float&, float&, float&, float&, const uint32_t (&)[4], uint32_t, uint32_t);
};
__global__ void mma_kernel(Kind kind, const uint32_t* a, const uint32_t* b, float* c) {
  const int l = static_cast<int>(threadIdx.x);
  const uint32_t registers[4] = {a[l * 4], a[l * 4 + 1], a[l * 4 + 2], a[l * 4 + 3]};
  float* const d = c + l * 4;
  kind.multiply(d[0], d[1], d[2], d[3], registers, b[l * 2], b[l * 2 + 1]);
}

void test_mma(const Kind& kind) {
  // Filled by element, by the manual's formulas for row and column of each register's elements.
  const int depth = 8 * kind.of_word;
  std::vector<double> a(16 * depth), b(depth * 8), c(16 * 8);
  std::vector<uint32_t> a_words(128), b_words(64);
  std::vector<float> c_words(128);
  const auto random_bits = [&] {
    const float value = std::normal_distribution<float>()(generator);
    const uint32_t bits = __float_as_uint(value);
    if (kind.of_word == 1) return bits & 0xffffe000u;
    if (kind.value(0x3c00) != 1.0f) return bits >> 16;  // bfloat16
    const __half h = __float2half(value);
    uint16_t half_bits;
    std::memcpy(&half_bits, &h, 2);
    return uint32_t{half_bits};
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 4 * kind.of_word; ++i) {
      const int reg = i / kind.of_word;
      const int row = reg == 0 || reg == 2 ? group : group + 8;
      const int column = in_group * kind.of_word + i % kind.of_word + (reg < 2 ? 0 : depth / 2);
      const uint32_t bits = random_bits();
      a_words[lane * 4 + reg] |= bits << 16 * (i % kind.of_word);
      a[row * depth + column] = kind.value(bits);
    }
    for (int i = 0; i < 2 * kind.of_word; ++i) {
      const int reg = i / kind.of_word;
      const int row = in_group * kind.of_word + i % kind.of_word + (reg == 0 ? 0 : depth / 2);
      const uint32_t bits = random_bits();
      b_words[lane * 2 + reg] |= bits << 16 * (i % kind.of_word);
      b[row * 8 + group] = kind.value(bits);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
      c_words[lane * 4 + i] = static_cast<float>(row * 8 + column);
      c[row * 8 + column] = c_words[lane * 4 + i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < depth; ++k) {
        c[row * 8 + column] += a[row * depth + k] * b[k * 8 + column];
      }
    }
  }
  enqueue(host, "test", mma_kernel, 1, 32, 0, kind, a_words.data(), b_words.data(), c_words.data());
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
      expect(std::fabs(c_words[lane * 4 + i] - c[row * 8 + column]) < 1e-3, "mma");
    }
  }
}

void test_mmas() {
  test_mma({2, [](uint32_t bits) { return __bfloat162float({static_cast<uint16_t>(bits)}); },
            [](float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
               uint32_t b1) { mma_bfloat16(c0, c1, c2, c3, a, b0, b1); }});
  test_mma({2,
            [](uint32_t bits) {
              const auto half_bits = static_cast<uint16_t>(bits);
              __half h;
              std::memcpy(&h, &half_bits, 2);
              return __half2float(h);
            },
            [](float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
               uint32_t b1) { mma_float16(c0, c1, c2, c3, a, b0, b1); }});
  test_mma({1, [](uint32_t bits) { return __uint_as_float(bits); },
            [](float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
               uint32_t b1) { mma_tf32(c0, c1, c2, c3, a, b0, b1); }});
}

__global__ void atomics_kernel(float* sum, int* max_of_all, unsigned long long* min_one,
                               int* swapped) {
  atomicAdd(sum, 0.5f);
  atomicMax(max_of_all, static_cast<int>(threadIdx.x) - 100);
  atomicMin(min_one, static_cast<unsigned long long>(blockIdx.x) + 7);
  atomicCAS(swapped, 0, static_cast<int>(threadIdx.x) + 1);
}

void test_atomics() {
  float sum = 0;
  int max_one = -1000, swapped = 0;
  unsigned long long min_one = 99;
  enqueue(host, "test", atomics_kernel, 5, 64, 0, &sum, &max_one, &min_one, &swapped);
  expect(sum == 160.0f && max_one == -37 && min_one == 7 && swapped >= 1 && swapped <= 64,
         "atomics");
}

__global__ void copies_kernel(const float* in, int bytes, float* out) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  float* const place = arena.take<float>(4);
  copy_async(place, in, bytes);
  commit_copies();
  wait_copies<0>();
  for (int i = 0; i < 4; ++i) out[i] = place[i];
}

void test_copies() {
  alignas(16) const float in[4] = {1, 2, 3, 4};
  SharedMemoryArena arena;
  arena.take<float>(4);
  for (int bytes : {0, 4, 12, 16}) {
    float out[4] = {9, 9, 9, 9};
    enqueue(host, "test", copies_kernel, 1, 1, arena.used(), in, bytes, out);
    for (int i = 0; i < 4; ++i) {
      expect(out[i] == (i * 4 < bytes ? in[i] : 0.0f), "cp.async of " + std::to_string(bytes));
    }
  }
}

// What no device has, and what not all have.
void test_limits() {
  const auto refused = [](unsigned int threads, std::size_t shared_bytes) {
    try {
      enqueue(host, "test", copies_kernel, 1, threads, shared_bytes, nullptr, 0, nullptr);
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  };
  expect(refused(1025, 16), "1025 threads");
  expect(refused(1, (99 << 10) + 1), "more shared memory than a block has on 8.6, 8.9 and 12.0");
}

__global__ void index_kernel(int64_t id) {
  if (threadIdx.x == 9 && id > 4) fail_index("ids", id, 3, 0, 4);
}

void test_fail_index() {
  std::string message;
  try {
    enqueue(host, "lookup", index_kernel, 2, 32, 0, int64_t{5});
  } catch (const std::out_of_range& error) {
    message = error.what();
  }
  expect(message == "ids: got 5 at position 3; expected 0 <= id <= 4", "fail_index: " + message);
  enqueue(host, "lookup", index_kernel, 2, 32, 0, int64_t{4});  // and all goes on
}

// --- Planted faults -------------------------------------------------------------------------------

// Sums of rows of 64 numbers, and the sum of all: a ring of copies, a barrier a stage, shuffles, a
// static shared array, an atomic.
enum Fault {
  kNone,
  kNoBarrier,        // the stage is read before all its copies have come
  kNoWait,           // one group too few is waited for
  kRefillTooEarly,   // a stage that others still read is written to
  kRowTooFar,        // a copy goes one row too far
  kWriteTooFar,      // a plain write goes behind an array
  kBarrierInBranch,  // not all threads reach a barrier
  kAbsentLanes,      // not all lanes of the mask reach a shuffle
  kOnePlace,         // two blocks write to one place
  kNoSecondBarrier,  // a shared array is read before it is written
  kNotAtomic,        // += across blocks
  kReadTooFar,       // global memory is read behind its end
  kNeverWaited,      // copies are left behind
};

constexpr int kRowsOfStage = 16, kCols = 64, kStages = 3, kWarps = 4;

template <Fault fault>
__global__ void row_sums_kernel(const float* in, int rows, float* sums, float* total) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  ALPHAFUSE_SHARED(float, warp_sums, kWarps);
  SharedMemoryArena arena(shared, shared_bytes);
  float* const ring = arena.take<float>(kStages * kRowsOfStage * kCols);
  float* const last = arena.take<float>(kWarps);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int stages = rows / kRowsOfStage;

  const auto fetch = [&](int stage) {
    const int i = static_cast<int>(blockIdx.x) + stage * static_cast<int>(gridDim.x);
    for (int c = thread; i < stages && c < kRowsOfStage * kCols / 4; c += 32 * kWarps) {
      const int too_far = fault == kRowTooFar && stage % kStages == kStages - 1 ? kCols : 0;
      copy_async(ring + stage % kStages * kRowsOfStage * kCols + c * 4 + too_far,
                 in + i * kRowsOfStage * kCols + c * 4);
    }
    commit_copies();
  };
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  float sum_of_warp = 0.0f;
  int stage = 0;
  for (int i = static_cast<int>(blockIdx.x); i < stages; i += static_cast<int>(gridDim.x)) {
    wait_copies<fault == kNoWait ? kStages - 1 : kStages - 2>();
    if (fault == kRefillTooEarly) fetch(stage + kStages - 1);
    if (fault != kNoBarrier) __syncthreads();
    if (fault != kRefillTooEarly) fetch(stage + kStages - 1);
    for (int r = warp; r < kRowsOfStage; r += kWarps) {
      const float* const row = ring + (stage % kStages * kRowsOfStage + r) * kCols;
      float sum = row[lane] + row[lane + 32];
      for (int bit = 16; bit > 0; bit /= 2) {
        if (fault != kAbsentLanes || bit != 2 || lane < 30) {
          sum += __shfl_xor_sync(kAllLanes, sum, bit);
        }
      }
      if (lane == 0) {
        if (fault == kOnePlace) {
          sums[r] += sum;
        } else {
          sums[i * kRowsOfStage + r] = sum;
        }
      }
      sum_of_warp += sum;
    }
    if (fault == kBarrierInBranch && warp == 1) __syncthreads();
    ++stage;
  }
  wait_copies<0>();
  if (fault == kNeverWaited) {
    copy_async(ring + thread * 4, in + thread * 4);
    commit_copies();
  }
  if (lane == 0) warp_sums[warp] = sum_of_warp;
  if (fault == kWriteTooFar) last[warp + 1] = sum_of_warp;
  if (fault != kNoSecondBarrier) __syncthreads();
  if (thread == 0) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w];
    if (fault == kReadTooFar) sum += 0.0f * in[rows * kCols];
    if (fault == kNotAtomic) {
      *total += sum;
    } else {
      atomicAdd(total, sum);
    }
  }
}

template <Fault fault>
bool row_sums_are_right() {
  const int rows = 16 * kRowsOfStage;
  float* const in = static_cast<float*>(std::aligned_alloc(16, rows * kCols * sizeof(float)));
  std::vector<float> sums(rows, NAN);
  if (fault == kOnePlace) sums.assign(rows, 0.0f);
  float total = 0, expected_total = 0;
  for (int i = 0; i < rows * kCols; ++i) in[i] = static_cast<float>(generator() % 8);
  SharedMemoryArena arena;
  arena.take<float>(kStages * kRowsOfStage * kCols);
  arena.take<float>(kWarps);
  enqueue(host, "row_sums", row_sums_kernel<fault>, static_cast<unsigned>(kMaxBlocks), 32 * kWarps,
          arena.used(), in, rows, sums.data(), &total);
  bool good = true;
  for (int r = 0; r < rows; ++r) {
    float expected = 0;
    for (int c = 0; c < kCols; ++c) expected += in[r * kCols + c];
    good = good && sums[r] == expected;
    expected_total += expected;
  }
  std::free(in);
  return good && total == expected_total;
}

// Two slices of 128 x 128 scores by wgmma, one of two stages each, refilled by plain writes.
enum WgmmaFault {
  kNoWgmmaFault,
  kNoProxyFence,      // writes are not fenced
  kFenceTooEarly,     // or before they are made
  kNotBegun,          // registers that were written are multiplied into at once
  kReadTooEarly,      // sums are read before they are waited for
  kRefilledTooEarly,  // a stage is written to while it is multiplied
  kThreeWarps,        // one of the four does not take part
  kNoWgmmaWait,       // sums are never waited for
};

template <WgmmaFault fault>
__global__ void wgmma_kernel(const uint16_t* left, const uint16_t* right, float* out) {
  using Slice = PiecesOfSlice<128>;
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  auto* const lefts = arena.take<unsigned char>(Slice::kBytes);
  auto* const rights = arena.take<unsigned char>(Slice::kBytes);
  const int thread = static_cast<int>(threadIdx.x), row = thread % 128;
  const auto write = [&](int slice) {  // a row of either by a thread
    unsigned char* const to = (thread < 128 ? lefts : rights) + row * Slice::kPitch;
    const uint16_t* const from = (thread < 128 ? left : right) + (slice * 128 + row) * 32;
    for (int k = 0; k < 32; ++k) {
      reinterpret_cast<uint16_t*>(to + k / 8 * Slice::kPieceStride)[k % 8] = from[k];
    }
  };
  float top[32] = {}, bottom[32] = {};
  for (int slice = 0; slice < 2; ++slice) {
    if (fault == kFenceTooEarly) fence_for_wgmma();
    write(slice);
    if (fault != kNoProxyFence && fault != kFenceTooEarly) fence_for_wgmma();
    __syncthreads();
    MatrixInShared a(lefts + thread / 128 * 64 * Slice::kPitch, Slice::kPieceStride, 128);
    MatrixInShared b(rights, Slice::kPieceStride, 128);
    if (fault != kNotBegun) begin_wgmma();
    for (int step = 0; step < 2; ++step) {
      if (fault != kThreeWarps || slice == 0 || thread / 32 != 2) {
        wgmma<Precision::kBFloat16>(top, bottom, a, b);
      }
      a.advance(2 * Slice::kPieceStride);
      b.advance(2 * Slice::kPieceStride);
    }
    if (fault == kReadTooEarly && slice == 1) out[thread * 64] = top[0];
    if (fault == kRefilledTooEarly && slice == 0) write(1);
    if (fault != kNoWgmmaWait || slice == 0) end_wgmma(top, bottom);
    __syncthreads();
  }
  for (int i = fault == kReadTooEarly ? 1 : 0; i < 64; ++i) {
    out[thread * 64 + i] = i % 2 == 0 ? top[i / 2] : bottom[i / 2];
  }
}

template <WgmmaFault fault>
bool wgmma_is_right() {
  std::vector<uint16_t> left(2 * 128 * 32), right(left.size());
  for (std::vector<uint16_t>* const bits : {&left, &right}) {
    for (uint16_t& value : *bits) {
      value = static_cast<uint16_t>(__float_as_uint(static_cast<float>(generator() % 5)) >> 16);
    }
  }
  const auto at = [](const std::vector<uint16_t>& bits, int slice, int row, int k) {
    return __uint_as_float(static_cast<uint32_t>(bits[(slice * 128 + row) * 32 + k]) << 16);
  };
  std::vector<float> out(256 * 64);
  SharedMemoryArena arena;
  arena.take<unsigned char>(PiecesOfSlice<128>::kBytes);
  arena.take<unsigned char>(PiecesOfSlice<128>::kBytes);
  enqueue(host, "wgmma", wgmma_kernel<fault>, 2, 256, arena.used(), left.data(), right.data(),
          out.data());
  bool good = true;
  for (int thread = 0; thread < 256; ++thread) {
    for (int i = 0; i < 64; ++i) {
      const int row = thread / 128 * 64 + thread / 32 % 4 * 16 + thread % 32 / 4 + i % 2 * 8;
      const int column = i / 4 * 8 + thread % 4 * 2 + i / 2 % 2;
      float expected = 0;
      for (int k = 0; k < 64; ++k) {
        expected += at(left, k / 32, row, k % 32) * at(right, k / 32, column, k % 32);
      }
      good = good && out[thread * 64 + i] == expected;
    }
  }
  return good;
}

// Two warps add up what bulk copies of a third bring into a ring of two stages.
enum BulkFault {
  kNoBulkFault,
  kNoFullWait,       // one warp reads without waiting
  kNoEmptyWait,      // a stage that is read is copied to
  kTooFewBytes,      // less is expected than is copied
  kNoArrival,        // one warp never frees a stage
  kNotInitialised,   // an mbarrier is used that is not one
  kBulkNeverWaited,  // the last copy
};

constexpr int kBulkFloats = 64, kBulkRounds = 8;

template <BulkFault fault>
__global__ void bulk_kernel(const float* in, float* sums) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  auto* const ring = arena.take<float>(2 * kBulkFloats);
  auto* const full = arena.take<uint64_t>(2);
  auto* const empty = arena.take<uint64_t>(2);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      init_barrier(full + stage, 1);
      if (fault != kNotInitialised || stage == 0) init_barrier(empty + stage, 2);
    }
  }
  fence_for_wgmma();
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < kBulkRounds; ++i) {
    const int stage = i % 2, parity = i / 2 % 2;
    if (warp == 2) {
      if (lane != 0) continue;
      if (fault != kNoEmptyWait) wait_barrier(empty + stage, parity ^ 1);
      arrive_expecting(full + stage, fault == kTooFewBytes ? 128 : 256);
      copy_bulk(ring + stage * kBulkFloats, in + i * kBulkFloats, 256, full + stage);
    } else {
      if (fault == kBulkNeverWaited && i == kBulkRounds - 1) break;
      if (fault != kNoFullWait || warp != 1) wait_barrier(full + stage, parity);
      const float* const row = ring + stage * kBulkFloats;
      sum += row[lane] + row[lane + 32];
      __syncwarp();
      if (lane == 0 && (fault != kNoArrival || warp != 1)) arrive(empty + stage);
    }
  }
  __syncthreads();
  sums[thread] = sum;
}

template <BulkFault fault>
bool bulk_is_right() {
  constexpr int kFloats = kBulkFloats * kBulkRounds;
  float* const in = static_cast<float*>(std::aligned_alloc(16, kFloats * sizeof(float)));
  for (int i = 0; i < kFloats; ++i) in[i] = static_cast<float>(generator() % 8);
  std::vector<float> sums(96);
  SharedMemoryArena arena;
  arena.take<float>(2 * kBulkFloats);
  arena.take<uint64_t>(2);
  arena.take<uint64_t>(2);
  enqueue(host, "bulk", bulk_kernel<fault>, 1, 96, arena.used(), in, sums.data());
  bool good = true;
  for (int thread = 0; thread < 64; ++thread) {
    float expected = 0;
    for (int i = thread % 32; i < kFloats; i += 32) expected += in[i];
    good = good && sums[thread] == expected;
  }
  std::free(in);
  return good;
}

// Which builds must notice.
enum Notice { kPlain = 1, kAddress = 2, kThread = 4, kAllBuilds = 7 };
#if defined(ALPHAFUSE_ASAN)
constexpr int kThisBuild = kAddress;
#elif defined(__SANITIZE_THREAD__)
constexpr int kThisBuild = kThread;
#else
constexpr int kThisBuild = kPlain;
#endif

void plant(const char* name, int noticed_by, bool (*is_right)()) {
  int noticed = 0;
  constexpr int kSeeds = 5;
  std::string reason;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const tests::Outcome outcome = tests::in_child([&] {
      emulator::set_seed(static_cast<uint64_t>(seed));
      return is_right();
    });
    noticed += !outcome.good;
    if (!outcome.good) reason = outcome.reason;
  }
  std::printf("%-28s %d of %d seeds  %s\n", name, noticed, kSeeds, reason.substr(0, 140).c_str());
  if (noticed_by == 0) {
    expect(noticed == 0, std::string("reported without a fault: ") + reason);
  } else if ((noticed_by & kThisBuild) != 0) {
    expect(noticed >= 4, std::string("not noticed: ") + name);
  }
}

template <Fault fault>
void plant(const char* name, int noticed_by) {
  plant(name, noticed_by, row_sums_are_right<fault>);
}
template <WgmmaFault fault>
void plant(const char* name, int noticed_by) {
  plant(name, noticed_by, wgmma_is_right<fault>);
}

template <BulkFault fault>
void plant(const char* name, int noticed_by) {
  plant(name, noticed_by, bulk_is_right<fault>);
}

void test_faults() {
  plant<kNone>("none", 0);
  plant<kNoBarrier>("a missing barrier", kAllBuilds);
  plant<kNoWait>("a missing wait", kAllBuilds);
  plant<kRefillTooEarly>("refill before the barrier", kAllBuilds);
  plant<kRowTooFar>("a copy a row too far", kAllBuilds);
  plant<kWriteTooFar>("a write behind an array", kAllBuilds);
  plant<kBarrierInBranch>("a barrier in a branch", kAllBuilds);
  plant<kAbsentLanes>("absent lanes", kAllBuilds);
  plant<kOnePlace>("two blocks, one place", kAllBuilds);
  plant<kNoSecondBarrier>("a missing second barrier", kAllBuilds);
  plant<kNotAtomic>("+= for atomicAdd", kThread);
  plant<kReadTooFar>("a read behind global memory", kAddress);
  plant<kNeverWaited>("copies never waited for", kAllBuilds);
  plant<kNoWgmmaFault>("none, by wgmma", 0);
  plant<kNoProxyFence>("no fence for wgmma", kAllBuilds);
  plant<kFenceTooEarly>("a fence before the writes", kAllBuilds);
  plant<kNotBegun>("no wgmma.fence", kAllBuilds);
  plant<kReadTooEarly>("wgmma's sums read too early", kAllBuilds);
  plant<kRefilledTooEarly>("refill while wgmma reads", kAllBuilds);
  plant<kThreeWarps>("wgmma by three warps", kAllBuilds);
  plant<kNoWgmmaWait>("wgmma never waited for", kAllBuilds);
  plant<kNoBulkFault>("none, by bulk copies", 0);
  plant<kNoFullWait>("a bulk copy read too early", kAllBuilds);
  plant<kNoEmptyWait>("a bulk copy over what is read", kAllBuilds);
  plant<kTooFewBytes>("a bulk copy not expected", kAllBuilds);
  plant<kNoArrival>("a stage never freed", kAllBuilds);
  plant<kNotInitialised>("no mbarrier", kAllBuilds);
  plant<kBulkNeverWaited>("a bulk copy never waited for", kAllBuilds);
}

}  // namespace
}  // namespace cuda
}  // namespace alphafuse

int main() {
  using namespace alphafuse::cuda;
  test_shuffles();
  test_load_matrices<1, false>();
  test_load_matrices<2, false>();
  test_load_matrices<4, false>();
  test_load_matrices<1, true>();
  test_load_matrices<2, true>();
  test_load_matrices<4, true>();
  test_mmas();
  test_atomics();
  test_copies();
  test_limits();
  test_fail_index();
  test_faults();
  return alphafuse::tests::report();
}
