#include "cpu/strips.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

void score_strips(const Tables& tables, int64_t first, int64_t count, const float* queries,
                  int64_t batch, float* scores, int64_t stride) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const Strip strip = strip_from(tables, first + i);
    const Strip next = strip_from(tables, first + i + kAhead);
    Vec sums[kPackedFrom - 1][2];
    if (batch == kPackedFrom - 1) {
      score_strip<kPackedFrom - 1>(tables, strip, next, queries, sums);
    } else {
      for (int64_t b = 0; b < batch; ++b) {
        score_strip<1>(tables, strip, next, queries + b * tables.dim, sums + b);
      }
    }
    for (int64_t b = 0; b < batch; ++b) {
      store(scores + b * stride + i, sums[b][0]);
      store(scores + b * stride + i + kLanes, sums[b][1]);
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = count; i < padded(count); ++i) scores[b * stride + i] = -__builtin_inff();
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
