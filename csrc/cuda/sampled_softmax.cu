// Softmax over a target and negatives: the log-sum-exp of the negatives for each query forward, scores
// computed again backward. The target's part is the caller's: its score is another kernel's.
//
// Scores are written out for as many queries at a time as kStripBytes allow, for the cache to hold, and
// become their own coefficients backward; what is then done with these is as in score_candidates.cu.
// Where lists have fewer than kProductFrom queries those of all queries are written out backward, for
// the gradient of the ID embeddings to be summed from.
//
// Scratch memory: forward kStripBytes; backward that, twice with cosine, or for lists of few queries a
// float for each score, and what score_candidates takes for the gradient of the ID embeddings.
#include "cuda/candidate_lists.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int64_t kStripBytes = kEmulated ? 32 << 10 : 64 << 20;  // of scores
constexpr int kWarps = kThreads / kWarpLanes;

// Queries whose scores are written out at a time.
int64_t queries_at_once(const CandidateLists& lists) {
  const int64_t fitting = kStripBytes / (max(1, lists.k) * int64_t{sizeof(float)});
  return max(1, min(lists.count * lists.rows, fitting));
}

// visit(lists, first): whole lists, or a part of the queries of one, whose first query is `first`.
template <class Visit>
void visit_strips(const CandidateLists& lists, int64_t dim, int64_t at_once, const Visit& visit) {
  const int64_t whole = at_once / max(1, lists.rows);
  for (int64_t first = 0; first < lists.count * lists.rows;) {
    const int64_t list = first / lists.rows, row = first % lists.rows;
    const int64_t count = max(1, min(whole, lists.count - list));
    const int64_t rows = whole > 0 ? lists.rows : min(at_once, lists.rows - row);
    visit(CandidateLists{lists.queries + first * dim, lists.ids + list * lists.k, count, rows,
                         lists.k},
          first);
    first += count * rows;
  }
}

// What is known of the negatives of a strip.
struct Negatives {
  Tables tables;
  CandidateLists lists;
  const int64_t* targets;  // of the strip's queries
  const float* shifts;     // of the items; null: none

  // The score less what is subtracted; -inf of what is no negative of this query.
  __device__ float shifted(int64_t query, int64_t j, float score) const {
    const int64_t id = lists.ids[query / lists.rows * lists.k + j];
    const int64_t row = row_of_id(tables, id);
    if (row < 0 || id == targets[query]) return -INFINITY;
    return shifts == nullptr ? score : score - shifts[row];
  }
};

// A warp for each query: maxima and logs of its sums of exp(score - maximum).
__global__ void __launch_bounds__(kThreads)
    softmax_of_lists_kernel(Negatives negatives, const float* scores, float* maxima, float* logs) {
  const int64_t queries = negatives.lists.count * negatives.lists.rows, k = negatives.lists.k;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  for (int64_t b = int64_t{kWarps} * blockIdx.x + threadIdx.x / kWarpLanes; b < queries;
       b += int64_t{kWarps} * gridDim.x) {
    float maximum = -INFINITY;
    for (int64_t j = lane; j < k; j += kWarpLanes) {
      maximum = fmaxf(maximum, negatives.shifted(b, j, scores[b * k + j]));
    }
    maximum = max_lanes<kWarpLanes>(maximum);
    const float shift = maximum == -INFINITY ? 0.0f : maximum;
    float sum = 0.0f;
    for (int64_t j = lane; j < k; j += kWarpLanes) {
      sum += fast_exp(negatives.shifted(b, j, scores[b * k + j]) - shift);
    }
    sum = sum_lanes<kWarpLanes>(sum);
    if (lane != 0) continue;
    maxima[b] = maximum;
    logs[b] = logf(sum);
  }
}

