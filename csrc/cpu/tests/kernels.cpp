// Every kernel of every instruction set that this machine has, against plain loops in double.
// With the argument --list, only their names.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "tests/checks.h"
#include "tests/problem.h"

namespace alphafuse {
namespace tests {
namespace {

using Ids = std::vector<int64_t>;
using Floats = std::vector<float>;

constexpr double kTolerance = 3e-6;  // relative to the largest value, of sums in float32
constexpr int kThreads[] = {1, 3};
constexpr Precision kPrecisions[] = {Precision::kFloat32, Precision::kBFloat16};

// Of products, relative to those of the rounded operands: rows divided by their norms may be rounded
// otherwise than in double.
double tolerance_of(const Case& c, Precision precision) {
  return precision == Precision::kBFloat16 && c.cosine ? 1e-2 : kTolerance;
}

std::size_t size(int64_t count) { return static_cast<std::size_t>(count); }

void near(const Floats& got, const std::vector<double>& expected, const std::string& what,
          double tolerance = kTolerance, double scale = 1e-3) {
  const double error = worst_error(got, expected, expected.size(), scale);
  expect(got.size() == expected.size() && error < tolerance,
         std::string(kernels().isa) + ", " + what + ": error " + std::to_string(error));
}

void same_bits(const Floats& got, const Floats& expected, const std::string& what) {
  const bool same =
      got.size() == expected.size() &&
      (got.empty() || std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
  expect(same, std::string(kernels().isa) + ", " + what + ": not the same, bit for bit");
}

void equal(const Ids& got, const Ids& expected, const std::string& what) {
  expect(got == expected, std::string(kernels().isa) + ", " + what + ": other ids");
}

// Ids of this part of the catalog, of its padding and of other parts.
Ids some_ids(const Tables& tables, int64_t count) {
  Ids ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(tables.first_id - 2 + random_below(tables.rows + 4));
  }
  return ids;
}

int64_t row_of(const Tables& tables, int64_t id) {
  const int64_t row = id - tables.first_id;
  return row >= 0 && row < tables.rows ? row : -1;
}

// What the kernels are called with: NaN where they are to write.
template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(size(count), std::numeric_limits<T>::has_quiet_NaN
                                         ? std::numeric_limits<T>::quiet_NaN()
                                         : std::numeric_limits<T>::min());
}

void check_lookup(const Case& c, DType out_dtype) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim;
  const Ids ids = some_ids(problem.tables, c.batch);
  Matrix out(c.batch, dim, out_dtype);
  for (const int threads : kThreads) {
    out.forget();
    kernels().lookup(problem.tables, array<const int64_t, kCount>(ids.data(), c.batch),
                     {out.data(), {c.batch, dim}, out_dtype}, threads);
    bool good = true;
    for (int64_t i = 0; i < c.batch; ++i) {
      const int64_t row = row_of(problem.tables, ids[size(i)]);
      for (int64_t d = 0; d < dim; ++d) {
        // A sum of two values in float32, rounded once.
        Matrix expected(1, 1, out_dtype);
        expected.set(0, 0, row >= 0 ? static_cast<float>(problem.row(row, d)) : 0.0f);
        good = good && out.at(i, d) == expected.at(0, 0);
      }
    }
    expect(good, std::string(kernels().isa) + ", lookup: " + c.name());
  }
}

void check_lookup_backward(const Case& c, bool dense) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim, cols = c.id_cols;
  const Ids ids = some_ids(problem.tables, c.batch);
  const Matrix grad(c.batch, dim, c.semantic);
  const Grouping grouping(ids.data(), c.batch, c.first_id, c.rows, dense);
  Ids touched(size(grouping.count()));
  grouping.copy_ids(touched.data());
  Ids distinct = ids;
  distinct.erase(std::remove_if(distinct.begin(), distinct.end(),
                                [&](int64_t id) { return row_of(problem.tables, id) < 0; }),
                 distinct.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  equal(touched, distinct, "grouping: " + c.name());

  const int64_t rows = dense ? c.rows : grouping.count();
  std::vector<double> expected(size(rows * cols));
  for (int64_t i = 0; i < c.batch; ++i) {
    if (row_of(problem.tables, ids[size(i)]) < 0) continue;
    const int64_t group =
        std::lower_bound(distinct.begin(), distinct.end(), ids[size(i)]) - distinct.begin();
    const int64_t row = dense ? ids[size(i)] - c.first_id : group;
    for (int64_t j = 0; j < cols; ++j) expected[size(row * cols + j)] += grad.at(i, dim - cols + j);
  }
  for (const int threads : kThreads) {
    Floats out(size(rows * cols));  // rows that are not touched are the caller's
    kernels().lookup_backward({grad.data(), {c.batch, dim}, c.semantic}, grouping.view(),
                              array<float, kGradRows, kNullDim>(out.data(), rows, cols), threads);
    near(out, expected, "lookup_backward: " + c.name());
  }
}

// One step of each optimizer, of a row each time, in double.
void check_optim(int64_t cols, DType dtype, DType grad_dtype) {
  constexpr int64_t kRows = 700;
  Ids ids;
  for (int64_t row = random_below(3); row < kRows; row += 1 + random_below(3)) ids.push_back(row);
  const auto count = static_cast<int64_t>(ids.size());
  const Matrix grad(count, cols, grad_dtype);
  const Matrix first(kRows, cols, DType::kFloat32);
  const std::string name = "optim: " + std::to_string(cols) + " columns";
  const double rate = 0.1, beta1 = 0.9, beta2 = 0.98, eps = 1e-6;
  for (const bool adam : {true, false}) {
    for (const int threads : kThreads) {
      Matrix values(kRows, cols, dtype);
      std::vector<double> expected;
      for (int64_t i = 0; i < kRows * cols; ++i) expected.push_back(values.at(i / cols, i % cols));
      Floats moments1(size(kRows * cols)), moments2(size(kRows * cols)), sums(size(kRows), 0.5f);
      for (int64_t i = 0; i < kRows * cols; ++i) {
        moments1[size(i)] = static_cast<float>(first.at(i / cols, i % cols));
        moments2[size(i)] = std::fabs(moments1[size(i)]);
      }
      for (int64_t g = 0; g < count; ++g) {
        const int64_t row = ids[size(g)];
        double sum = 0.5;
        for (int64_t c = 0; c < cols; ++c) {
          sum += grad.at(g, c) * grad.at(g, c) / static_cast<double>(cols);
        }
        for (int64_t c = 0; c < cols; ++c) {
          const double x = grad.at(g, c), old = first.at(row, c);
          const double m = beta1 * old + (1 - beta1) * x;
          const double v = beta2 * std::fabs(old) + (1 - beta2) * x * x;
          const double by = adam ? m / (std::sqrt(v) + eps) : x / (std::sqrt(sum) + eps);
          expected[size(row * cols + c)] -= rate * by;
        }
      }
      const auto places = array<const int64_t, kCount>(ids.data(), count);
      const FloatArray<const void, kCount, kNullDim> from{grad.data(), {count, cols}, grad_dtype};
      const FloatArray<void, kItems, kNullDim> to{values.data(), {kRows, cols}, dtype};
      if (adam) {
        kernels().lazy_adam(places, from, to,
                            array<float, kItems, kNullDim>(moments1.data(), kRows, cols),
                            array<float, kItems, kNullDim>(moments2.data(), kRows, cols), rate,
                            beta1, beta2, eps, threads);
      } else {
        kernels().row_wise_adagrad(places, from, to, array<float, kItems>(sums.data(), kRows), rate,
                                   eps, threads);
      }
      Floats got;
      for (int64_t i = 0; i < kRows * cols; ++i) {
        got.push_back(static_cast<float>(values.at(i / cols, i % cols)));
      }
      near(got, expected, name, dtype == DType::kFloat32 ? kTolerance : 5e-3);
    }
  }
}

Matrix in_precision(const Matrix& given, Precision precision) {
  Matrix operand(given.rows(), given.cols(), DType::kFloat32);
  for (int64_t r = 0; r < given.rows(); ++r) {
    for (int64_t d = 0; d < given.cols(); ++d) {
      const double value = given.at(r, d);
      operand.set(r, d,
                  static_cast<float>(precision == Precision::kFloat32 ? value : rounded(value)));
    }
  }
  return operand;
}

struct Scored {
  explicit Scored(const Case& c, Precision products = Precision::kFloat32)
      : precision(products),
        problem(c),
        queries(c.batch, problem.tables.dim, DType::kFloat32),
        operand(in_precision(queries, products)),
        scores(unwritten<float>(c.batch * c.rows)) {
    problem.to_bfloat16 = products == Precision::kBFloat16;
    expected = plain_scores(problem, operand);
    kernels().score_all(problem.tables, as_queries(), scores_array(scores.data(), c.batch, c.rows),
                        workers(1));
  }
  Workers workers(int threads) const { return {threads, precision}; }
  Array<const float, kBatch, kDim> as_queries() const {
    return array<const float, kBatch, kDim>(queries.floats(), queries.rows(), queries.cols());
  }
  // An op's own arithmetic is compared with what these scores say, bit for bit.
  float score(int64_t b, int64_t i) const { return scores[size(b * problem.tables.rows + i)]; }

