#include "emulator/warp.h"

#include "emulator/block.h"
#include "emulator/half.h"

namespace alphafuse {
namespace emulator {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

bool in(unsigned mask, int lane) { return (mask >> lane & 1) != 0; }

template <class Operands>
Operands& of(void* const* operands, int lane) {
  return *static_cast<Operands*>(operands[lane]);
}

float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

uint32_t combine(Reduce::Operation operation, uint32_t x, uint32_t y) {
  const auto sx = static_cast<int32_t>(x), sy = static_cast<int32_t>(y);
  switch (operation) {
    case Reduce::kAdd:
      return x + y;
    case Reduce::kMin:
      return x < y ? x : y;
    case Reduce::kMax:
      return x < y ? y : x;
    case Reduce::kSignedMin:
      return sx < sy ? x : y;
    case Reduce::kSignedMax:
      return sx < sy ? y : x;
    case Reduce::kAnd:
      return x & y;
    case Reduce::kOr:
      return x | y;
    default:
      return x ^ y;
  }
}

}  // namespace

void execute_shuffle(void* const* operands, unsigned mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!in(mask, lane)) continue;
    auto& self = of<Shuffle>(operands, lane);
    const bool there = self.source >= 0 && self.source < kLanes && in(mask, self.source);
    for (int i = 0; i < 2; ++i) {  // undefined if the source does not take part: NaN
      self.out[i] = there ? of<Shuffle>(operands, self.source).in[i] : 0xffffffffu;
    }
  }
}

void execute_reduce(void* const* operands, unsigned mask) {
  uint32_t result = 0;
  bool first = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!in(mask, lane)) continue;
    const auto& self = of<Reduce>(operands, lane);
    result = first ? self.in : combine(self.operation, result, self.in);
    first = false;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (in(mask, lane)) of<Reduce>(operands, lane).out = result;
  }
}

void execute_ballot(void* const* operands, unsigned mask) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (in(mask, lane) && of<Vote>(operands, lane).in != 0) votes |= 1u << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (in(mask, lane)) of<Vote>(operands, lane).out = votes;
  }
}

void execute_match(void* const* operands, unsigned mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!in(mask, lane)) continue;
    auto& self = of<Vote>(operands, lane);
    self.out = 0;
    for (int other = 0; other < kLanes; ++other) {
      if (in(mask, other) && of<Vote>(operands, other).in == self.in) self.out |= 1u << other;
    }
  }
}

void execute_nothing(void* const*, unsigned) {}

void execute_load_matrices(void* const* operands, unsigned mask) {
  if (mask != kAllLanes) fail("ldmatrix needs all lanes of a warp, but has %08x", mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    auto& self = of<LoadMatrices>(operands, lane);
    for (int m = 0; m < self.matrices; ++m) {
      const int row = self.transposed ? lane % 4 * 2 : lane / 4;
      self.rows[m][0] = of<LoadMatrices>(operands, 8 * m + row).row;
      self.rows[m][1] = self.transposed ? of<LoadMatrices>(operands, 8 * m + row + 1).row : nullptr;
    }
  }
}

// --- mma.sync -------------------------------------------------------------------------------------

namespace {

struct BFloat16 {
  static constexpr int kOfWord = 2;  // elements of a 32-bit register
  static float at(uint32_t word, int i) {
    return __bfloat162float({static_cast<uint16_t>(word >> 16 * i)});
  }
};
struct Float16 {
  static constexpr int kOfWord = 2;
  static float at(uint32_t word, int i) {
    const auto bits = static_cast<uint16_t>(word >> 16 * i);
    __half h;
    __builtin_memcpy(&h, &bits, 2);
    return __half2float(h);
  }
};
struct TF32 {
  static constexpr int kOfWord = 1;
  static float at(uint32_t word, int) { return float_of(word & 0xffffe000u); }  // 10 bits of 23
};

// In all three, lane l holds of A the rows l / 4 and l / 4 + 8 and of B the column l / 4; its
// registers hold the elements of one word at the word l % 4 of the first and of the second four.
template <class Element>
void execute_mma(void* const* operands, unsigned mask) {
  if (mask != kAllLanes) fail("mma needs all lanes of a warp, but has %08x", mask);
  constexpr int kOfWord = Element::kOfWord, kDepth = 8 * kOfWord;
  float a[16][kDepth], b[kDepth][8], c[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& self = of<Mma>(operands, lane);
    const int group = lane / 4, place = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < kOfWord; ++i) {
        const int k = (place + 4 * half) * kOfWord + i;
        a[group][k] = Element::at(self.a[2 * half], i);
        a[group + 8][k] = Element::at(self.a[2 * half + 1], i);
        b[k][group] = Element::at(self.b[half], i);
      }
      for (int i = 0; i < 2; ++i) c[group + 8 * half][2 * place + i] = self.c[2 * half + i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto& self = of<Mma>(operands, lane);
    for (int i = 0; i < 4; ++i) self.c[i] = c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
}

}  // namespace

void execute_mma_bfloat16(void* const* operands, unsigned mask) {
  execute_mma<BFloat16>(operands, mask);
}
void execute_mma_float16(void* const* operands, unsigned mask) {
  execute_mma<Float16>(operands, mask);
}
void execute_mma_tf32(void* const* operands, unsigned mask) { execute_mma<TF32>(operands, mask); }

}  // namespace emulator
}  // namespace alphafuse
