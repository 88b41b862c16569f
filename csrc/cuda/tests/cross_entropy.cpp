// The kernels of cross_entropy in every precision: target scores against score_all, bit for bit where
// both multiply by the same instruction; the rest against plain loops in double.
#include "cuda/tests/on_device.h"
#include "tests/checks.h"

namespace alphafuse {
namespace tests {
namespace {

// Targets of a part of the catalog, of its padding, and of others.
std::vector<int64_t> random_targets(const Case& c) {
  std::vector<int64_t> targets;
  for (int64_t b = 0; b < c.batch; ++b)
    targets.push_back(c.first_id - 2 + random_below(c.rows + 4));
  return targets;
}

void check_target_scores(const Case& c, Precision precision) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim;
  const Matrix queries(c.batch, dim, DType::kFloat32);
  const std::vector<int64_t> targets = random_targets(c);
  Matrix all(c.batch, c.rows, DType::kFloat32), out(1, c.batch, DType::kFloat32);
  out.forget();
  run(precision, [&](OnDevice& on) {
    cuda::score_all(on(problem.tables),
                    on(array<const float, kBatch, kDim>(queries.floats(), c.batch, dim)),
                    on(scores_array(all.floats(), c.batch, c.rows)), on);
  });
  run(precision, [&](OnDevice& on) {
    cuda::target_scores(on(problem.tables),
                        on(array<const float, kBatch, kDim>(queries.floats(), c.batch, dim)),
                        on(array<const int64_t, kBatch>(targets.data(), c.batch)),
                        on(array<float, kBatch>(out.floats(), c.batch)), on);
  });
  // It may add in another order than mma does.
  const bool by_wgmma = kWithWgmma && c.batch > 16;
  bool same = true;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t row = targets[static_cast<std::size_t>(b)] - c.first_id;
    const bool there = row >= 0 && row < c.rows;
    const float expected = there ? all.floats()[b * c.rows + row] : -INFINITY;
    const float got = out.floats()[b];
    const bool near = there && std::fabs(got - expected) < 1e-4f * std::fmax(1.0f, std::fabs(got));
    same = same && (std::memcmp(&got, &expected, sizeof got) == 0 || (by_wgmma && near));
  }
  expect(same, "target_scores: " + c.name() + ", " + name_of(precision));
}

// Relative to the largest value; operands are rounded to the precision first.
double tolerance(Precision precision) {
  const double bounds[] = {5e-6, 2e-2, 3e-3, 3e-3};
  return bounds[static_cast<int>(precision)];
}

struct Results {
  Results(const Case& c, int64_t dim)
      : maxima(1, c.batch, DType::kFloat32),
        logs(1, c.batch, DType::kFloat32),
        grad_queries(c.batch, dim, DType::kFloat32),
        grad_ids(c.rows, c.id_cols, DType::kFloat32) {
    for (Matrix* const out : all()) out->forget();
  }
  std::vector<Matrix*> all() { return {&maxima, &logs, &grad_queries, &grad_ids}; }