// coefficients = weight * softmax over the negatives; may be where the scores are. With cosine they
// are not, and scores without coefficient become 0, for what is summed of their products.
__global__ void __launch_bounds__(kThreads)
    coefficients_of_lists_kernel(Negatives negatives, float* scores, const float* maxima,
                                 const float* logs, const float* weights, float* coefficients) {
  const int64_t k = negatives.lists.k, count = negatives.lists.count * negatives.lists.rows * k;
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < count; i += step) {
    const int64_t b = i / k;
    const float weight = weights[b];
    const float shifted = weight == 0.0f ? -INFINITY : negatives.shifted(b, i % k, scores[i]);
    const bool none = shifted == -INFINITY;
    if (none && scores != coefficients) scores[i] = 0.0f;
    coefficients[i] = none ? 0.0f : weight * fast_exp((shifted - maxima[b]) - logs[b]);
  }
}

// grad_queries[b] -= weight * the target's row
__global__ void __launch_bounds__(kThreads)
    subtract_targets_kernel(Tables tables, const int64_t* targets, const float* inverse_norms,
                            const float* weights, int64_t batch, float* grad_queries) {
  const int64_t step = int64_t{kThreads} * gridDim.x, count = batch * tables.dim;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < count; i += step) {
    const int64_t b = i / tables.dim, row = row_of_id(tables, targets[b]);
    const float weight = weights[b];
    if (weight == 0.0f || row < 0) continue;
    const float scale = tables.cosine ? inverse_norms[b] : 1.0f;
    grad_queries[i] -= weight * (scale * fused(tables, row, i % tables.dim));
  }
}

// The gradient of the ID embedding of an entry: of a target, or from `batch` on of a negative.
struct TargetAndNegativeGradients {
  int64_t batch;
  const int64_t* targets;
  const float *queries, *weights, *scores;
  const float* inverse_norms;  // of the targets, with cosine
  EntryGradients negatives;

  __device__ void read(int64_t entry, int64_t column, float (&values)[kColsOfLane]) const {
    if (entry >= batch) return negatives.read(entry - batch, column, values);
    const Tables& tables = negatives.tables;
    const float weight = weights[entry];
    const float* const query = queries + entry * tables.dim + tables.null_offset;
#pragma unroll
    for (int j = 0; j < kColsOfLane; ++j) {
      values[j] = column + j < tables.id.cols ? -weight * query[column + j] : 0.0f;
    }
    if (tables.cosine) {
      through_norm(tables, targets[entry], inverse_norms[entry], -weight * scores[entry], column,
                   values);
    }
  }
};

}  // namespace

void sampled_log_sum_exp(const Tables& tables,
                         Array<const float, kLists, kListQueries, kDim> queries,
                         Array<const int64_t, kLists, kListQueries> targets,
                         Array<const int64_t, kLists, kCandidates> negatives,
                         Optional<Array<const float, kItems>> shifts,
                         Array<float, kLists, kListQueries> maxima,
                         Array<float, kLists, kListQueries> logs, Launch& launch) {
  const char* const op = "sampled_log_sum_exp";
  const CandidateLists lists{queries, negatives, queries.size[0], queries.size[1],
                             negatives.size[1]};
  const int64_t at_once = queries_at_once(lists);
  auto* const scores = launch.scratch<float>(at_once * lists.k);
  if (launch.measuring()) return;
  visit_strips(lists, tables.dim, at_once, [&](const CandidateLists& strip, int64_t first) {
    enqueue_list_scores(launch, op, tables, strip, scores);
    enqueue(launch, op, softmax_of_lists_kernel, grid_of(strip.count * strip.rows, kWarps),
            kThreads, 0, Negatives{tables, strip, targets + first, shifts}, scores, maxima + first,
            logs + first);
  });
}

