// score_all and its gradients, in every precision, against plain loops in double.
#include "cuda/tests/on_device.h"
#include "tests/checks.h"

namespace alphafuse {
namespace tests {
namespace {

// Relative to the largest score; operands are rounded to the precision first.
double tolerance(Precision precision) {
  const double bounds[] = {2e-6, 2e-2, 3e-3, 3e-3};
  return bounds[static_cast<int>(precision)];
}

void check(const Case& c, Precision precision) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim;
  const Matrix queries(c.batch, dim, DType::kFloat32);
  Matrix out(c.batch, c.rows, DType::kFloat32);
  out.forget();
  run(precision, [&](OnDevice& on) {
    cuda::score_all(on(problem.tables),
                    on(array<const float, kBatch, kDim>(queries.floats(), c.batch, dim)),
                    on(scores_array(out.floats(), c.batch, c.rows)), on);
  });
  const std::vector<double> expected = plain_scores(problem, queries);
  const std::string what = c.name() + ", " + name_of(precision);
  const double error = worst_error(out.floats(), expected, expected.size());
  expect(error < tolerance(precision), what + ": error " + std::to_string(error));
  for (int64_t b = 0; b < c.batch && c.rows > 140; ++b) {
    expect(out.floats()[b * c.rows + 5] == out.floats()[b * c.rows + 140],
           what + ": equal rows score differently");
  }
  // The same scores as another type, where neighbours lie in pairs and where they do not.
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t shift : {0, 1}) {
      Matrix as(c.batch, c.rows, dtype, c.rows, shift);
      as.forget();
      run(precision, [&](OnDevice& on) {
        cuda::score_all(on(problem.tables),
                        on(array<const float, kBatch, kDim>(queries.floats(), c.batch, dim)),
                        on(scores_array(as.data(), c.batch, c.rows, dtype)), on);
      });
      bool same = true;
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t i = 0; i < c.rows; ++i) {
          float rounded = 0;
          write(&rounded, dtype, 0, out.floats()[b * c.rows + i]);
          same = same && as.at(b, i) == read(&rounded, dtype, 0);
        }
      }
      expect(same, what + ": other scores as type " + std::to_string(static_cast<int>(dtype)));
    }
  }
}

// The gradients: those of a row divided by its norm reach it through product.cuh's formula. Those of the
// scores are of the semantic rows' type.
void check_backward(const Case& c, Precision precision) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim;
  const Matrix queries(c.batch, dim, DType::kFloat32), grad(c.batch, c.rows, c.semantic);
  Matrix grad_queries(c.batch, dim, DType::kFloat32), grad_ids(c.rows, c.id_cols, DType::kFloat32);
  grad_queries.forget();
  grad_ids.forget();
  run(precision, [&](OnDevice& on) {
    cuda::score_all_backward(
        on(problem.tables), on(array<const float, kBatch, kDim>(queries.floats(), c.batch, dim)),
        on(gradients_array(grad.data(), c.batch, c.rows, c.semantic)),
        on(optional<float, kBatch, kDim>(grad_queries.floats(), c.batch, dim)),
        on(c.id_cols == 0
               ? Optional<Array<float, kItems, kNullDim>>{}
               : optional<float, kItems, kNullDim>(grad_ids.floats(), c.rows, c.id_cols)),
        on);
  });
  std::vector<double> of_scores;
  for (int64_t i = 0; i < c.batch * c.rows; ++i) {
    of_scores.push_back(read(grad.data(), c.semantic, i));
  }
  const Gradients expected = plain_gradients(problem, queries, of_scores);
  const std::string what = c.name() + ", " + name_of(precision);
  const double query_error =
      worst_error(grad_queries.floats(), expected.queries, expected.queries.size());
  expect(query_error < tolerance(precision),
         what + ": error of grad_queries " + std::to_string(query_error));
  const double id_error = worst_error(grad_ids.floats(), expected.ids, expected.ids.size());
  expect(id_error < tolerance(precision), what + ": error of grad_ids " + std::to_string(id_error));
}

