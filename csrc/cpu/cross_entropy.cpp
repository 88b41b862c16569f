// Softmax cross entropy over the whole catalog: a running (maximum, sum of exponentials) for each
// query forward, scores computed again backward.
#include "cpu/catalog_backward.h"
#include "cpu/kernels.h"
#include "cpu/softmax.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

void log_sum_exp(const Tables& tables, Array<const float, kBatch, kDim> queries,
                 Array<float, kBatch> maxima, Array<float, kBatch> logs, Workers workers) {
  const int64_t batch = queries.size[0];
  const int64_t parts = parts_for_sums(tables);
  const Buffer<Softmax> partial(parts * batch);
  in_precision(workers.precision, queries, batch, tables.dim, [&](const auto* operand) {
    auto body = [&](int64_t part) {
      Softmax* sums = partial + part * batch;
      for (int64_t b = 0; b < batch; ++b) sums[b] = {-__builtin_inff(), 0.0};
      scan(tables, operand, batch, part, parts,
           [&](int64_t b, const float* scores, int64_t, int64_t count) {
             add_row(sums[b], scores, padded(count));
           });
    };
    parallel(parts, threads_for_scan(tables, batch, workers.threads), body);
  });

  for (int64_t b = 0; b < batch; ++b) {
    Softmax total = partial[b];
    for (int64_t part = 1; part < parts; ++part) {
      add(total, partial[part * batch + b].maximum, partial[part * batch + b].sum);
    }
    maxima[b] = total.maximum;
    logs[b] = log_of(total);
  }
}

void cross_entropy_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                            Array<const int64_t, kBatch> targets, Array<const float, kBatch> maxima,
                            Array<const float, kBatch> logs, Array<const float, kBatch> weights,
                            Optional<Array<float, kBatch, kDim>> grad_queries,
                            Optional<Array<float, kItems, kNullDim>> grad_ids, Workers workers) {
  // d loss / d score = weight * (softmax - [item is the target])
  catalog_backward(tables, queries, queries.size[0], grad_queries, grad_ids, workers,
                   [&](int64_t b, const float* scores, int64_t first, int64_t count, float* c) {
                     const float weight = weights[b];
                     if (weight == 0.0f) return clear(c, padded(count));
                     for (int64_t i = 0; i < count; i += kLanes) {
                       store(c + i, weight * exp((load(scores + i) - maxima[b]) - logs[b]));
                     }
                     const int64_t target = targets[b] - tables.first_id - first;
                     if (target >= 0 && target < count) c[target] -= weight;
                   });
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
