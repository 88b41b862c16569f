// What the tests of topk and target_ranks share: a catalog with queries, items to leave out, and the
// scores by which it is to be ranked, as score_all writes them.
#pragma once

#include <set>

#include "cuda/tests/on_device.h"
#include "tests/checks.h"

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
    // With wgmma, which may add in another order than a ranking does, as few at a time as it is not for.
    const int64_t turn = kWithWgmma ? 16 : std::max<int64_t>(batch_, 1);
    for (int64_t first = 0; first < batch_; first += turn) {
      const int64_t count = std::min(turn, batch_ - first), dim = problem.tables.dim;
      run(precision, [&](OnDevice& on) {
        cuda::score_all(
            on(problem.tables),
            on(array<const float, kBatch, kDim>(queries_.floats() + first * dim, count, dim)),
            on(scores_array(scores_.floats() + first * rows_, count, rows_)), on);
      });
    }
    offsets_.push_back(0);
    for (int64_t b = 0; b < batch_; ++b) {
      // Of other parts of the catalog too, some twice; ascending.
      std::multiset<int64_t> ids;
      // Nothing of the first query's, all of the second's.
      const int64_t count = b == 0 ? 0 : random_below(max_excluded + 1);
      for (int64_t i = 0; i < count; ++i) ids.insert(first_id_ - 5 + random_below(rows_ + 10));
      for (int64_t i = 0; b == 1 && max_excluded > 0 && i < rows_; ++i) ids.insert(first_id_ + i);
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
