// The fragments of mma, wgmma and ldmatrix as the emulator has them, against CuTe's description: matrices
// laid out by CuTe, multiplied in the emulator, read by CuTe. Numbers are small and whole, so that
// every result is exact.
#include <cstring>
#include <random>
#include <vector>

#include "cuda/rows.cuh"
#include "cuda/tests/cute_layouts.h"
#include "tests/checks.h"

namespace alphafuse {
namespace cuda {
namespace {

using tests::expect;

std::mt19937 generator(5);
Launch host(-1, nullptr);

template <Precision kPrecision>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* c) {
  const int l = static_cast<int>(threadIdx.x);
  const uint32_t registers[4] = {a[l * 4], a[l * 4 + 1], a[l * 4 + 2], a[l * 4 + 3]};
  float* const d = c + l * 4;
  mma<kPrecision>(d[0], d[1], d[2], d[3], registers, b[l * 2], b[l * 2 + 1]);
}

// A value as the bits of its type, which for halves are in the lower word.
template <Precision kPrecision>
uint32_t bits_of(int value) {
  const auto number = static_cast<float>(value);
  if (kPrecision == Precision::kTF32) return __float_as_uint(number);
  if (kPrecision == Precision::kBFloat16) return __float_as_uint(number) >> 16;
  const __half half = __float2half(number);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

template <Precision kPrecision>
void test_mma(const char* name) {
  constexpr int kOfWord = kPrecision == Precision::kTF32 ? 1 : 2, kDepth = 8 * kOfWord;
  const auto draw = [] { return static_cast<int>(generator() % 7) - 3; };
  std::vector<int> a(16 * kDepth), b(8 * kDepth);  // row + 16 k, column + 8 k
  for (int& value : a) value = draw();
  for (int& value : b) value = draw();
  std::vector<uint32_t> a_words(32 * 4), b_words(32 * 2);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4 * kOfWord; ++i) {
      a_words[lane * 4 + i / kOfWord] |=
          bits_of<kPrecision>(a[cute_layouts::a(kPrecision, lane, i)]) << 16 * (i % kOfWord);
    }
    for (int i = 0; i < 2 * kOfWord; ++i) {
      b_words[lane * 2 + i / kOfWord] |=
          bits_of<kPrecision>(b[cute_layouts::b(kPrecision, lane, i)]) << 16 * (i % kOfWord);
    }
  }
  std::vector<float> c(32 * 4, 0.5f);
  enqueue(host, "test", mma_kernel<kPrecision>, 1, 32, 0, a_words.data(), b_words.data(), c.data());
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int at = cute_layouts::c(kPrecision, lane, i), row = at % 16, column = at / 16;
      float expected = 0.5f;
      for (int k = 0; k < kDepth; ++k) {
        expected += static_cast<float>(a[row + 16 * k] * b[column + 8 * k]);
      }
      expect(c[lane * 4 + i] == expected,
             std::string(name) + ", lane " + std::to_string(lane) + ", value " + std::to_string(i));
    }
  }
}

template <bool transposed>
__global__ void load_matrices_kernel(const uint16_t* in, uint32_t* out) {
  ALPHAFUSE_SHARED(uint4, rows, 32);
  rows[threadIdx.x] = reinterpret_cast<const uint4*>(in)[threadIdx.x];
  __syncthreads();
  uint32_t registers[4];
  load_matrices<4, transposed>(registers, &rows[threadIdx.x]);
  for (int m = 0; m < 4; ++m) out[threadIdx.x * 4 + m] = registers[m];
}

template <bool transposed>
void test_load_matrices() {
  alignas(16) uint16_t in[32 * 8];
  for (uint16_t& value : in) value = static_cast<uint16_t>(generator());
  std::vector<uint32_t> out(32 * 4);
  enqueue(host, "test", load_matrices_kernel<transposed>, 1, 32, 0, in, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    for (int bit = 0; bit < 128; ++bit) {
      const int from = cute_layouts::matrices(transposed, lane, bit);
      const bool expected = in[from / 16] >> from % 16 & 1;
      expect((out[lane * 4 + bit / 32] >> bit % 32 & 1) == expected,
             std::string(transposed ? "ldmatrix.trans" : "ldmatrix") + ", lane " +
                 std::to_string(lane) + ", bit " + std::to_string(bit));
    }
  }
}

