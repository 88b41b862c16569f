// Scores of every item for every query, written out.
#include "cpu/catalog_backward.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

void score_all(const Tables& tables, Array<const float, kBatch, kDim> queries,
               FloatArray<void, kBatch, kItems> out, Workers workers) {
  const int64_t batch = queries.size[0];
  const int threads = threads_for_scan(tables, batch, workers.threads);
  const int64_t parts = parts_for_threads(tables, threads);
  in_precision(workers.precision, queries, batch, tables.dim, [&](const auto* operand) {
    auto body = [&](int64_t part) {
      scan(tables, operand, batch, part, parts,
           [&](int64_t b, const float* scores, int64_t first, int64_t count) {
             narrow(scores, count, out, out.dtype, b * tables.rows + first);
           });
    };
    parallel(parts, threads, body);
  });
}

void score_all_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                        FloatArray<const void, kBatch, kItems> grad,
                        Optional<Array<float, kBatch, kDim>> grad_queries,
                        Optional<Array<float, kItems, kNullDim>> grad_ids, Workers workers) {
  catalog_backward(tables, queries, queries.size[0], grad_queries, grad_ids, workers,
                   [&](int64_t b, const float*, int64_t first, int64_t count, float* c) {
                     widen(grad, grad.dtype, b * tables.rows + first, count, c, false);
                   });
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