  Matrix maxima, logs, grad_queries, grad_ids;
  int64_t forward_bytes = 0, backward_bytes = 0;  // of scratch memory
};

Results run_cross_entropy(const Case& c, const Problem& problem, const Matrix& queries,
                          const std::vector<int64_t>& targets, const Matrix& weights,
                          Precision precision) {
  const int64_t dim = problem.tables.dim;
  Results to(c, dim);
  const auto as_queries = array<const float, kBatch, kDim>(queries.floats(), c.batch, dim);
  to.forward_bytes = run(precision, [&](OnDevice& on) {
    cuda::log_sum_exp(on(problem.tables), on(as_queries),
                      on(array<float, kBatch>(to.maxima.floats(), c.batch)),
                      on(array<float, kBatch>(to.logs.floats(), c.batch)), on);
  });
  to.backward_bytes = run(precision, [&](OnDevice& on) {
    cuda::cross_entropy_backward(
        on(problem.tables), on(as_queries),
        on(array<const int64_t, kBatch>(targets.data(), c.batch)),
        on(array<const float, kBatch>(to.maxima.floats(), c.batch)),
        on(array<const float, kBatch>(to.logs.floats(), c.batch)),
        on(array<const float, kBatch>(weights.floats(), c.batch)),
        on(optional<float, kBatch, kDim>(to.grad_queries.floats(), c.batch, dim)),
        on(c.id_cols == 0
               ? Optional<Array<float, kItems, kNullDim>>{}
               : optional<float, kItems, kNullDim>(to.grad_ids.floats(), c.rows, c.id_cols)),
        on);
  });
  return to;
}

Matrix weights_of(const Case& c) {
  Matrix weights(1, c.batch, DType::kFloat32);
  for (int64_t b = 0; b < c.batch; b += 3) weights.set(0, b, 0.0f);
  return weights;
}

// Of a part of the catalog as if it were the whole.
void check_cross_entropy(const Case& c, const Problem& problem, const Matrix& queries,
                         Precision precision) {
  const int64_t dim = problem.tables.dim;
  const auto batch = static_cast<std::size_t>(c.batch), rows = static_cast<std::size_t>(c.rows);
  const std::vector<int64_t> targets = random_targets(c);
  const Matrix weights = weights_of(c);

  std::vector<double> coefficients = plain_scores(problem, queries), losses(batch);
  for (std::size_t b = 0; b < batch; ++b) {
    double* const of_query = coefficients.data() + b * rows;
    double maximum = -INFINITY, sum = 0;
    for (std::size_t i = 0; i < rows; ++i) maximum = std::fmax(maximum, of_query[i]);
    for (std::size_t i = 0; i < rows; ++i) sum += std::exp(of_query[i] - maximum);
    losses[b] = maximum + std::log(sum);
    for (std::size_t i = 0; i < rows; ++i) {
      const bool is_target = static_cast<int64_t>(i) + c.first_id == targets[b];
      of_query[i] = weights.floats()[b] * (std::exp(of_query[i] - losses[b]) - is_target);
    }
  }
  const Gradients expected = plain_gradients(problem, queries, coefficients);

  Results got = run_cross_entropy(c, problem, queries, targets, weights, precision);
  const std::string what = c.name() + ", " + name_of(precision);
  const auto near = [&](const char* name, const Matrix& out, const std::vector<double>& values) {
    const double error = worst_error(out.floats(), values, values.size());
    expect(error < tolerance(precision),
           std::string(name) + ": " + what + ": " + std::to_string(error));
  };
  for (std::size_t b = 0; b < batch; ++b) got.maxima.floats()[b] += got.logs.floats()[b];
  near("log_sum_exp", got.maxima, losses);
  near("grad_queries", got.grad_queries, expected.queries);
  if (c.id_cols > 0) near("grad_ids", got.grad_ids, expected.ids);
  bool skipped = true;
  for (int64_t b = 0; b < c.batch; b += 3) {
    for (int64_t d = 0; d < dim; ++d) skipped = skipped && got.grad_queries.at(b, d) == 0;
  }
  expect(skipped, "a weight of 0 gives a gradient: " + what);
}

// Queries whose scores are about 1.
Matrix queries_of(const Case& c, const Problem& problem) {
  Matrix queries(c.batch, problem.tables.dim, DType::kFloat32);
  const double scale = 1 / std::sqrt(static_cast<double>(queries.cols()));
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t d = 0; d < queries.cols(); ++d) {
      queries.set(b, d, static_cast<float>(queries.at(b, d) * scale));
    }
  }
  return queries;
}

void check_all(const Case& c, Precision precision) {
  check_target_scores(c, precision);
  const Problem problem(c);
  check_cross_entropy(c, problem, queries_of(c, problem), precision);
}

