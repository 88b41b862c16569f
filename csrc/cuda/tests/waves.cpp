// How much of a device kernels keep busy, by the parts that they cut a catalog into: of these
// log_sum_exp's scratch memory tells, which it measures without a launch.
#include "cuda/waves.h"

#include "cuda/kernels.h"
#include "emulator/block.h"
#include "tests/checks.h"
#include "tests/problem.h"

namespace alphafuse {
namespace tests {
namespace {

constexpr int64_t kTile = 128;  // queries and items of a tile, of which a multiprocessor has one

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t parts_of(int64_t batch, int64_t rows) {
  const uint16_t nothing = 0;  // measuring reads no table
  const Table table{&nothing, DType::kBFloat16, 64, 64};
  const Tables tables = make_tables(table, table, rows, 0, false, false);
  Launch launch(-1, nullptr, Precision::kBFloat16);
  cuda::log_sum_exp(
      tables, array<const float, kBatch, kDim>(static_cast<float*>(nullptr), batch, tables.dim),
      array<float, kBatch>(static_cast<float*>(nullptr), batch),
      array<float, kBatch>(static_cast<float*>(nullptr), batch), launch);
  return launch.bytes() / (batch * 2 * static_cast<int64_t>(sizeof(float)));
}

// The share of the device's time that has a tile to multiply.
double busy(int64_t batch, int64_t rows, int64_t parts, int64_t multiprocessors) {
  const int64_t kept = ceil_div(batch, kTile), steps = ceil_div(rows, kTile);
  const int64_t time = ceil_div(kept * parts, multiprocessors) * ceil_div(steps, parts);
  return static_cast<double>(kept * steps) / static_cast<double>(time * multiprocessors);
}

void check(int64_t batch, int64_t rows, int multiprocessors, double least) {
  emulator::set_multiprocessors(multiprocessors);
  const int64_t parts = parts_of(batch, rows);
  const double share = busy(batch, rows, parts, multiprocessors);
  const std::string what = "batch " + std::to_string(batch) + ", " + std::to_string(rows) +
                           " items, " + std::to_string(multiprocessors) +
                           " multiprocessors: " + std::to_string(parts) + " parts, busy " +
                           std::to_string(share);
  std::printf("%s\n", what.c_str());
  expect(share >= least, what);
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse::tests;
  for (const int multiprocessors : {132, 108, 144, 188}) {
    for (const int64_t batch : {256, 512, 1024, 2048, 4096, 8192}) {
      check(batch, 1'000'000, multiprocessors, 0.9);
      check(batch, 100'000, multiprocessors, 0.9);
    }
  }
  check(256, 20'000, 132, 0.75);  // hardly more tiles than multiprocessors
  check(1024, 20'000, 132, 0.9);
  // Never more parts than tiles, nor none.
  using alphafuse::cuda::parts_of_waves;
  expect(parts_of_waves(1, 3, 132) == 3 && parts_of_waves(5, 1, 2) == 1, "few tiles");
  expect(parts_of_waves(0, 7, 132) == 1 && parts_of_waves(7, 0, 132) == 0, "no tiles");
  return report();
}
