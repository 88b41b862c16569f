// Each query's score with its own target: bitwise what the tiles of the catalog give for it.
#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

void target_scores(const Tables& tables, Array<const float, kBatch, kDim> queries,
                   Array<const int64_t, kBatch> targets, Array<float, kBatch> out,
                   Workers workers) {
  const int64_t batch = queries.size[0];
  in_precision(workers.precision, queries, batch, tables.dim, [&](const auto* operand) {
    using T = Element<decltype(operand)>;
    auto body = [&](int64_t task) {
      const int64_t first = task * kWidth, count = min(kWidth, batch - first);
      Tile<T> tile(tables, kWidth, false);
      float scores[kWidth * kWidth];
      tile.gather(targets + first, count);
      tile.score(operand + first * steps<T>(tables.dim), count, scores, kWidth);
      for (int64_t b = 0; b < count; ++b) {
        out[first + b] = tile.has(targets[first + b]) ? scores[b * kWidth + b] : -__builtin_inff();
      }
    };
    const int threads = threads_for(batch * kWidth * tables.dim, workers.threads);
    parallel(ceil_div(batch, kWidth), threads, body);
  });
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
