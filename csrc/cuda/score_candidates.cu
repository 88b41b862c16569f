// Scores of given candidates, and their gradients.
//
// Bytes: every candidate's row once for each kWarpQueries of its queries (neighbours find it in the
// cache), queries and results once. FLOPs: 2 * queries * candidates * dim forward and again for each
// gradient, that of the ID embeddings for the null columns only. Scratch memory: backward, with
// cosine a float for each candidate; for the ID embeddings that of grouping.cuh and, for lists of
// kProductFrom queries or more, a row of null columns for each candidate, once for each part of the
// product.
#include "cuda/candidate_lists.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {

void score_candidates(const Tables& tables, Array<const float, kLists, kListQueries, kDim> queries,
                      Array<const int64_t, kLists, kCandidates> candidates,
                      Array<float, kLists, kListQueries, kCandidates> out, Launch& launch) {
  if (launch.measuring()) return;
  const CandidateLists lists{queries, candidates, out.size[0], out.size[1], out.size[2]};
  enqueue_list_scores(launch, "score_candidates", tables, lists, out);
}

void score_candidates_grad_queries(const Tables& tables,
                                   Array<const int64_t, kLists, kCandidates> candidates,
                                   Array<const float, kLists, kListQueries, kCandidates> grad,
                                   Array<float, kLists, kListQueries, kDim> grad_queries,
                                   Launch& launch) {
  const char* const op = "score_candidates_grad_queries";
  const CandidateLists lists{nullptr, candidates, grad.size[0], grad.size[1], grad.size[2]};
  const float* const inverse_norms =
      scratch_candidate_norms(launch, op, tables, candidates, lists.count * lists.k);
  if (launch.measuring()) return;
  enqueue_list_grad_queries(launch, op, tables, lists, inverse_norms, grad, grad_queries);
}

void score_candidates_grad_ids(const Tables& tables,
                               Array<const float, kLists, kListQueries, kDim> queries,
                               Array<const int64_t, kLists, kCandidates> candidates,
                               Array<const float, kLists, kListQueries, kCandidates> scores,
                               Array<const float, kLists, kListQueries, kCandidates> grad,
                               const Groups& groups, Array<float, kGradRows, kNullDim> out,
                               Launch& launch) {
  const char* const op = "score_candidates_grad_ids";
  const CandidateLists lists{queries, candidates, grad.size[0], grad.size[1], grad.size[2]};
  const int64_t entries = lists.count * lists.k, cols = out.size[1];
  const bool by_products = lists.rows >= kProductFrom;
  const ProductPlan plan = plan_grad_entries(launch, tables, lists.count, lists.rows, lists.k);
  const float* const inverse_norms =
      scratch_candidate_norms(launch, op, tables, candidates, entries);
  auto* const partial = launch.scratch<float>(scratch_of_sums(groups, cols));
  auto* const sums = launch.scratch<float>(by_products ? entries * cols : 0);
  auto* const sums_partial = launch.scratch<float>(by_products ? plan.partial() : 0);
  const bool needs_along = by_products && tables.cosine;
  auto* const along = launch.scratch<float>(needs_along ? entries : 0);
  auto* const along_parts = launch.scratch<float>(needs_along ? along_partial(lists) : 0);
  if (launch.measuring()) return;
  if (by_products) {
    enqueue_grad_entries(launch, op, plan, tables, {grad, DType::kFloat32, lists.k}, queries,
                         sums_partial, false, sums);
  }
  if (needs_along) enqueue_list_along(launch, op, lists, grad, scores, along_parts, false, along);
  const EntryGradients source{tables, lists,        grad, scores, by_products ? sums : nullptr,
                              along,  inverse_norms};
  enqueue_sums(launch, op, groups, source, cols, partial, out);
}

}  // namespace cuda
}  // namespace alphafuse
