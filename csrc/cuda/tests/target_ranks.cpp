// target_ranks against counting in what score_all writes, in every precision that is exact.
#include "cuda/tests/ranking.h"

namespace alphafuse {
namespace tests {
namespace {

void check(const Case& c, Precision precision, Values values, int64_t max_excluded) {
  const Ranking ranking(c, precision, values, max_excluded);
  std::vector<int64_t> targets, ranks(static_cast<std::size_t>(c.batch), -7);
  for (int64_t b = 0; b < c.batch; ++b) targets.push_back(c.first_id + random_below(c.rows));
  const auto targets_array = array<const int64_t, kBatch>(targets.data(), c.batch);
  Matrix scores(1, c.batch, DType::kFloat32);
  run(precision, [&](OnDevice& on) {
    cuda::target_scores(on(ranking.problem.tables), on(ranking.queries_array()), on(targets_array),
                        on(array<float, kBatch>(scores.floats(), c.batch)), on);
  });
  run(precision, [&](OnDevice& on) {
    cuda::target_ranks(on(ranking.problem.tables), on(ranking.queries_array()), on(targets_array),
                       on(array<const float, kBatch>(scores.floats(), c.batch)),
                       on(ranking.exclude(), c.batch), nullptr,
                       on(array<int64_t, kBatch>(ranks.data(), c.batch)), on);
  });
  bool same = true;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t target = targets[static_cast<std::size_t>(b)] - c.first_id;
    int64_t ahead = 0;
    for (int64_t i = 0; i < c.rows; ++i) {
      ahead += i != target && !ranking.is_excluded(b, i) &&
               ranking.is_ahead(b, i, ranking.score(b, target), target);
    }
    same = same && ranks[static_cast<std::size_t>(b)] == ahead;
  }
  expect(same, "target_ranks: " + c.name() + ", " + ranking.name());
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
      for (const int64_t max_excluded : {0, 40, 400}) {
        check({batch, 700, 20, 12}, precision, Values::kNormal, max_excluded);
        check({batch, 300, 6, 3, bf16, bf16, true, false, 0, 0, 50}, precision, Values::kTies,
              max_excluded);
      }
    }
    for (const bool cosine : {false, true}) {
      check({17, 2000, 5, 4, DType::kFloat32, bf16, false, cosine}, precision, Values::kNormal, 9);
      check({3, 3000, 5, 4, bf16, bf16, false, cosine, 0, 0, 9}, precision, Values::kTies, 90);
    }
    check({60, 900, 8, 8}, precision, Values::kSpecial, 60);
    check({2, 1, 3, 3}, precision, Values::kNormal, 1);
  }
  return report();
}
