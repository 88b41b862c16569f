// The best of a query's scores, by a block: scores and items as whole numbers in the order of a ranking,
// so that the best are the smallest; choosing the smallest of a list, and putting them in order.
#pragma once

#include "cuda/device.cuh"

namespace alphafuse {
namespace cuda {

// Less is ahead: score downward, then row upward, NaN last. -0 counts, and comes back, as 0. No two
// rows have the same key, and kNoKey is behind all.
using Key = unsigned long long;
constexpr Key kNoKey = ~Key{0};
constexpr int64_t kMaxRows = (int64_t{1} << 32) - 1;  // of a key

// The upper half of a key, of the score alone. The numbers between kOrderOfNaN and that of -inf are
// no score's.
constexpr uint32_t kOrderOfNaN = 0xffffffffu, kOrderOfNone = kOrderOfNaN - 1;

__device__ inline uint32_t order_of(float score) {
  if (score != score) return kOrderOfNaN;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // of -0 too those of 0
  return bits ^ (bits >> 31 ? 0u : 0x7fffffffu);
}
__device__ inline Key key_of_order(uint32_t order, int64_t row) {
  return Key{order} << 32 | static_cast<uint32_t>(row);
}
__device__ inline Key key_of(float score, int64_t row) {
  return key_of_order(order_of(score), row);
}
__device__ inline float score_of(Key key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  if (order == kOrderOfNaN) return NAN;
  return __uint_as_float(order >> 31 ? order : ~order & 0x7fffffffu);
}
__device__ inline int64_t row_of(Key key) { return static_cast<int64_t>(key & 0xffffffffu); }

// Where the best of each query go: (batch, k) values and ids, and keys before they are in order, of
// which there are `places`, a power of two.
struct Best {
  Key* sorted;  // (batch, places)
  int64_t places, k, first_id;
  float* values;
  int64_t* ids;

  static int64_t places_for(int64_t k) {
    int64_t power = 1;
    while (power < k) power *= 2;
    return power;
  }
};

// What blocks of kThreads choose and sort keys with; all threads call. Keys are in global memory or in
// shared memory, and what was written to them before a call is seen after a barrier of the caller's.
class BestKeys {
 public:
  static constexpr int kWarps = kThreads / kWarpLanes, kDigitBits = 8, kDigits = 1 << kDigitBits;
  static_assert(kDigits == kThreads, "a thread for each digit");

  __host__ __device__ explicit BestKeys(SharedMemoryArena& arena)
      : counts_(arena.take<int>(kDigits)),
        of_warps_(arena.take<int>(kWarps)),
        found_(arena.take<int>(3)) {}

  // Moves the `k` smallest of key_at(0 .. count) to `out`, in the order they had; there are as many that
  // are not kNoKey. `out` may be where the keys are, one after another. Returns a number from which on
  // all others are.
  template <class KeyAt>
  __device__ Key choose(const KeyAt& key_at, int count, int k, Key* out) const {
    if (k == 0) return 0;
    const Key last = count <= k ? kNoKey - 1 : kth(key_at, count, k);
    int kept = 0;
    for (int first = 0; first < count; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const Key key = i < count ? key_at(i) : kNoKey;
      int total;
      const int before = count_before(key <= last, total);  // a barrier: all have read their keys
      if (key <= last) out[kept + before] = key;
      kept += total;
    }
    __syncthreads();
    return last + 1;
  }

  // In order, in place; `count` is a power of two.
  __device__ static void sort(Key* keys, int64_t count) {
    for (int64_t run = 2; run <= count; run *= 2) {
      for (int64_t apart = run / 2; apart > 0; apart /= 2) {
        __syncthreads();
        for (int64_t pair = threadIdx.x; pair < count / 2; pair += kThreads) {
          const int64_t i = 2 * pair - (pair & (apart - 1)), j = i + apart;
          const bool upward = (i & run) == 0;
          const Key a = keys[i], b = keys[j];
          if ((b < a) == upward) {
            keys[i] = b;
            keys[j] = a;
          }
        }
      }
    }
    __syncthreads();
  }

  // Writes the best of query b, of whose keys key_at(0 .. count) `found` are not kNoKey.
  template <class KeyAt>
  __device__ void write(const Best& best, int64_t b, const KeyAt& key_at, int count,
                        int found) const {
    const auto k = static_cast<int>(min(found, best.k));
    Key* const own = best.sorted + b * best.places;
    choose(key_at, count, k, own);
    for (int64_t i = k + threadIdx.x; i < best.places; i += kThreads) own[i] = kNoKey;
    sort(own, best.places);
    for (int64_t i = threadIdx.x; i < best.k; i += kThreads) {
      const bool there = i < k;
      best.values[b * best.k + i] = there ? score_of(own[i]) : -INFINITY;
      best.ids[b * best.k + i] = there ? best.first_id + row_of(own[i]) : -1;
    }
  }

 private:
  // The k-th smallest, 1 <= k < count, or a number between it and the next: digit by digit, from the
  // first, counting the keys that begin alike.
  template <class KeyAt>
  __device__ Key kth(const KeyAt& key_at, int count, int k) const {
    Key begin = 0, known = 0;
    int left = k;
    for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
      const auto digit = static_cast<int>(threadIdx.x);
      counts_[digit] = 0;
      __syncthreads();
      for (int i = digit; i < count; i += kThreads) {
        const Key key = key_at(i);
        if ((key & known) == begin) atomicAdd(&counts_[key >> shift & (kDigits - 1)], 1);
      }
      __syncthreads();
      const int own = counts_[digit];
      int total;
      const int before = count_before(own, total);
      if (before < left && left <= before + own) {
        found_[0] = digit;
        found_[1] = left - before;
        found_[2] = own;
      }
      __syncthreads();
      begin |= static_cast<Key>(found_[0]) << shift;
      known |= static_cast<Key>(kDigits - 1) << shift;
      left = found_[1];
      if (left == found_[2]) return begin | ~known;  // all of them that begin so
    }
    return begin;
  }

  // The sum of `number` over the threads before this one, and over all.
  __device__ int count_before(int number, int& total) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    int sum = number;
#pragma unroll
    for (int by = 1; by < kWarpLanes; by *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, by);
      if (lane >= by) sum += other;
    }
    __syncthreads();  // the sums of the call before are no longer read
    if (lane == kWarpLanes - 1) of_warps_[warp] = sum;
    __syncthreads();
    int before = sum - number;
    total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += of_warps_[w];
      total += of_warps_[w];
    }
    return before;
  }

  int *counts_, *of_warps_, *found_;
};

}  // namespace cuda
}  // namespace alphafuse