// Two warp groups, each with a left matrix of its own, in shared memory as tiles have them.
using LeftSlice = PiecesOfSlice<128>;
using RightSlice = PiecesOfSlice<128>;
__global__ void wgmma_kernel(const uint16_t* left, const uint16_t* right, float* out,
                             uint64_t* descriptors) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  auto* const lefts = arena.take<unsigned char>(LeftSlice::kBytes);
  auto* const rights = arena.take<unsigned char>(RightSlice::kBytes);
  for (int row = static_cast<int>(threadIdx.x); row < 128; row += 256) {
    for (int k = 0; k < 32; ++k) {
      const auto place = [=](int pitch, int stride) { return row * pitch + k / 8 * stride; };
      reinterpret_cast<uint16_t*>(
          lefts + place(LeftSlice::kPitch, LeftSlice::kPieceStride))[k % 8] = left[row * 32 + k];
      reinterpret_cast<uint16_t*>(rights +
                                  place(RightSlice::kPitch, RightSlice::kPieceStride))[k % 8] =
          right[row * 32 + k];
    }
  }
  fence_for_wgmma();
  __syncthreads();
  float top[32] = {}, bottom[32] = {};
  const int group = static_cast<int>(threadIdx.x) / 128;
  MatrixInShared a(lefts + 64 * group * LeftSlice::kPitch, LeftSlice::kPieceStride, 128);
  MatrixInShared b(rights, RightSlice::kPieceStride, 128);
  if (threadIdx.x % 128 == 0) {
    descriptors[3 * group] = a.bits();
    descriptors[3 * group + 1] = b.bits();
    descriptors[3 * group + 2] = shared_address(rights);
  }
  begin_wgmma();
  for (int step = 0; step < 2; ++step) {
    wgmma<Precision::kBFloat16>(top, bottom, a, b);
    a.advance(2 * LeftSlice::kPieceStride);
    b.advance(2 * RightSlice::kPieceStride);
  }
  end_wgmma(top, bottom);
  for (int i = 0; i < 32; ++i) {  // in the order of the instruction's registers
    float* const own = out + threadIdx.x * 64 + i / 2 * 4 + i % 2;
    own[0] = top[i];
    own[2] = bottom[i];
  }
}

void test_wgmma() {
  std::vector<int> a(128 * 32), b(128 * 32);
  std::vector<uint16_t> a_bits(a.size()), b_bits(b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] = static_cast<int>(generator() % 7) - 3, b[i] = static_cast<int>(generator() % 7) - 3;
    a_bits[i] = static_cast<uint16_t>(bits_of<Precision::kBFloat16>(a[i]));
    b_bits[i] = static_cast<uint16_t>(bits_of<Precision::kBFloat16>(b[i]));
  }
  std::vector<float> out(256 * 64);
  std::vector<uint64_t> descriptors(6);
  SharedMemoryArena arena;
  arena.take<unsigned char>(LeftSlice::kBytes);
  arena.take<unsigned char>(RightSlice::kBytes);
  enqueue(host, "test", wgmma_kernel, 1, 256, arena.used(), a_bits.data(), b_bits.data(),
          out.data(), descriptors.data());
  for (int thread = 0; thread < 256; ++thread) {
    for (int value = 0; value < 64; ++value) {
      const int at = cute_layouts::group_c(thread % 128, value);
      const int row = thread / 128 * 64 + at % 64, column = at / 64;
      float expected = 0.0f;
      for (int k = 0; k < 32; ++k) {
        expected += static_cast<float>(a[row * 32 + k] * b[column * 32 + k]);
      }
      expect(out[thread * 64 + value] == expected,
             "wgmma, thread " + std::to_string(thread) + ", value " + std::to_string(value));
    }
  }
  for (const int group : {0, 1}) {
    const uint32_t left = group * 64 * LeftSlice::kPitch;  // the first of shared memory
    expect(descriptors[3 * group] == cute_layouts::descriptor(left, LeftSlice::kPieceStride, 128),
           "descriptor of the left matrix");
    expect(descriptors[3 * group + 1] ==
               cute_layouts::descriptor(static_cast<uint32_t>(descriptors[3 * group + 2]),
                                        RightSlice::kPieceStride, 128),
           "descriptor of the right matrix");
  }
}

