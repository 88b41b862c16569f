// The kernels of cross_entropy in every precision: target scores against score_all, bit for bit.
#include "cuda/kernels.h"
#include "tests/checks.h"
#include "tests/problem.h"

namespace alphafuse {
namespace tests {
namespace {

const char* name_of(Precision precision) {
  const char* const names[] = {"float32", "bfloat16", "float16", "TF32"};
  return names[static_cast<int>(precision)];
}

// Targets of a part of the catalog, of its padding, and of others.
std::vector<int64_t> random_targets(const Case& c) {
  std::vector<int64_t> targets;
  for (int64_t b = 0; b < c.batch; ++b) targets.push_back(c.first_id - 2 + random_below(c.rows + 4));
  return targets;
}

void check_target_scores(const Case& c, Precision precision) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim;
  const Matrix queries(c.batch, dim, DType::kFloat32);
  const std::vector<int64_t> targets = random_targets(c);
  Matrix all(c.batch, c.rows, DType::kFloat32), out(1, c.batch, DType::kFloat32);
  out.forget();
  with_scratch(precision, [&](Launch& launch) {
    cuda::score_all(problem.tables, array<const float, kBatch, kDim>(queries.floats(), c.batch, dim),
                    array<float, kBatch, kItems>(all.floats(), c.batch, c.rows), launch);
  });
  with_scratch(precision, [&](Launch& launch) {
    cuda::target_scores(problem.tables,
                        array<const float, kBatch, kDim>(queries.floats(), c.batch, dim),
                        array<const int64_t, kBatch>(targets.data(), c.batch),
                        array<float, kBatch>(out.floats(), c.batch), launch);
  });
  bool same = true;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t row = targets[static_cast<std::size_t>(b)] - c.first_id;
    const bool there = row >= 0 && row < c.rows;
    const float expected = there ? all.floats()[b * c.rows + row] : -INFINITY;
    same = same && std::memcmp(out.floats() + b, &expected, sizeof expected) == 0;
  }
  expect(same, "target_scores: " + c.name() + ", " + name_of(precision));
}

void check_all(const Case& c, Precision precision) { check_target_scores(c, precision); }

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse;
  using namespace alphafuse::tests;
  const DType types[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  const Precision precisions[] = {Precision::kFloat32, Precision::kBFloat16, Precision::kFloat16,
                                  Precision::kTF32};
  for (const Precision precision : precisions) {
    for (const int64_t batch : {0, 1, 16, 17, 150}) check_all({batch, 300, 60, 40}, precision);
    for (const bool add : {false, true}) {
      for (const bool cosine : {false, true}) {
        for (const DType semantic : types) {
          for (const DType id : types) {
            check_all({5, 150, 32, 16, semantic, id, add, cosine, 8}, precision);
          }
        }
        check_all({3, 5, 3, 1, DType::kFloat32, DType::kFloat32, add, cosine}, precision);
        check_all({20, 130, 37, 36, DType::kBFloat16, DType::kBFloat16, add, cosine, 3, 1, 1000},
                  precision);
        check_all({2, 260, 129, 65, DType::kFloat32, DType::kFloat16, add, cosine, 0, 2}, precision);
        check_all({2, 1, 16, 16, DType::kFloat16, DType::kFloat16, add, cosine}, precision);
        check_all({2, 30, 0, 45, DType::kFloat32, DType::kFloat32, add, cosine}, precision);
        check_all({2, 30, 45, 0, DType::kBFloat16, DType::kFloat32, add, cosine}, precision);
      }
    }
    // Too deep for the queries to stay in shared memory.
    check_all({18, 140, 600, 420, DType::kBFloat16, DType::kBFloat16, false, false}, precision);
  }
  return report();
}
