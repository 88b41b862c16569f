// Gradients of scores are two products with their coefficients C (batch, items), one for each score:
//
//   gradient of the queries       C T          sums over items; T are the fused rows
//   gradient of the ID embeddings C^T Q        sums over queries; Q are the queries' null columns
//
// C may be that of a part of the catalog, to bound the memory it takes; the gradients of the queries
// of the parts are then added up. Every sum is in a fixed order, without atomics.
#pragma once

#include "cuda/rows.cuh"

namespace alphafuse {
namespace cuda {

struct Coefficients {
  const void* data;  // (batch, items)
  DType dtype;
  int64_t stride;  // elements from one query to the next
};

// A product is cut into parts along what is summed over, so that there is work for the whole device:
// each part's result goes to scratch memory, and a second kernel adds these up.
struct ProductPlan {
  int64_t rows, cols, depth, parts;
  int64_t lists = 1;  // products of the same sizes, of factors that lie end to end

  int64_t partial() const {
    return parts > 1 ? parts * lists * rows * cols : 0;
  }  // floats of scratch memory
};

// out (count,) = the sum of partial (parts, count) in the order of the parts, or that added to it.
void enqueue_sum_parts(Launch& launch, const char* op, const float* partial, int64_t parts,
                       int64_t count, bool accumulate, float* out);

ProductPlan plan_grad_queries(const Launch& launch, const Tables& tables, int64_t batch);
ProductPlan plan_grad_ids(const Launch& launch, const Tables& tables, int64_t batch);

// out (batch, dim), added to if `accumulate`. Where `inverse_norms` is not null the rows of T are
// divided by their norms.
void enqueue_grad_queries(Launch& launch, const char* op, const ProductPlan& plan,
                          const Tables& tables, const Coefficients& coefficients,
                          const float* inverse_norms, float* partial, bool accumulate, float* out);

// out (rows, id.cols), through the norms where `inverse_norms` is not null.
void enqueue_grad_ids(Launch& launch, const char* op, const ProductPlan& plan, const Tables& tables,
                      const Coefficients& coefficients, const float* queries,
                      const float* inverse_norms, const float* along, float* partial, float* out);

// The same for lists of candidates, each with as many queries: C (lists * queries, candidates), and
// out (lists * candidates, id.cols), of rows divided by their norms if those are; added to if
// `accumulate`.
ProductPlan plan_grad_entries(const Launch& launch, const Tables& tables, int64_t lists,
                              int64_t queries, int64_t candidates);
void enqueue_grad_entries(Launch& launch, const char* op, const ProductPlan& plan,
                          const Tables& tables, const Coefficients& coefficients,
                          const float* queries, float* partial, bool accumulate, float* out);

// With cosine a row enters as t = v / |v|. From the gradient g of t in its null columns, out (rows,
// id.cols), to that of v: (g - (g . t) t) / |v|, where g . t = sum over queries of coefficient *
// score: `along` (rows,). A clamped norm is a constant, and has no second term.
void enqueue_through_norms(Launch& launch, const char* op, const Tables& tables,
                           const float* inverse_norms, const float* along, float* out);

}  // namespace cuda
}  // namespace alphafuse