  Precision precision;
  Problem problem;
  Matrix queries, operand;  // as given, and as they are multiplied
  std::vector<double> expected;
  Floats scores;
};

void check_score_all(const Case& c, Precision precision) {
  const Scored scored(c, precision);
  near(scored.scores, scored.expected, "score_all: " + c.name(), tolerance_of(c, precision));
  Floats again = unwritten<float>(c.batch * c.rows);
  kernels().score_all(scored.problem.tables, scored.as_queries(),
                      scores_array(again.data(), c.batch, c.rows), scored.workers(3));
  same_bits(again, scored.scores, "score_all on 3 threads: " + c.name());
  // One query at a time, which takes another way through the rows.
  for (int64_t b = 0; b < c.batch; ++b) {
    kernels().score_all(
        scored.problem.tables,
        array<const float, kBatch, kDim>(scored.queries.floats() + b * scored.queries.cols(),
                                         int64_t{1}, scored.queries.cols()),
        scores_array(again.data() + b * c.rows, int64_t{1}, c.rows), scored.workers(1));
  }
  same_bits(again, scored.scores, "score_all of one query: " + c.name());
  for (int64_t b = 0; b < c.batch && c.rows > 140; ++b) {
    expect(scored.score(b, 5) == scored.score(b, 140), "equal rows score differently: " + c.name());
  }
}

// The gradients of queries and ID embeddings, together and each without the other.
template <class Call>
void check_gradients(const Scored& scored, const std::vector<double>& grad, double tolerance,
                     const std::string& what, const Call& call) {
  const Tables& tables = scored.problem.tables;
  const int64_t batch = scored.queries.rows(), cols = tables.id.cols;
  const Gradients expected = plain_gradients(scored.problem, scored.operand, grad);
  const double scale = std::fmax(1e-3, tolerance > kTolerance ? expected.before_projection : 0);
  const auto run = [&](bool of_queries, bool of_ids, int threads) {
    std::pair<Floats, Floats> found(unwritten<float>(of_queries ? batch * tables.dim : 0),
                                    unwritten<float>(of_ids ? tables.rows * cols : 0));
    Optional<Array<float, kBatch, kDim>> to_queries = {};
    Optional<Array<float, kItems, kNullDim>> to_ids = {};
    if (of_queries) {
      to_queries = optional<float, kBatch, kDim>(found.first.data(), batch, tables.dim);
    }
    if (of_ids) {
      to_ids = optional<float, kItems, kNullDim>(found.second.data(), tables.rows, cols);
    }
    call(to_queries, to_ids, scored.workers(threads));
    return found;
  };
  const auto [queries, ids] = run(true, cols > 0, 1);
  near(queries, expected.queries, what + ", gradient of queries", tolerance);
  if (cols > 0) near(ids, expected.ids, what + ", gradient of ID embeddings", tolerance, scale);
  const auto [same_queries, same_ids] = run(true, cols > 0, 3);
  same_bits(same_queries, queries, what + ", gradient of queries on 3 threads");
  same_bits(same_ids, ids, what + ", gradient of ID embeddings on 3 threads");
  near(run(true, false, 3).first, expected.queries, what + ", gradient of queries alone",
       tolerance);
  if (cols > 0) {
    near(run(false, true, 3).second, expected.ids, what + ", gradient of ID embeddings alone",
         tolerance, scale);
  }
}

void check_score_all_backward(const Case& c, Precision precision) {
  const Scored scored(c, precision);
  const Matrix grad(c.batch, c.rows, DType::kFloat32), operand = in_precision(grad, precision);
  check_gradients(scored,
                  std::vector<double>(operand.floats(), operand.floats() + c.batch * c.rows),
                  tolerance_of(c, precision), "score_all_backward: " + c.name(),
                  [&](auto to_queries, auto to_ids, Workers workers) {
                    kernels().score_all_backward(scored.problem.tables, scored.as_queries(),
                                                 gradients_array(grad.floats(), c.batch, c.rows),
                                                 to_queries, to_ids, workers);
                  });
}

void check_cross_entropy(const Case& c, Precision precision) {
  const Scored scored(c, precision);
  const double tolerance = tolerance_of(c, precision);
  const Tables& tables = scored.problem.tables;
  const Ids targets = some_ids(tables, c.batch);
  const auto as_targets = array<const int64_t, kBatch>(targets.data(), c.batch);

  Floats target_scores = unwritten<float>(c.batch), expected_scores;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t row = row_of(tables, targets[size(b)]);
    expected_scores.push_back(row < 0 ? -INFINITY : scored.score(b, row));
  }
  std::vector<double> maxima, logs, grad;
  Floats weights;
  for (int64_t b = 0; b < c.batch; ++b) {
    const auto row = scored.expected.begin() + b * c.rows;
    maxima.push_back(*std::max_element(row, row + c.rows));
    double sum = 0;
    for (int64_t i = 0; i < c.rows; ++i) sum += std::exp(row[i] - maxima.back());
    logs.push_back(std::log(sum));
    weights.push_back(b % 3 == 1 ? 0.0f : 0.25f * static_cast<float>(b + 1));
    for (int64_t i = 0; i < c.rows; ++i) {
      const double softmax = std::exp(row[i] - maxima.back()) / sum;
      const bool is_target = row_of(tables, targets[size(b)]) == i;
      grad.push_back(static_cast<double>(weights.back()) * (softmax - (is_target ? 1.0 : 0.0)));
    }
  }
  Floats found_maxima, found_logs;
  for (const int threads : kThreads) {
    kernels().target_scores(tables, scored.as_queries(), as_targets,
                            array<float, kBatch>(target_scores.data(), c.batch),
                            scored.workers(threads));
    same_bits(target_scores, expected_scores, "target_scores: " + c.name());
    found_maxima = unwritten<float>(c.batch), found_logs = unwritten<float>(c.batch);
    kernels().log_sum_exp(
        tables, scored.as_queries(), array<float, kBatch>(found_maxima.data(), c.batch),
        array<float, kBatch>(found_logs.data(), c.batch), scored.workers(threads));
    near(found_maxima, maxima, "log_sum_exp, maxima: " + c.name(), tolerance);
    Floats sums;
    std::vector<double> expected_sums;
    for (int64_t b = 0; b < c.batch; ++b) {
      sums.push_back(found_maxima[size(b)] + found_logs[size(b)]);
      expected_sums.push_back(maxima[size(b)] + logs[size(b)]);
    }
    near(sums, expected_sums, "log_sum_exp: " + c.name(), tolerance);
  }
  // What the kernel rounds, the gradients of scores, it has in float32 first.
  check_gradients(
      scored, grad, precision == Precision::kFloat32 ? kTolerance : 1e-2,
      "cross_entropy_backward: " + c.name(), [&](auto to_queries, auto to_ids, Workers workers) {
        kernels().cross_entropy_backward(tables, scored.as_queries(), as_targets,
                                         array<const float, kBatch>(found_maxima.data(), c.batch),
                                         array<const float, kBatch>(found_logs.data(), c.batch),
                                         array<const float, kBatch>(weights.data(), c.batch),
                                         to_queries, to_ids, workers);
      });
}

