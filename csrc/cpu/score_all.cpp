// Scores of every item for every query, written out.
#include "cpu/catalog_backward.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

void score_all(const Tables& tables, const float* queries, int64_t batch, float* out,
               int threads) {
  const int64_t parts = catalog_parts(tables, threads);
  auto body = [&](int64_t part) {
    Tile tile(tables);
    const Buffer<float> scores(kQueryRows * kTile);
    const int64_t end = part_begin(tables, part + 1, parts);
    for (int64_t first = part_begin(tables, part, parts); first < end; first += kTile) {
      tile.read(first, least(kTile, end - first));
      for (int64_t b = 0; b < batch; b += kQueryRows) {
        const int64_t count = least(kQueryRows, batch - b);
        tile.score(queries + b * tables.dim, count, scores);
        for (int64_t r = 0; r < count; ++r) {
          copy(out + (b + r) * tables.rows + first, scores + r * kTile, tile.size());
        }
      }
    }
  };
  parallel(parts, threads, body);
}

void score_all_backward(const Tables& tables, const float* queries, int64_t batch,
                        const float* grad, float* grad_queries, float* grad_ids, int threads) {
  catalog_backward(tables, queries, batch, grad_queries, grad_ids, threads,
                   [&](int64_t b, const Tile& tile, const float*, float* c) {
                     copy(c, grad + b * tables.rows + tile.first(), tile.size());
                   });
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
