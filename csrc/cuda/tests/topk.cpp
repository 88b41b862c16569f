// topk against a sort of what score_all writes, bit for bit, in every precision that is exact: ties by
// id, NaN last, items left out, lists cut many times and never.
#include <numeric>

#include "cuda/tests/ranking.h"

namespace alphafuse {
namespace tests {
namespace {

void check(const Case& c, int64_t k, Precision precision, Values values, int64_t max_excluded) {
  const Ranking ranking(c, precision, values, max_excluded);
  Matrix found(c.batch, k, DType::kFloat32);
  found.forget();
  std::vector<int64_t> ids(static_cast<std::size_t>(c.batch * k), -7);
  run(precision, [&](OnDevice& on) {
    cuda::topk(on(ranking.problem.tables), on(ranking.queries_array()),
               on(ranking.exclude(), c.batch), nullptr,
               on(array<float, kBatch, kPlaces>(found.floats(), c.batch, k)),
               on(array<int64_t, kBatch, kPlaces>(ids.data(), c.batch, k)), on);
  });
  bool same = true;
  for (int64_t b = 0; b < c.batch; ++b) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < c.rows; ++i) {
      if (!ranking.is_excluded(b, i)) order.push_back(i);
    }
    std::sort(order.begin(), order.end(),
              [&](int64_t i, int64_t j) { return ranking.is_ahead(b, i, ranking.score(b, j), j); });
    for (int64_t place = 0; place < k; ++place) {
      const bool there = place < static_cast<int64_t>(order.size());
      const int64_t row = there ? order[static_cast<std::size_t>(place)] : 0;
      const float score = there ? ranking.score(b, row) : -INFINITY;
      const float got = found.floats()[b * k + place];
      same =
          same && ids[static_cast<std::size_t>(b * k + place)] == (there ? c.first_id + row : -1);
      same = same && (got == score || (std::isnan(got) && std::isnan(score)));
    }
  }
  expect(same, "topk: " + c.name() + ", k " + std::to_string(k) + ", " + ranking.name());
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse;
  using namespace alphafuse::tests;
  const auto bf16 = DType::kBFloat16;
  for (const Precision precision :
       {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16}) {
    for (const int64_t batch : {0, 1, 16, 17, 150}) {
      for (const int64_t k : {1, 7, 300}) {
        const int64_t rows = k == 7 ? 430 : 300;  // on both sides of kMinFusedItems
        check({batch, rows, 20, 12}, k, precision, Values::kNormal, 40);
        check({batch, rows, 6, 3, bf16, bf16, true, false, 0, 0, 50}, k, precision, Values::kTies,
              rows - 10);
      }
    }
    for (const bool cosine : {false, true}) {
      // Long enough for lists to be cut, in one part and in several.
      check({17, 4000, 5, 4, DType::kFloat32, bf16, false, cosine}, 9, precision, Values::kNormal,
            0);
      check({3, 6000, 5, 4, bf16, bf16, false, cosine, 0, 0, 9}, 600, precision, Values::kTies, 5);
      check({2, 3000, 1, 0, DType::kFloat32, DType::kFloat32, false, cosine}, 5, precision,
            Values::kRising, 30);  // every item is ahead of all before it
    }
    for (const int64_t rows : {200, 3000, 9000}) {
      check({16, rows, 4, 2}, 100, precision, Values::kNormal, 0);
      check({1, rows, 4, 2}, 100, precision, Values::kNormal, 0);
    }
    for (const int64_t rows : {390, 900}) {  // infinities, NaN, zeros of both signs
      check({20, rows, 8, 8}, 40, precision, Values::kSpecial, 60);
    }
    check({2, 1, 3, 3}, 1, precision, Values::kNormal, 1);
    if (kOnGpu) {  // from kMinFusedItems on, which the emulator has in small
      for (const int64_t batch : {1, 16, 17, 150}) {
        check({batch, 120'000, 20, 12}, 20, precision, Values::kNormal, 40);
        check({batch, 101'000, 6, 3, bf16, bf16, true, false, 0, 0, 50}, 300, precision,
              Values::kTies, 90'000);
      }
      check({3, 130'000, 5, 4, bf16, bf16, false, true, 0, 0, 9}, 3000, precision, Values::kTies,
            5);
      check({2, 110'000, 1, 0}, 5, precision, Values::kRising, 30);
      check({20, 120'000, 8, 8}, 40, precision, Values::kSpecial, 60);
    }
  }
  return report();
}