void check_score_candidates(const Case& c, int64_t lists, int64_t candidates_of_list, bool dense,
                            Precision precision) {
  const Scored scored(c, precision);
  const Tables& tables = scored.problem.tables;
  const int64_t rows = c.batch / lists, k = candidates_of_list;
  const Ids candidates = some_ids(tables, lists * k);
  const auto queries = array<const float, kLists, kListQueries, kDim>(scored.queries.floats(),
                                                                      lists, rows, tables.dim);
  const auto ids = array<const int64_t, kLists, kCandidates>(candidates.data(), lists, k);
  const Matrix of_scores(c.batch, k, DType::kFloat32);
  // Of few queries of a list, gradients of ID embeddings are summed in float32.
  const double tolerance = precision == Precision::kFloat32 ? kTolerance : 1e-2;
  const auto grad =
      array<const float, kLists, kListQueries, kCandidates>(of_scores.floats(), lists, rows, k);
  const std::string what = c.name() + ", " + std::to_string(lists) + " x " + std::to_string(k);

  Floats expected_scores;
  std::vector<double> grad_of_items(size(c.batch * c.rows));
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t row = row_of(tables, candidates[size(b / rows * k + j)]);
      expected_scores.push_back(row < 0 ? -INFINITY : scored.score(b, row));
      if (row >= 0) grad_of_items[size(b * c.rows + row)] += of_scores.at(b, j);
    }
  }
  const Gradients expected = plain_gradients(scored.problem, scored.operand, grad_of_items);
  const Grouping grouping(candidates.data(), lists * k, c.first_id, c.rows, dense);
  std::vector<double> expected_ids = expected.ids;
  if (!dense) {
    Ids touched(size(grouping.count()));
    grouping.copy_ids(touched.data());
    expected_ids.clear();
    for (const int64_t id : touched) {
      const auto row = expected.ids.begin() + (id - c.first_id) * c.id_cols;
      expected_ids.insert(expected_ids.end(), row, row + c.id_cols);
    }
  }
  for (const int threads : kThreads) {
    Floats scores = unwritten<float>(c.batch * k);
    kernels().score_candidates(
        tables, queries, ids,
        array<float, kLists, kListQueries, kCandidates>(scores.data(), lists, rows, k),
        scored.workers(threads));
    same_bits(scores, expected_scores, "score_candidates: " + what);
    // As callers do: what has no row has no gradient either.
    for (float& score : scores) score = std::isinf(score) ? 0.0f : score;

    Floats to_queries = unwritten<float>(c.batch * tables.dim);
    kernels().score_candidates_grad_queries(
        tables, ids, grad,
        array<float, kLists, kListQueries, kDim>(to_queries.data(), lists, rows, tables.dim),
        scored.workers(threads));
    near(to_queries, expected.queries, "score_candidates_grad_queries: " + what, tolerance);
    if (c.id_cols == 0) continue;
    const int64_t grad_rows = dense ? c.rows : grouping.count();
    Floats to_ids(size(grad_rows * c.id_cols));
    kernels().score_candidates_grad_ids(
        tables, queries, ids,
        array<const float, kLists, kListQueries, kCandidates>(scores.data(), lists, rows, k), grad,
        grouping.view(), array<float, kGradRows, kNullDim>(to_ids.data(), grad_rows, c.id_cols),
        scored.workers(threads));
    near(to_ids, expected_ids, "score_candidates_grad_ids: " + what, tolerance);
  }
}