// Operands are rounded to the precision, to nearest, and no further: near what double makes of them.
void check_rounding(Precision precision) {
  const int64_t batch = 40, rows = 200, dim = 40, cols = 16;
  Problem problem({batch, rows, dim - cols, cols});
  Matrix queries(batch, dim, DType::kFloat32);
  Matrix grad(batch, rows, DType::kFloat32), out(batch, rows, DType::kFloat32);
  Matrix to_queries(batch, dim, DType::kFloat32), to_ids(rows, cols, DType::kFloat32);
  run(precision, [&](OnDevice& on) {
    cuda::score_all(on(problem.tables),
                    on(array<const float, kBatch, kDim>(queries.floats(), batch, dim)),
                    on(scores_array(out.floats(), batch, rows)), on);
  });
  run(precision, [&](OnDevice& on) {
    cuda::score_all_backward(
        on(problem.tables), on(array<const float, kBatch, kDim>(queries.floats(), batch, dim)),
        on(gradients_array(grad.floats(), batch, rows)),
        on(optional<float, kBatch, kDim>(to_queries.floats(), batch, dim)),
        on(optional<float, kItems, kNullDim>(to_ids.floats(), rows, cols)), on);
  });
  for (Matrix* const operand : {&problem.semantic, &problem.id, &queries, &grad}) {
    for (int64_t r = 0; r < operand->rows(); ++r) {
      for (int64_t c = 0; c < operand->cols(); ++c) {
        operand->set(r, c, static_cast<float>(rounded(operand->at(r, c), precision)));
      }
    }
  }
  problem.find_rows();
  const std::vector<double> scores = plain_scores(problem, queries);
  const std::vector<double> of_scores(grad.floats(), grad.floats() + batch * rows);
  const Gradients expected = plain_gradients(problem, queries, of_scores);
  const auto near = [&](const char* what, const Matrix& got, const std::vector<double>& values) {
    const double error = worst_error(got.floats(), values, values.size());
    expect(error < 1e-5, std::string("rounded operands, ") + what + ", " + name_of(precision) +
                             ": error " + std::to_string(error));
  };
  near("scores", out, scores);
  near("grad_queries", to_queries, expected.queries);
  near("grad_ids", to_ids, expected.ids);
}

void check_both(const Case& c, Precision precision) {
  check(c, precision);
  check_backward(c, precision);
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
    for (const int64_t batch : {0, 1, 16, 17, 150}) {
      check_both({batch, 300, 60, 40}, precision);
    }
    for (const bool add : {false, true}) {
      for (const bool cosine : {false, true}) {
        for (const DType semantic : types) {
          for (const DType id : types) {
            check_both({5, 150, 32, 16, semantic, id, add, cosine, 8}, precision);
          }
        }
        check_both({3, 5, 3, 1, DType::kFloat32, DType::kFloat32, add, cosine}, precision);
        check_both({20, 130, 37, 36, DType::kBFloat16, DType::kBFloat16, add, cosine, 3, 1},
                   precision);
        check_both({2, 260, 129, 65, DType::kFloat32, DType::kFloat16, add, cosine, 0, 2},
                   precision);
        check_both({2, 1, 16, 16, DType::kFloat16, DType::kFloat16, add, cosine}, precision);
        check_both({2, 30, 0, 45, DType::kFloat32, DType::kFloat32, add, cosine}, precision);
        check_both({2, 30, 45, 0, DType::kBFloat16, DType::kFloat32, add, cosine}, precision);
      }
    }
    check_rounding(precision);
    // Too deep for the queries to stay in shared memory.
    check_both({18, 140, 600, 420, DType::kBFloat16, DType::kBFloat16, false, false}, precision);
    check_both({18, 20, 601, 420, DType::kFloat32, DType::kFloat32, true, false}, precision);
  }
  return report();
}