void sampled_softmax_backward(
    const Tables& tables, Array<const float, kLists, kListQueries, kDim> queries,
    Array<const int64_t, kCount> ids, Optional<Array<const float, kItems>> shifts,
    Array<const float, kLists, kListQueries> scores,
    Array<const float, kLists, kListQueries> maxima, Array<const float, kLists, kListQueries> logs,
    Array<const float, kLists, kListQueries> weights, const Groups& groups,
    Optional<Array<float, kLists, kListQueries, kDim>> grad_queries,
    Optional<Array<float, kGradRows, kNullDim>> grad_ids, Launch& launch) {
  const char* const op = "sampled_softmax_backward";
  const int64_t count = queries.size[0], rows = queries.size[1], batch = count * rows;
  const int64_t k = count == 0 ? 0 : (ids.size[0] - batch) / count;
  const int64_t cols = tables.id.cols, entries = count * k;
  const CandidateLists lists{queries, ids + batch, count, rows, k};
  const bool of_ids = grad_ids != nullptr, by_products = of_ids && rows >= kProductFrom;
  const bool written_out = of_ids && !by_products;
  const int64_t at_once = written_out ? max(1, batch) : queries_at_once(lists);
  // Of a strip: as many lists, or as many queries of one.
  ProductPlan plan =
      plan_grad_entries(launch, tables, max(1, at_once / max(1, rows)), min(rows, at_once), k);

  const float* const inverse_norms =
      scratch_candidate_norms(launch, op, tables, ids, batch + entries);
  auto* const of_strip = launch.scratch<float>(at_once * k);
  auto* const coefficients = tables.cosine ? launch.scratch<float>(at_once * k) : of_strip;
  auto* const partial = launch.scratch<float>(of_ids ? scratch_of_sums(groups, cols) : 0);
  auto* const sums = launch.scratch<float>(by_products ? entries * cols : 0);
  auto* const sums_partial = launch.scratch<float>(by_products ? plan.partial() : 0);
  const bool needs_along = by_products && tables.cosine;
  auto* const along = launch.scratch<float>(needs_along ? entries : 0);
  const CandidateLists longest{nullptr, nullptr, max(1, at_once / max(1, rows)), min(rows, at_once),
                               k};
  auto* const along_parts = launch.scratch<float>(needs_along ? along_partial(longest) : 0);
  if (launch.measuring()) return;

  const float* const of_negatives = tables.cosine ? inverse_norms + batch : nullptr;
  visit_strips(lists, tables.dim, at_once, [&](const CandidateLists& strip, int64_t first) {
    const int64_t entry = strip.ids - lists.ids;
    enqueue_list_scores(launch, op, tables, strip, of_strip);
    enqueue(launch, op, coefficients_of_lists_kernel, grid_of(strip.count * strip.rows * k),
            kThreads, 0, Negatives{tables, strip, ids + first, shifts}, of_strip, maxima + first,
            logs + first, weights + first, coefficients);
    if (grad_queries != nullptr) {
      enqueue_list_grad_queries(launch, op, tables, strip,
                                tables.cosine ? of_negatives + entry : nullptr, coefficients,
                                grad_queries + first * tables.dim);
    }
    if (!by_products) return;
    const bool more = first % rows != 0;  // of a list that has begun in another strip
    plan.lists = strip.count;
    plan.depth = strip.rows;
    enqueue_grad_entries(launch, op, plan, tables, {coefficients, DType::kFloat32, k},
                         strip.queries, sums_partial, more, sums + entry * cols);
    if (needs_along) {
      enqueue_list_along(launch, op, strip, coefficients, of_strip, along_parts, more,
                         along + entry);
    }
  });
  if (grad_queries != nullptr && batch > 0) {
    enqueue(launch, op, subtract_targets_kernel, grid_of(batch * tables.dim), kThreads, 0, tables,
            ids, inverse_norms, weights, batch, grad_queries);
  }
  if (!of_ids) return;
  const EntryGradients negatives{
      tables, lists, coefficients, of_strip, by_products ? sums : nullptr, along, of_negatives};
  enqueue_sums(
      launch, op, groups,
      TargetAndNegativeGradients{batch, ids, queries, weights, scores, inverse_norms, negatives},
      cols, partial, grad_ids);
}

}  // namespace cuda
}  // namespace alphafuse