void check_sampled_softmax(const Case& c, int64_t lists, int64_t negatives_of_list, bool dense,
                           Precision precision) {
  const Scored scored(c, precision);
  const double tolerance = precision == Precision::kFloat32 ? kTolerance : 1e-2;
  const Tables& tables = scored.problem.tables;
  const int64_t rows = c.batch / lists, k = negatives_of_list;
  Ids ids = some_ids(tables, c.batch + lists * k);
  ids[size(c.batch)] = ids[0];  // a negative that is its query's target
  const int64_t* const negatives = ids.data() + c.batch;
  const auto queries = array<const float, kLists, kListQueries, kDim>(scored.queries.floats(),
                                                                      lists, rows, tables.dim);
  const auto of_queries = [&](auto* data) {
    return array<std::remove_pointer_t<decltype(data)>, kLists, kListQueries>(data, lists, rows);
  };
  const std::string what = c.name() + ", " + std::to_string(lists) + " x " + std::to_string(k);

  Floats shifts, weights, target_scores;
  for (int64_t i = 0; i < c.rows; ++i) shifts.push_back(0.01f * static_cast<float>(i % 7));
  std::vector<double> sums, grad(size(c.batch * c.rows));
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t target = row_of(tables, ids[size(b)]);
    std::vector<double> terms;
    double sum = 0;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t id = negatives[b / rows * k + j], row = row_of(tables, id);
      const bool taken = row >= 0 && id != ids[size(b)];
      terms.push_back(taken ? std::exp(double{scored.score(b, row)} - double{shifts[size(row)]})
                            : 0.0);
      sum += terms.back();
    }
    sums.push_back(std::log(sum));
    weights.push_back(b % 3 == 1 || sum == 0 ? 0.0f : 0.25f * static_cast<float>(b % 9 + 1));
    target_scores.push_back(target < 0 ? 0.0f : scored.score(b, target));
    const double weight = weights.back();
    for (int64_t j = 0; weight != 0 && j < k; ++j) {
      const int64_t row = row_of(tables, negatives[b / rows * k + j]);
      if (row >= 0) grad[size(b * c.rows + row)] += weight * terms[size(j)] / sum;
    }
    if (target >= 0) grad[size(b * c.rows + target)] -= weight;
  }
  const Gradients expected = plain_gradients(scored.problem, scored.operand, grad);
  const Grouping grouping(ids.data(), c.batch + lists * k, c.first_id, c.rows, dense);
  std::vector<double> expected_ids = expected.ids;
  if (!dense) {
    Ids touched(size(grouping.count()));
    grouping.copy_ids(touched.data());
    expected_ids.clear();
    for (const int64_t id : touched) {
      const auto row = expected.ids.begin() + (id - c.first_id) * c.id_cols;
      expected_ids.insert(expected_ids.end(), row, row + c.id_cols);
    }
  }
  const Optional<Array<const float, kItems>> shift{
      array<const float, kItems>(shifts.data(), c.rows)};
  for (const int threads : kThreads) {
    Floats maxima = unwritten<float>(c.batch), logs = unwritten<float>(c.batch);
    kernels().sampled_log_sum_exp(
        tables, queries, of_queries(static_cast<const int64_t*>(ids.data())),
        array<const int64_t, kLists, kCandidates>(negatives, lists, k), shift,
        of_queries(maxima.data()), of_queries(logs.data()), scored.workers(threads));
    Floats found_sums;
    for (int64_t b = 0; b < c.batch; ++b) {
      found_sums.push_back(maxima[size(b)] + logs[size(b)]);
    }
    near(found_sums, sums, "sampled_log_sum_exp: " + what, tolerance);

    Floats to_queries = unwritten<float>(c.batch * tables.dim);
    const int64_t grad_rows = dense ? c.rows : grouping.count();
    Floats to_ids(size(grad_rows * c.id_cols));
    const auto constant = [&](const Floats& values) { return of_queries(values.data()); };
    kernels().sampled_softmax_backward(
        tables, queries, array<const int64_t, kCount>(ids.data(), c.batch + lists * k), shift,
        constant(target_scores), constant(maxima), constant(logs), constant(weights),
        grouping.view(),
        {array<float, kLists, kListQueries, kDim>(to_queries.data(), lists, rows, tables.dim)},
        {array<float, kGradRows, kNullDim>(to_ids.data(), grad_rows, c.id_cols)},
        scored.workers(threads));
    near(to_queries, expected.queries, "sampled_softmax_backward, queries: " + what, tolerance);
    near(to_ids, expected_ids, "sampled_softmax_backward, ids: " + what, tolerance);
  }
}