// Tables that are rounded in strips, of odd strides, against the same values in the type and layout
// that tiles copy: bit for bit in one strip, nearly in several, whose sums are in another order.
void check_strips(bool add, bool cosine, int64_t rows, bool one_strip, int64_t semantic_cols,
                  int64_t id_cols, Precision precision) {
  const DType half = precision == Precision::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  const int64_t batch = kOnGpu ? 2050 : 260;
  const Case plain{batch, rows, semantic_cols, id_cols, half, half, add, cosine, 4};
  const Case converted{batch,           rows, semantic_cols, id_cols, DType::kFloat32,
                       DType::kFloat32, add,  cosine,        1,       1};
  const Problem copied(plain);
  Problem problem(converted);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < semantic_cols; ++column) {
      problem.semantic.set(row, column, static_cast<float>(copied.semantic.at(row, column)));
    }
    for (int64_t column = 0; column < id_cols; ++column) {
      problem.id.set(row, column, static_cast<float>(copied.id.at(row, column)));
    }
  }
  const Matrix queries = queries_of(plain, copied), weights = weights_of(plain);
  const std::vector<int64_t> targets = random_targets(plain);
  Results expected = run_cross_entropy(plain, copied, queries, targets, weights, precision);
  Results got = run_cross_entropy(converted, problem, queries, targets, weights, precision);
  const std::string what =
      converted.name() + ", in strips, " + name_of(precision) + (one_strip ? "" : ", some");
  const int64_t least = 2 * 128 * (semantic_cols + id_cols);
  // wgmma has strips of copied tables too.
  expect(kWithWgmma || (got.forward_bytes >= expected.forward_bytes + least &&
                        got.backward_bytes >= expected.backward_bytes + least),
         "no room for a strip: " + what);
  for (std::size_t i = 0; i < 4; ++i) {
    const float *const a = expected.all()[i]->floats(), *const b = got.all()[i]->floats();
    const auto count = static_cast<std::size_t>(got.all()[i]->rows() * got.all()[i]->cols());
    const bool same = one_strip ? count == 0 || std::memcmp(a, b, count * sizeof(float)) == 0
                                : worst_error(b, std::vector<double>(a, a + count), count) < 1e-3;
    expect(same, "result " + std::to_string(i) + ": " + what);
  }
}

// All scores are far below 0, which those of rows that only fill up a tile are not.
void check_far_scores(Precision precision) {
  const Case c{20, 150, 16, 16};
  Problem problem(c);
  Matrix queries(c.batch, problem.tables.dim, DType::kFloat32);
  for (int64_t column = 0; column < 16; ++column) {
    for (int64_t b = 0; b < c.batch; ++b) {
      queries.set(b, column, -2.0f);
      queries.set(b, 16 + column, 0.125f);
    }
    for (int64_t row = 0; row < c.rows; ++row) {
      problem.semantic.set(row, column, 2.0f);
      problem.id.set(row, column, static_cast<float>(row % 8) / 8);
    }
  }
  problem.find_rows();
  check_cross_entropy(c, problem, queries, precision);
}

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
        check_all({2, 260, 129, 65, DType::kFloat32, DType::kFloat16, add, cosine, 0, 2},
                  precision);
        check_all({2, 1, 16, 16, DType::kFloat16, DType::kFloat16, add, cosine}, precision);
        check_all({2, 30, 0, 45, DType::kFloat32, DType::kFloat32, add, cosine}, precision);
        check_all({2, 30, 45, 0, DType::kBFloat16, DType::kFloat32, add, cosine}, precision);
      }
    }
    // More tiles of items than blocks; more null columns than one pass takes.
    for (const bool cosine : {false, true}) {
      check_all({33, 600, 33, 80, DType::kBFloat16, DType::kBFloat16, false, cosine, 7}, precision);
      check_all({130, 520, 0, 128, DType::kFloat32, DType::kBFloat16, false, cosine}, precision);
    }
    check_far_scores(precision);
    if (precision == Precision::kBFloat16 || precision == Precision::kFloat16) {
      for (const bool add : {false, true}) {
        for (const bool cosine : {false, true}) {
          check_strips(add, cosine, add ? 500 : 250, true, add ? 28 : 36, add ? 12 : 20, precision);
        }
      }
      check_strips(false, false, 128, true, 156, 0, precision);
      for (const bool cosine : {false, true}) {
        check_strips(false, cosine, kOnGpu ? 40'000 : 600, false, 60, 52, precision);
      }
    }
    // Too deep for the queries to stay in shared memory.
    check_all({18, 140, 600, 420, DType::kBFloat16, DType::kBFloat16, false, false}, precision);
    // More coefficients than one strip of a GPU has; the emulator's are small.
    if (kOnGpu) check_all({130, 140'000, 8, 8}, precision);
  }
  return report();
}
