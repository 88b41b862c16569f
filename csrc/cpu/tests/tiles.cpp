// The machine code that was compiled for AMX gives, bit for bit, what the same kernels give in plain
// C++. On a processor that has no tiles each of their instructions traps, is decoded, and is done in
// plain C++ (isa/amx_emulated.h): so at least what compilers make of the intrinsics is tested.
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#define ALPHAFUSE_ISA amx_emulated
#define ALPHAFUSE_BASE scalar
#include "cpu/dispatch.h"
#include "cpu/isa.h"
#include "tests/checks.h"

namespace alphafuse {
namespace amx {
extern const Kernels kTable;
}

namespace tests {
namespace {

using namespace amx_emulated;

int64_t trapped = 0;

long long& general(ucontext_t& context, int number) {
  constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kRegisters[number]];
}

// VEX, three bytes of it, of map 0F38; then opcode, ModRM, SIB, displacement.
void emulate(int, siginfo_t*, void* at) {
  ucontext_t& context = *static_cast<ucontext_t*>(at);
  long long& counter = context.uc_mcontext.gregs[REG_RIP];
  const unsigned char* next = reinterpret_cast<const unsigned char*>(counter);
  const auto refuse = [&] {
    std::fprintf(stderr, "not an instruction of tiles: %02x %02x %02x %02x\n", next[0], next[1],
                 next[2], next[3]);
    std::abort();
  };
  if (next[0] != 0xc4 || (next[1] & 0x9f) != 0x82) refuse();
  const int opcode = next[3], prefix = next[2] & 3, third = ~(next[2] >> 3) & 15;
  const int of_base = next[1] & 0x20 ? 0 : 8, of_index = next[1] & 0x40 ? 0 : 8;
  const int mode = next[4] >> 6, tile = next[4] >> 3 & 7;
  int low = next[4] & 7;
  const unsigned char* end = next + 5;
  char* address = nullptr;
  long long stride = 0;
  if (mode != 3) {
    if (low == 4) {
      low = *end & 7;
      const int index = (*end >> 3 & 7) + of_index;
      if (index != 4) stride = general(context, index) << (*end >> 6);
      ++end;
    }
    if (mode == 0 && low == 5) refuse();  // not of a register
    address = reinterpret_cast<char*>(general(context, low + of_base));
    if (mode == 1) address += static_cast<signed char>(*end++);
    if (mode == 2) {
      int32_t far;
      std::memcpy(&far, end, 4);
      address += far;
      end += 4;
    }
  }
  if (opcode == 0x49 && prefix == 0) {
    mode == 3 ? _tile_release() : _tile_loadconfig(address + stride);
  } else if (opcode == 0x49 && prefix == 3 && mode == 3) {
    _tile_zero(tile);
  } else if (opcode == 0x4b && prefix == 3) {
    _tile_loadd(tile, address, stride);
  } else if (opcode == 0x4b && prefix == 2) {
    _tile_stored(tile, address, stride);
  } else if (opcode == 0x5c && prefix == 2) {
    _tile_dpbf16ps(tile, low, third);
  } else if (opcode == 0x5e && prefix == 3) {
    _tile_dpbssd(tile, low, third);
  } else {
    refuse();
  }
  ++trapped;
  counter += end - next;
}

std::mt19937 generator(5);

void check_pairs(int64_t rows, int64_t depth, int64_t cols, bool turned, bool add) {
  const auto size = [](int64_t count) { return static_cast<std::size_t>(count); };
  // Whole vectors are read of what is turned.
  const int64_t width = (rows + 15) / 16 * 16;
  std::vector<uint32_t> a(size(depth * width)), b(size(depth * cols));
  std::vector<float> out[2];
  for (std::vector<uint32_t>* operand : {&a, &b}) {
    for (uint32_t& pair : *operand) {
      std::normal_distribution<float> normal;
      uint32_t halves[2];
      for (uint32_t& half : halves) {
        const float value = normal(generator);
        std::memcpy(&half, &value, 4);
      }
      pair = halves[0] >> 16 | (halves[1] & 0xffff0000u);
    }
  }
  for (int which = 0; which < 2; ++which) {
    out[which].assign(size(rows * cols), 0.5f);
    const Kernels& set = which == 0 ? amx::kTable : amx_emulated::kTable;
    set.pair_product(a.data(), turned ? 1 : depth, turned ? width : 1, rows, depth, b.data(), cols,
                     which == 0 ? 32 : kWidth, out[which].data(), cols, cols, add);
  }
  expect(std::memcmp(out[0].data(), out[1].data(), out[0].size() * 4) == 0,
         "pairs: " + std::to_string(rows) + " x " + std::to_string(depth) + " x " +
             std::to_string(cols) + (turned ? ", turned" : "") + (add ? ", added" : ""));
}

void check_bytes(int64_t rows, int64_t cols, int64_t items) {
  std::vector<int8_t> codes(static_cast<std::size_t>(codes_of(items, cols)));
  std::vector<int8_t> numbers(static_cast<std::size_t>(rows * cols));
  for (std::vector<int8_t>* bytes : {&codes, &numbers}) {
    for (int8_t& byte : *bytes) byte = static_cast<int8_t>(generator() % 255 - 127);
  }
  const int64_t row = padded_rows(items);
  const std::vector<float> ones(static_cast<std::size_t>(row), 1.0f);
  const std::vector<int32_t> sums(static_cast<std::size_t>(rows));  // not for tiles
  std::vector<float> out[2];
  for (int which = 0; which < 2; ++which) {
    out[which].assign(static_cast<std::size_t>(rows * row), 0.0f);
    const Kernels& set = which == 0 ? amx::kTable : amx_emulated::kTable;
    set.integer_product->run({codes.data(), ones.data(), nullptr, nullptr}, cols, nullptr, 0, row,
                             {numbers.data(), cols, sums.data(), ones.data()}, rows,
                             out[which].data(), row, false);
  }
  expect(out[0] == out[1], "bytes: " + std::to_string(rows) + " x " + std::to_string(cols) + " x " +
                               std::to_string(items));
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse::tests;
  const bool native = alphafuse::supported_isas().back() == "amx";  // asks the system, too
  if (!native && (__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("avx512bf16"))) {
    std::printf("NOT RUN: tiles are refused, or the vectors of kernels with tiles are lacking\n");
    return 0;
  }
  struct sigaction action = {};
  action.sa_sigaction = &emulate;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  for (const bool add : {false, true}) {
    for (const bool turned : {false, true}) {
      check_pairs(1, 1, 32, turned, add);
      check_pairs(16, 16, 96, turned, add);
      check_pairs(70, 50, 64, turned, add);
    }
  }
  check_bytes(16, 4, 30);
  check_bytes(70, 100, 300);
  expect(native == (trapped == 0), "which instructions ran");
  if (!native) {
    std::printf("NOT RUN: this processor's own tiles, which it lacks; %lld instructions trapped\n",
                static_cast<long long>(trapped));
  }
  return report();
}