std::size_t place_of_code(int64_t row, int64_t column, int64_t cols) {
  const int64_t quads = (cols + 3) / 4;
  return size((row / kGroup * quads + column / 4) * 4 * kGroup + row % kGroup * 4 + column % 4);
}

// Sums are exact; with `largest`, of the largest numbers that fit, all products of one sign.
void check_integer_product(int64_t items, int64_t cols, int64_t batch, bool largest) {
  const IntegerProduct& product = *kernels().integer_product;
  const double fitting = 0x1p31 / product.max_product / static_cast<double>(cols);
  const auto most = static_cast<int64_t>(std::fmin(fitting, product.max_number));
  const auto any = [](int64_t limit) { return random_below(2 * limit + 1) - limit; };
  const int64_t first = 2 * kGroup, rows = padded_rows(first + items), stride = padded_cols(cols);
  std::vector<int8_t> codes(size(codes_of(rows, cols))),
      numbers(size(batch * stride * product.bytes));
  std::vector<int64_t> code_of(size(rows * cols)), number_of(size(batch * cols));
  std::vector<int32_t> sums(size(batch));
  Floats scales(size(rows)), factors(size(rows)), units(size(batch));
  for (int64_t i = 0; i < rows; ++i) {  // powers of two, which round nothing
    scales[size(i)] = std::ldexp(1.0f, static_cast<int>(i % 5));
    factors[size(i)] = std::ldexp(1.0f, static_cast<int>(-i % 3));
    for (int64_t d = 0; d < cols; ++d) {
      const int64_t code = largest ? (i % 2 == 0 ? 127 : -127) : any(127);
      code_of[size(i * cols + d)] = code;
      codes[place_of_code(i, d, cols)] = static_cast<int8_t>(code);
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    units[size(b)] = std::ldexp(1.0f, static_cast<int>(b % 4));
    for (int64_t d = 0; d < cols; ++d) {
      const int64_t number = largest ? (b % 2 == 0 ? most : -most) : any(most);
      const bool in_the_middle = product.bytes == 2 && (d % 4 == 1 || d % 4 == 2);
      const auto stored = static_cast<int16_t>(number);
      number_of[size(b * cols + d)] = number;
      sums[size(b)] += stored;
      std::memcpy(&numbers[size((b * stride + (in_the_middle ? d ^ 3 : d)) * product.bytes)],
                  &stored, size(product.bytes));  // of bytes, the low one
    }
  }
  const CompressedTable table = {codes.data(), scales.data(), nullptr, nullptr};
  const IntegerQueries queries = {numbers.data(), stride, sums.data(), units.data()};
  const int64_t out_row = padded_rows(items);
  Floats found = unwritten<float>(batch * out_row), with_factors = found;
  product.run(table, stride, nullptr, first, items, queries, batch, found.data(), out_row, false);
  product.run(table, stride, factors.data(), first, items, queries, batch, with_factors.data(),
              out_row, false);
  product.run(table, stride, nullptr, first, items, queries, batch, with_factors.data(), out_row,
              true);
  bool exact = true;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < items; ++i) {
      int64_t sum = 0;
      for (int64_t d = 0; d < cols; ++d) {
        sum += code_of[size((first + i) * cols + d)] * number_of[size(b * cols + d)];
      }
      const float scaled = static_cast<float>(sum) * scales[size(first + i)] * units[size(b)];
      exact = exact && found[size(b * out_row + i)] == scaled &&
              with_factors[size(b * out_row + i)] == scaled * factors[size(first + i)] + scaled;
    }
  }
  expect(exact, std::string(kernels().isa) + ", integer product of " + std::to_string(items) +
                    " items, " + std::to_string(cols) + " columns, " + std::to_string(batch) +
                    (largest ? " queries, the largest numbers" : " queries"));
}

