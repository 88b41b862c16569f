// Not a test: the time of both ways of topk by the size of the catalog, in bfloat16, to set
// kMinFusedItems by. Emulated, it only shows that it runs.
#include <chrono>

#include "cuda/tests/on_device.h"
#include "cuda/topk_of_scores.cuh"

namespace alphafuse {
namespace tests {
namespace {

double seconds(const Case& c, int64_t k, int64_t min_fused_items) {
  cuda::min_fused_items() = min_fused_items;
  const Problem problem(c);
  const Matrix queries(c.batch, problem.tables.dim, DType::kFloat32);
  Matrix values(c.batch, k, DType::kFloat32);
  std::vector<int64_t> ids(static_cast<std::size_t>(c.batch * k));
  OnDevice on(Precision::kBFloat16);
  const auto call = [&] {
    cuda::topk(on(problem.tables),
               on(array<const float, kBatch, kDim>(queries.floats(), c.batch, problem.tables.dim)),
               {nullptr, nullptr}, nullptr,
               on(array<float, kBatch, kPlaces>(values.floats(), c.batch, k)),
               on(array<int64_t, kBatch, kPlaces>(ids.data(), c.batch, k)), on);
  };
  call();
  const DeviceMemory memory(static_cast<std::size_t>(on.bytes()));
  double best = INFINITY;
  for (int turn = 0; turn < (kOnGpu ? 8 : 1); ++turn) {
    on.use(memory.data());
    on.wait();
    const auto started = std::chrono::steady_clock::now();
    call();
    on.wait();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
    best = std::min(best, taken.count());
  }
  return best;
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse::tests;
  const auto bf16 = alphafuse::DType::kBFloat16;
  const std::vector<int64_t> sizes =
      kOnGpu ? std::vector<int64_t>{5'000, 12'000, 20'000, 50'000, 100'000, 200'000, 500'000}
             : std::vector<int64_t>{300};
  std::printf("%9s %6s %5s %13s %14s\n", "items", "batch", "k", "of scores, ms", "thresholds, ms");
  for (const int64_t items : sizes) {
    for (const int64_t batch :
         kOnGpu ? std::vector<int64_t>{1, 64, 1024} : std::vector<int64_t>{3}) {
      for (const int64_t k : {20, 100}) {
        const Case c{batch, items, 64, 64, bf16, bf16};
        std::printf("%9lld %6lld %5lld %13.3f %14.3f\n", static_cast<long long>(items),
                    static_cast<long long>(batch), static_cast<long long>(k),
                    1e3 * seconds(c, k, items + 1), 1e3 * seconds(c, k, 0));
        std::fflush(stdout);
      }
    }
  }
  return 0;
}
