// Tables whose rows lie so far apart that the last ones begin beyond element 2^31: every kernel reads
// there what it reads of the same rows side by side, bit for bit.
#include <sys/mman.h>

#include "cuda/tests/on_device.h"
#include "tests/checks.h"

namespace alphafuse {
namespace tests {
namespace {

constexpr int64_t kRows = 150, kStride = (int64_t{1} << 24) + 64;
static_assert(kRows * kStride > int64_t{1} << 31, "beyond what 32 bits count");

// A copy of a matrix, its rows far apart; what lies between them takes no memory.
class FarRows {
 public:
  explicit FarRows(const Matrix& near)
      : bytes_(static_cast<std::size_t>(kRows * kStride) * bytes_of(near.dtype())),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
        table_{data_, near.dtype(), kStride, near.cols()} {
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    for (int64_t r = 0; r < near.rows(); ++r) {
      for (int64_t c = 0; c < near.cols(); ++c) {
        write(data_, near.dtype(), r * kStride + c, static_cast<float>(near.at(r, c)));
      }
    }
  }
  ~FarRows() { munmap(data_, bytes_); }
  FarRows(const FarRows&) = delete;
  FarRows& operator=(const FarRows&) = delete;
  const Table& table() const { return table_; }

 private:
  std::size_t bytes_;
  void* data_;
  Table table_;
};

using Floats = std::vector<float>;
using Ids = std::vector<int64_t>;

// What all kernels make of some tables, end to end.
Floats results(const Tables& tables, const Matrix& queries, const Matrix& grad, const Ids& ids,
               Precision precision) {
  const int64_t batch = queries.rows(), dim = tables.dim, cols = tables.id.cols, k = 7;
  Floats all;
  const auto keep = [&](const auto& values) {
    all.insert(all.end(), values.begin(), values.end());
  };
  const auto floats = [](int64_t count) { return Floats(static_cast<std::size_t>(count), NAN); };
  const auto of_queries = array<const float, kBatch, kDim>(queries.floats(), batch, dim);
  const auto of_targets = array<const int64_t, kBatch>(ids.data(), batch);

  Floats scores = floats(batch * kRows);
  run(precision, [&](OnDevice& on) {
    cuda::score_all(tables, of_queries, scores_array(scores.data(), batch, kRows), on);
  });
  keep(scores);
  Floats to_queries = floats(batch * dim), to_ids = floats(kRows * cols);
  run(precision, [&](OnDevice& on) {
    cuda::score_all_backward(tables, of_queries, gradients_array(grad.floats(), batch, kRows),
                             optional<float, kBatch, kDim>(to_queries.data(), batch, dim),
                             optional<float, kItems, kNullDim>(to_ids.data(), kRows, cols), on);
  });
  keep(to_queries);
  keep(to_ids);
  Floats of_target = floats(batch), maxima = floats(batch), logs = floats(batch);
  run(precision, [&](OnDevice& on) {
    cuda::target_scores(tables, of_queries, of_targets,
                        array<float, kBatch>(of_target.data(), batch), on);
  });
  keep(of_target);
  run(precision, [&](OnDevice& on) {
    cuda::log_sum_exp(tables, of_queries, array<float, kBatch>(maxima.data(), batch),
                      array<float, kBatch>(logs.data(), batch), on);
  });
  keep(maxima);
  const Floats weights(static_cast<std::size_t>(batch), 1.0f);
  to_queries = floats(batch * dim), to_ids = floats(kRows * cols);
  run(precision, [&](OnDevice& on) {
    cuda::cross_entropy_backward(tables, of_queries, of_targets,
                                 array<const float, kBatch>(maxima.data(), batch),
                                 array<const float, kBatch>(logs.data(), batch),
                                 array<const float, kBatch>(weights.data(), batch),
                                 optional<float, kBatch, kDim>(to_queries.data(), batch, dim),
                                 optional<float, kItems, kNullDim>(to_ids.data(), kRows, cols), on);
  });
  keep(to_queries);
  keep(to_ids);
  Floats rows = floats(batch * dim);
  run(precision, [&](OnDevice& on) {
    FloatArray<void, kCount, kDim> to{rows.data(), {batch, dim}, DType::kFloat32};
    cuda::lookup(tables, array<const int64_t, kCount>(ids.data(), batch), to, on);
  });
  keep(rows);
  Floats of_candidates = floats(batch * batch);
  run(precision, [&](OnDevice& on) {
    cuda::score_candidates(
        tables, array<const float, kLists, kListQueries, kDim>(queries.floats(), 1, batch, dim),
        array<const int64_t, kLists, kCandidates>(ids.data(), 1, batch),
        array<float, kLists, kListQueries, kCandidates>(of_candidates.data(), 1, batch, batch), on);
  });
  keep(of_candidates);
  if (precision == Precision::kTF32) return all;  // never for an order
  Floats best = floats(batch * k);
  Ids found(static_cast<std::size_t>(batch * k)), ranks(static_cast<std::size_t>(batch));
  run(precision, [&](OnDevice& on) {
    cuda::topk(tables, of_queries, {nullptr, nullptr}, nullptr,
               array<float, kBatch, kPlaces>(best.data(), batch, k),
               array<int64_t, kBatch, kPlaces>(found.data(), batch, k), on);
  });
  keep(best);
  keep(found);
  run(precision, [&](OnDevice& on) {
    cuda::target_ranks(tables, of_queries, of_targets,
                       array<const float, kBatch>(of_target.data(), batch), {nullptr, nullptr},
                       nullptr, array<int64_t, kBatch>(ranks.data(), batch), on);
  });
  keep(ranks);
  return all;
}

void check(const Case& c, Precision precision) {
  const Problem problem(c);
  const FarRows semantic(problem.semantic), id(problem.id);
  const Tables far = make_tables(semantic.table(), id.table(), c.rows, 0, c.add, c.cosine);
  const Matrix queries(c.batch, far.dim, DType::kFloat32);
  const Matrix grad(c.batch, c.rows, DType::kFloat32);
  Ids ids;
  for (int64_t b = 0; b < c.batch; ++b) ids.push_back(b % 2 == 0 ? c.rows - 1 - b : b);
  const Floats near = results(problem.tables, queries, grad, ids, precision);
  const Floats got = results(far, queries, grad, ids, precision);
  expect(std::memcmp(near.data(), got.data(), near.size() * sizeof(float)) == 0,
         "rows far apart: " + c.name() + ", " + name_of(precision));
}

}  // namespace
}  // namespace tests
}  // namespace alphafuse

int main() {
  using namespace alphafuse;
  using namespace alphafuse::tests;
  const DType f32 = DType::kFloat32, bf16 = DType::kBFloat16;
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16, Precision::kTF32}) {
    for (const bool cosine : {false, true}) {
      check({18, kRows, 24, 16, f32, f32, false, cosine}, precision);
      check({3, kRows, 24, 16, bf16, bf16, false, cosine}, precision);
      check({18, kRows, 24, 16, bf16, f32, true, cosine}, precision);
    }
  }
  return report();
}