// The compressed copy of the tables, as callers make it.
class Copy {
 public:
  explicit Copy(const Problem& problem) {
    const Tables& tables = problem.tables;
    const int64_t rows = padded_rows(tables.rows);
    inverse_norms_ = Floats(size(rows));
    kernels().inverse_row_norms(tables, array<float, kItems>(inverse_norms_.data(), tables.rows),
                                3);
    compressed_ = {compress(tables, tables.semantic, 0), compress(tables, tables.id, 1),
                   inverse_norms_.data()};
  }
  const Compressed* operator&() const { return &compressed_; }
  const Floats& inverse_norms() const { return inverse_norms_; }

  // Each row's distance from its copy is within the stated bound.
  void check(const Matrix& matrix, const CompressedTable& table, const std::string& what) const {
    bool good = true;
    for (int64_t r = 0; r < matrix.rows() && table.codes != nullptr; ++r) {
      double off = 0, norm = 0;
      for (int64_t d = 0; d < matrix.cols(); ++d) {
        const double code = table.codes[place_of_code(r, d, matrix.cols())];
        const double copy = static_cast<double>(table.scales[r]) * code;
        off += (matrix.at(r, d) - copy) * (matrix.at(r, d) - copy);
        norm += copy * copy;
      }
      off = std::sqrt(off), norm = std::sqrt(norm);
      const double residual = table.residuals[r], bound = table.norms[r];
      good = good && off <= residual && residual <= 1.01 * off + 1e-3 && bound >= norm + off;
    }
    expect(good, std::string(kernels().isa) + ", compress: " + what);
  }
  const Compressed& tables() const { return compressed_; }

 private:
  CompressedTable compress(const Tables& tables, const Table& table, int which) {
    if (table.cols == 0) return {nullptr, nullptr, nullptr, nullptr};
    const Tables alone = make_tables(table, {}, tables.rows, 0, false, false);
    const int64_t rows = padded_rows(tables.rows), count = codes_of(tables.rows, table.cols);
    codes_[which].assign(size(count), 0);
    bounds_[which] = unwritten<float>(3 * rows);
    kernels().compress(alone, array<int8_t, kCodes>(codes_[which].data(), count),
                       array<float, kBounds, kPaddedItems>(bounds_[which].data(), int64_t{3}, rows),
                       3);
    const float* bounds = bounds_[which].data();
    return {codes_[which].data(), bounds, bounds + rows, bounds + 2 * rows};
  }

  std::vector<int8_t> codes_[2];
  Floats bounds_[2], inverse_norms_;
  Compressed compressed_;
};

void check_ranking(const Case& c, int64_t k) {
  const Scored scored(c);
  const Tables& tables = scored.problem.tables;
  const int64_t num_embeddings = c.first_id + c.rows;
  const Copy copy(scored.problem);
  copy.check(scored.problem.semantic, copy.tables().semantic, "semantic rows, " + c.name());
  copy.check(scored.problem.id, copy.tables().id, "ID embeddings, " + c.name());
  if (c.cosine) {
    near(Floats(copy.inverse_norms().begin(), copy.inverse_norms().begin() + c.rows),
         scored.problem.inverse_norms, "inverse_row_norms: " + c.name());
  }

  const Ids targets = some_ids(tables, c.batch);
  Floats target_scores;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t row = row_of(tables, targets[size(b)]);
    target_scores.push_back(row < 0 ? 0.5f : scored.score(b, row));
  }
  Ids left_out;
  for (int64_t i = 0; i < c.batch * 7; ++i)
    left_out.push_back(random_below(num_embeddings + 2) - 1);
  const Exclude exclude = Exclude::from_padded(left_out.data(), c.batch, 7, num_embeddings);

  for (const bool excluding : {false, true}) {
    const ExcludedIds excluded = excluding ? exclude.view() : ExcludedIds{nullptr, nullptr};
    Ids ids, ranks;
    Floats values;
    for (int64_t b = 0; b < c.batch; ++b) {
      const auto is_out = [&](int64_t id) {
        const auto row = left_out.begin() + b * 7;
        return excluding && std::find(row, row + 7, id) != row + 7;
      };
      const auto ahead = [&](float score, int64_t id, float other, int64_t other_id) {
        return score > other || (score == other && id < other_id);
      };
      Ids order;
      int64_t rank = 0;
      for (int64_t i = 0; i < c.rows; ++i) {
        const int64_t id = c.first_id + i;
        if (is_out(id)) continue;
        order.push_back(i);
        rank += id != targets[size(b)] &&
                ahead(scored.score(b, i), id, target_scores[size(b)], targets[size(b)]);
      }
      std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
        return ahead(scored.score(b, i), i, scored.score(b, j), j);
      });
      ranks.push_back(rank);
      for (int64_t place = 0; place < k; ++place) {
        const bool there = size(place) < order.size();
        ids.push_back(there ? c.first_id + order[size(place)] : -1);
        values.push_back(there ? scored.score(b, order[size(place)]) : -INFINITY);
      }
    }
    for (const int threads : kThreads) {
      for (const Compressed* compressed : {static_cast<const Compressed*>(nullptr), &copy}) {
        const std::string what = c.name() + (excluding ? ", without some" : "") +
                                 (compressed != nullptr ? ", compressed first" : "");
        Ids found_ids = unwritten<int64_t>(c.batch * k), found_ranks = unwritten<int64_t>(c.batch);
        Floats found_values = unwritten<float>(c.batch * k);
        kernels().topk(tables, scored.as_queries(), excluded, compressed,
                       array<float, kBatch, kPlaces>(found_values.data(), c.batch, k),
                       array<int64_t, kBatch, kPlaces>(found_ids.data(), c.batch, k), threads);
        equal(found_ids, ids, "topk: " + what);
        same_bits(found_values, values, "topk: " + what);
        kernels().target_ranks(
            tables, scored.as_queries(), array<const int64_t, kBatch>(targets.data(), c.batch),
            array<const float, kBatch>(target_scores.data(), c.batch), excluded, compressed,
            array<int64_t, kBatch>(found_ranks.data(), c.batch), threads);
        equal(found_ranks, ranks, "target_ranks: " + what);
      }
    }
  }
}

