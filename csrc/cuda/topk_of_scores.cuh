// topk of small catalogs: of the scores of some queries at a time; see topk_of_scores.cu.
#pragma once

#include "cuda/best_keys.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {

// From here on thresholds pay. NOT MEASURED, nothing here having run on a GPU: what the authors of
// LiteTopK report, who are ahead of a product and a selection from about so many candidates on. In the
// emulator between the sizes that tests have.
constexpr int64_t kMinFusedItems = kEmulated ? 400 : 100'000;
// Another number of items, to measure both ways at one size.
int64_t& min_fused_items();

void topk_of_scores(const Tables& tables, const float* queries, int64_t batch,
                    const ExcludedIds& exclude, const float* inverse_norms, const Best& best,
                    Launch& launch);

}  // namespace cuda
}  // namespace alphafuse