// One warp group: a left factor in registers, a right one in shared memory, its columns next to each
// other as in the tiles of a strip.
constexpr int kColumnPieceBytes = cute_layouts::kColumnPieceBytes;
__global__ void wgmma_registers_kernel(const uint32_t* left, const uint16_t* right, float* out,
                                       uint64_t* descriptor) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  auto* const rights = arena.take<unsigned char>(8 * kColumnPieceBytes);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 16 * 64; i += 128) {
    const int k = i / 64, column = i % 64;
    reinterpret_cast<uint16_t*>(rights + column / 8 * kColumnPieceBytes + k * 16)[column % 8] =
        right[i];
  }
  fence_for_wgmma();
  __syncthreads();
  float top[16] = {}, bottom[16] = {};
  const uint32_t registers[4] = {left[t * 4], left[t * 4 + 1], left[t * 4 + 2], left[t * 4 + 3]};
  const MatrixInShared b(rights, 128, kColumnPieceBytes);
  if (t == 0) *descriptor = b.bits();
  begin_wgmma();
  wgmma_registers(top, bottom, registers, b.bits());
  end_wgmma(top, bottom);
  for (int i = 0; i < 16; ++i) {
    float* const own = out + t * 32 + i / 2 * 4 + i % 2;
    own[0] = top[i];
    own[2] = bottom[i];
  }
}

void test_wgmma_registers() {
  const auto draw = [] { return static_cast<int>(generator() % 7) - 3; };
  std::vector<int> a(64 * 16), b(16 * 64);  // row + 64 k, column + 64 k
  std::vector<uint16_t> b_bits;
  for (int& value : a) value = draw();
  for (int& value : b) {
    value = draw();
    b_bits.push_back(static_cast<uint16_t>(bits_of<Precision::kBFloat16>(value)));
  }
  std::vector<uint32_t> words(128 * 4);
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 8; ++i) {
      words[thread * 4 + i / 2] |=
          bits_of<Precision::kBFloat16>(a[cute_layouts::group_a(thread, i)]) << 16 * (i % 2);
    }
  }
  std::vector<float> out(128 * 32);
  uint64_t descriptor = 0;
  SharedMemoryArena arena;
  arena.take<unsigned char>(8 * kColumnPieceBytes);
  enqueue(host, "test", wgmma_registers_kernel, 1, 128, arena.used(), words.data(), b_bits.data(),
          out.data(), &descriptor);
  for (int thread = 0; thread < 128; ++thread) {
    for (int value = 0; value < 32; ++value) {
      const int at = cute_layouts::group_c(thread, value), row = at % 64, column = at / 64;
      float expected = 0.0f;
      for (int k = 0; k < 16; ++k) {
        expected += static_cast<float>(a[row + 64 * k] * b[column + 64 * k]);
      }
      expect(
          out[thread * 32 + value] == expected,
          "wgmma_registers, thread " + std::to_string(thread) + ", value " + std::to_string(value));
    }
  }
  expect(descriptor == cute_layouts::descriptor_of_columns(), "descriptor of columns");
}

}  // namespace
}  // namespace cuda
}  // namespace alphafuse

int main() {
  using namespace alphafuse::cuda;
  using alphafuse::Precision;
  test_mma<Precision::kBFloat16>("mma_bfloat16");
  test_mma<Precision::kFloat16>("mma_float16");
  test_mma<Precision::kTF32>("mma_tf32");
  test_load_matrices<false>();
  test_load_matrices<true>();
  test_wgmma();
  test_wgmma_registers();
  return alphafuse::tests::report();
}