// Every number of a half type, where a row is read whole vectors at a time and where it is read one
// element at a time, and by lookup; and float32 numbers of every size rounded to it.
void check_half(DType dtype) {
  const std::string what = dtype == DType::kFloat16 ? "float16" : "bfloat16";
  constexpr int64_t rows = 1 << 16, dim = 35;
  std::vector<uint16_t> table(size(rows * dim));
  for (const int64_t column : {int64_t{0}, int64_t{13}, dim - 1}) {
    for (int64_t r = 0; r < rows; ++r) {
      table[size(r * dim + column)] = static_cast<uint16_t>(r);
    }
    const Tables tables = make_tables({table.data(), dtype, dim, dim}, {}, rows, 0, false, false);
    const Floats query(size(dim), 1.0f);
    Floats scores = unwritten<float>(rows), looked_up = unwritten<float>(rows * dim);
    kernels().score_all(tables, array<const float, kBatch, kDim>(query.data(), int64_t{1}, dim),
                        scores_array(scores.data(), int64_t{1}, rows), {1});
    Ids ids;
    for (int64_t r = 0; r < rows; ++r) ids.push_back(r);
    kernels().lookup(tables, array<const int64_t, kCount>(ids.data(), rows),
                     {looked_up.data(), {rows, dim}, DType::kFloat32}, 1);
    bool scored = true, found = true;
    for (int64_t r = 0; r < rows; ++r) {
      const double value = from_half(static_cast<uint16_t>(r), dtype);
      const double score = scores[size(r)], element = looked_up[size(r * dim + column)];
      scored = scored && (score == value || (std::isnan(score) && std::isnan(value)));
      found = found && (element == value || (std::isnan(element) && std::isnan(value)));
    }
    const std::string where = what + " in column " + std::to_string(column);
    expect(scored, std::string(kernels().isa) + ", score of each " + where);
    expect(found, std::string(kernels().isa) + ", lookup of each " + where);
    for (int64_t r = 0; r < rows; ++r) table[size(r * dim + column)] = 0;
  }

  Floats values = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 65504.0f, 65519.0f, 65520.0f, 65536.0f};
  for (int exponent = -149; exponent <= 127; ++exponent) {
    // Ties, their neighbours, and anything.
    const float smallest = std::ldexp(1.0f, exponent);
    for (const int places : {11, 10, 8, 7}) {
      const float tie = smallest + std::ldexp(smallest, -places);
      for (const float value :
           {smallest, tie, std::nextafter(tie, 0.0f), tie + std::ldexp(smallest, -22),
            tie + std::ldexp(smallest, 1 - places)}) {
        values.push_back(value);
        values.push_back(-value);
      }
    }
    values.push_back(smallest * (1.0f + static_cast<float>(random_below(1 << 23)) * 0x1p-23f));
  }
  const auto count = static_cast<int64_t>(values.size());
  const Tables tables =
      make_tables({values.data(), DType::kFloat32, 1, 1}, {}, count, 0, false, false);
  Ids ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(i);
  std::vector<uint16_t> rounded(values.size());
  kernels().lookup(tables, array<const int64_t, kCount>(ids.data(), count),
                   {rounded.data(), {count, 1}, dtype}, 1);
  bool good = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const bool both_nan = std::isnan(values[i]) && std::isnan(from_half(rounded[i], dtype));
    good = good && (both_nan || rounded[i] == to_half(values[i], dtype));
  }
  expect(good, std::string(kernels().isa) + ", float32 rounded to " + what);
}

void check_all(const Case& c) {
  check_lookup(c, c.id);
  if (c.id_cols > 0) {
    check_lookup_backward(c, false);
    check_lookup_backward(c, true);
  }
  for (const Precision precision : kPrecisions) {
    check_score_all(c, precision);
    check_score_all_backward(c, precision);
    check_cross_entropy(c, precision);
  }
  check_ranking(c, 10);
}

