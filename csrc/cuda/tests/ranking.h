// What the tests of topk and target_ranks share: a catalog with queries, items to leave out, and the
// scores by which it is to be ranked, as score_all writes them.
#pragma once

#include <set>

#include "cuda/kernels.h"
#include "tests/checks.h"
#include "tests/problem.h"

namespace alphafuse {
namespace tests {

enum class Values { kNormal, kTies, kRising, kSpecial };

class Ranking {
 public:
  Ranking(const Case& c, Precision precision, Values values, int64_t max_excluded)
      : problem(c),
        precision_(precision),
        values_(values),
        batch_(c.batch),
        rows_(c.rows),
        first_id_(c.first_id),
        queries_(c.batch, problem.tables.dim, DType::kFloat32),
        scores_(c.batch, c.rows, DType::kFloat32) {
    for (Matrix* const matrix : {&problem.semantic, &problem.id, &queries_}) fill(*matrix);
    with_scratch(precision, [&](Launch& launch) {
      cuda::score_all(problem.tables, queries_array(),
                      array<float, kBatch, kItems>(scores_.floats(), batch_, rows_), launch);
    });
    offsets_.push_back(0);
    for (int64_t b = 0; b < batch_; ++b) {
      // Of other parts of the catalog too, some twice; ascending.
      std::multiset<int64_t> ids;
      for (int64_t i = random_below(max_excluded + 1); i > 0; --i) {
        ids.insert(first_id_ - 5 + random_below(rows_ + 10));
      }
      ids_.insert(ids_.end(), ids.begin(), ids.end());
      offsets_.push_back(static_cast<int64_t>(ids_.size()));
    }
    leaves_out_ = max_excluded > 0;
  }

  Array<const float, kBatch, kDim> queries_array() const {
    return array<const float, kBatch, kDim>(queries_.floats(), batch_, problem.tables.dim);
  }
  ExcludedIds exclude() const {
    return leaves_out_ ? ExcludedIds{offsets_.data(), ids_.data()} : ExcludedIds{nullptr, nullptr};
  }
  bool is_excluded(int64_t b, int64_t row) const {
    const auto at = [&](int64_t i) { return ids_.begin() + offsets_[static_cast<std::size_t>(i)]; };
    return std::binary_search(at(b), at(b + 1), first_id_ + row);
  }
  float score(int64_t b, int64_t row) const { return scores_.floats()[b * rows_ + row]; }
  // Score downward, then row upward, NaN last.
  bool is_ahead(int64_t b, int64_t row, float of, int64_t of_row) const {
    const float own = score(b, row);
    if (std::isnan(own) != std::isnan(of)) return std::isnan(of);
    if (std::isnan(own) || own == of) return row < of_row;
    return own > of;
  }
  std::string name() const {
    const char* const values[] = {"normal", "ties", "rising", "special"};
    return std::string(name_of(precision_)) + ", " + values[static_cast<int>(values_)] +
           (leaves_out_ ? ", excluding" : "");
  }

  Problem problem;

 private:
  // Small integers multiply without rounding in every type, and tie.
  void fill(Matrix& matrix) const {
    for (int64_t r = 0; r < matrix.rows(); ++r) {
      for (int64_t column = 0; column < matrix.cols(); ++column) {
        if (values_ == Values::kTies) {
          matrix.set(r, column, static_cast<float>(random_below(3) - 1));
        } else if (values_ == Values::kRising) {
          matrix.set(r, column, &matrix == &queries_ ? 1.0f : static_cast<float>(r));
        } else if (values_ == Values::kSpecial && &matrix == &problem.semantic && column == 0) {
          const float specials[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 1.0f};
          if (random_below(4) == 0) matrix.set(r, column, specials[random_below(6)]);
        }
      }
    }
  }

  Precision precision_;
  Values values_;
  int64_t batch_, rows_, first_id_;
  Matrix queries_, scores_;
  std::vector<int64_t> offsets_, ids_;
  bool leaves_out_ = false;
};

}  // namespace tests
}  // namespace alphafuse
