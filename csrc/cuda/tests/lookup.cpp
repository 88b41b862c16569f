// lookup, its gradient, the grouping of ids and the check of their range, against plain loops.
#include <algorithm>
#include <stdexcept>

#include "cuda/ids.h"
#include "cuda/tests/on_device.h"
#include "tests/checks.h"

namespace alphafuse {
namespace tests {
namespace {

using Ids = std::vector<int64_t>;

void check_lookup(const Case& c, DType out_dtype) {
  const Problem problem(c);
  const int64_t dim = problem.tables.dim;
  Ids ids;  // of this part of the catalog, its padding, and of others
  for (int64_t i = 0; i < c.batch; ++i) ids.push_back(c.first_id - 2 + random_below(c.rows + 4));
  Matrix out(c.batch, dim, out_dtype);
  out.forget();
  run(Precision::kFloat32, [&](OnDevice& on) {
    FloatArray<void, kCount, kDim> to{out.data(), {c.batch, dim}, out_dtype};
    cuda::lookup(on(problem.tables), on(array<const int64_t, kCount>(ids.data(), c.batch)), on(to),
                 on);
  });
  bool good = true;
  for (int64_t i = 0; i < c.batch; ++i) {
    const int64_t row = ids[static_cast<std::size_t>(i)] - c.first_id;
    const bool there = row >= 0 && row < c.rows;
    for (int64_t d = 0; d < dim; ++d) {
      // A sum of two values in float32, rounded once.
      Matrix expected(1, 1, out_dtype);
      expected.set(0, 0, there ? static_cast<float>(problem.row(row, d)) : 0.0f);
      good = good && out.at(i, d) == expected.at(0, 0);
    }
  }
  expect(good, "lookup: " + c.name());
}

struct Grouped {
  Ids rows, entries;
};

Grouped group(const Ids& ids, int64_t max_id) {
  const auto count = static_cast<int64_t>(ids.size());
  Grouped grouped{Ids(ids.size(), -9), Ids(ids.size(), -9)};
  run(Precision::kFloat32, [&](OnDevice& on) {
    cuda::group_ids(on(array<const int64_t, kCount>(ids.data(), count)), max_id,
                    on(array<int64_t, kCount>(grouped.rows.data(), count)),
                    on(array<int64_t, kCount>(grouped.entries.data(), count)), on);
  });
  return grouped;
}

void check_groups(const Ids& ids, int64_t max_id) {
  const Grouped grouped = group(ids, max_id);
  Ids order(ids.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return ids[static_cast<std::size_t>(a)] < ids[static_cast<std::size_t>(b)];
  });
  bool good = grouped.entries == order;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    good = good && grouped.rows[i] == ids[static_cast<std::size_t>(order[i])];
  }
  expect(good, "group_ids of " + std::to_string(ids.size()));
}

void check_backward(const Ids& ids, int64_t rows, int64_t dim, int64_t cols, DType dtype) {
  const auto count = static_cast<int64_t>(ids.size());
  const Grouped grouped = group(ids, rows);
  const Matrix grad(count, dim, dtype);
  Matrix out(rows, cols, DType::kFloat32);
  std::vector<double> expected(static_cast<std::size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) out.set(r, c, 0.0f);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = ids[static_cast<std::size_t>(i)];
    for (int64_t c = 0; c < cols && row < rows; ++c) {
      expected[static_cast<std::size_t>(row * cols + c)] += grad.at(i, dim - cols + c);
    }
  }
  run(Precision::kFloat32, [&](OnDevice& on) {
    const FloatArray<const void, kCount, kDim> from{grad.data(), {count, dim}, dtype};
    const cuda::Groups groups{count, grouped.rows.data(), grouped.entries.data(), rows};
    cuda::lookup_backward(on(from), on(groups),
                          on(array<float, kGradRows, kNullDim>(out.floats(), rows, cols)), on);
  });
  const double error = worst_error(out.floats(), expected, expected.size());
  expect(error < 1e-6, "lookup_backward of " + std::to_string(count) + " ids, " +
                           std::to_string(cols) + " of " + std::to_string(dim) +
                           " columns: error " + std::to_string(error));
}

Ids random_ids(int64_t count, int64_t rows, int64_t often) {
  Ids ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(random_below(3) == 0 ? random_below(rows + 1) : often);
  }
  return ids;
}

void check_range() {
  const Ids ids = {0, 4, 5, 7, 2};
  const auto check = [&](int64_t min_id, int64_t max_id) {
    run(Precision::kFloat32, [&](OnDevice& on) {
      cuda::check_ids("ids", on(array<const int64_t, kCount>(ids.data(), int64_t{5})), min_id,
                      max_id, on);
    });
  };
  check(0, 7);
  std::string message;
  try {
    check(0, 6);
  } catch (const std::exception& error) {
    message = error.what();
  }
  // A GPU prints which id, and is of no use to this program afterwards.
  const std::string expected = "ids: got 7 at position 3; expected 0 <= id <= 6";
  expect(kOnGpu ? !message.empty() : message == expected, "check_ids: " + message);
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse;
  using namespace alphafuse::tests;
  const DType types[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  for (const DType type : types) {
    for (const bool add : {false, true}) {
      for (const DType other : types) check_lookup({40, 30, 24, 16, other, type, add}, type);
      check_lookup({0, 9, 24, 16, type, type, add}, type);
      check_lookup({70, 9, 3, 2, type, type, add, false, 1, 1, 5}, type);
      check_lookup({5, 9, 300, 70, type, type, add, false, 2, 0, 100}, type);
      check_lookup({9, 1, 17, 17, type, type, add}, type);
      check_lookup({9, 12, 0, 17, type, type, add}, type);
      check_lookup({9, 12, 33, 0, type, type, add}, type);
    }
    for (const int64_t count : {0, 1, 31, 32, 33, 64, 200, 1000}) {
      for (const auto& [dim, cols] : {std::pair<int64_t, int64_t>{7, 3}, {64, 32}, {150, 150}}) {
        check_backward(random_ids(count, 40, 17), 40, dim, cols, type);
        check_backward(random_ids(count, 40, 40), 40, dim, cols, type);  // mostly padding
        check_backward(random_ids(count, 5000, 0), 5000, dim, cols, type);
      }
    }
  }
  for (const int64_t count : {0, 1, 2, 500}) {
    for (const int64_t max_id : {0, 1, 255, 256, 100000}) {
      check_groups(random_ids(count, max_id, max_id), max_id);
    }
  }
  check_range();  // at the end: see there
  return report();
}