void check_instruction_set() {
  for (const bool largest : {false, true}) {
    check_integer_product(1, 1, 1, largest);
    check_integer_product(64, 64, 17, largest);
    check_integer_product(100, 127, 9, largest);
    check_integer_product(40, 4001, 3, largest);
    check_integer_product(3, 100'002, 2, largest);
  }
  const DType f32 = DType::kFloat32, bf16 = DType::kBFloat16, f16 = DType::kFloat16;
  for (const bool add : {false, true}) {
    for (const bool cosine : {false, true}) {
      // Every pair of types; semantic columns and null columns with and without whole vectors.
      for (const DType semantic : {f32, bf16, f16}) {
        for (const DType id : {f32, bf16, f16}) {
          check_all({9, 150, 33, 17, semantic, id, add, cosine, 3, 1});
        }
      }
      check_all({1, 1, 3, 2, f32, f32, add, cosine});
      check_all({4, 31, 64, 64, f32, f16, add, cosine});
      check_all({53, 700, 24, 8, bf16, f32, add, cosine, 0, 0, 100});
      check_all({5, 2500, 19, 7, f32, f32, add, cosine});
      check_all({7, 90, 0, 45, f32, f32, add, cosine});
      check_all({7, 90, 45, 0, f16, f32, add, cosine});
      for (const Precision precision : kPrecisions) {
        for (const bool dense : {false, true}) {
          check_score_candidates({12, 150, 33, 17, f32, f32, add, cosine, 0, 0, 20}, 1, 300, dense,
                                 precision);
          check_score_candidates({12, 150, 33, 17, bf16, f16, add, cosine}, 12, 9, dense,
                                 precision);
          check_score_candidates({60, 150, 33, 17, f32, bf16, add, cosine, 0, 0, 20}, 2, 300, dense,
                                 precision);
          check_score_candidates({102, 40, 16, 16, f16, f32, add, cosine}, 2, 1, dense, precision);
          check_sampled_softmax({12, 150, 33, 17, bf16, f16, add, cosine}, 12, 9, dense, precision);
          check_sampled_softmax({60, 150, 33, 17, f32, bf16, add, cosine, 0, 0, 20}, 2, 300, dense,
                                precision);
        }
      }
    }
  }
  for (const int64_t cols : {1, 7, 60, 64}) {
    for (const DType dtype : {f32, bf16, f16}) check_optim(cols, dtype, f32);
    check_optim(cols, f32, bf16);
  }
  check_half(f16);
  check_half(bf16);
}

bool multiplies_by_tiles(const std::string& name) { return name.rfind("amx", 0) == 0; }

// Of a set by tiles, whose other kernels are another's: one tile and several, whole and in part.
void check_tiles() {
  for (const bool largest : {false, true}) {
    check_integer_product(1, 1, 16, largest);
    check_integer_product(300, 127, 53, largest);
    check_integer_product(40, 4001, 17, largest);
  }
  const DType f32 = DType::kFloat32, bf16 = DType::kBFloat16;
  const Precision precision = Precision::kBFloat16;
  for (const bool cosine : {false, true}) {
    const Case uneven = {53, 150, 33, 17, f32, bf16, false, cosine, 3, 1};
    for (const Case& c : {uneven, Case{100, 300, 64, 60, bf16, f32, true, cosine},
                          Case{1, 1, 3, 2, f32, f32, false, cosine}}) {
      check_score_all(c, precision);
      check_score_all_backward(c, precision);
      check_cross_entropy(c, precision);
    }
    check_ranking(uneven, 10);
    const Case candidates = {60, 150, 33, 17, f32, bf16, false, cosine, 0, 0, 20};
    for (const int64_t lists : {2, 60}) {
      check_score_candidates(candidates, lists, 9, true, precision);
      check_sampled_softmax(candidates, lists, 9, true, precision);
    }
  }
}

// Scores in bfloat16 are the same, bit for bit, by the processor's own instructions and without them:
// of rows that nothing but their rounding has changed.
void check_instructions() {
  const std::vector<std::string> names = supported_isas();
  for (const int64_t cols : {1, 16, 35, 128}) {
    std::vector<Floats> found[2];  // tiles add in another order
    for (const std::string& name : names) {
      set_isa(name);
      generator.seed(3);
      std::vector<Floats>& alike = found[multiplies_by_tiles(name)];
      alike.push_back(
          Scored({9, 700, cols, cols, DType::kFloat32, DType::kFloat32, true}, Precision::kBFloat16)
              .scores);
      same_bits(alike.back(), alike.front(), "bfloat16, " + std::to_string(cols) + " columns");
    }
  }
  for (const char* const name : {"avx512bf16", "amx"}) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    std::printf("NOT RUN: %s's own instructions, which this machine lacks; in plain C++ only\n",
                name);
  }
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main(int count, char** arguments) {
  using namespace alphafuse;
  using namespace alphafuse::tests;
  std::string names;
  for (const std::string& name : supported_isas()) names += (names.empty() ? "" : " ") + name;
  std::printf("%s\n", names.c_str());
  if (count > 1) return std::strcmp(arguments[1], "--list") != 0;
  set_work_of_thread(1);
  for (const std::string& name : supported_isas()) {
    set_isa(name);
    generator.seed(11);  // the same inputs, whatever sets a machine has
    multiplies_by_tiles(name) ? check_tiles() : check_instruction_set();
  }
  check_instructions();
  return report();
}
