// Scores of every item for every query, written out, and their gradients.
//
// Scratch memory: with cosine, rows floats, and backward with gradients of the ID embeddings
// (1 + ceil(batch / 128)) * rows more (batch up to 16: 2 * rows); backward, the parts of the two
// products (product.cuh).
#include "cuda/kernels.h"
#include "cuda/norms.cuh"
#include "cuda/product.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

template <class Tile>
struct WriteScores {
  struct Arguments {
    float* out;  // (batch, rows)
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena&, const Arguments&) {}
  };

  __device__ WriteScores(const Arguments& arguments, const Shared&) : out(arguments.out) {}
  __device__ void begin(const Unit&) {}
  __device__ void end(const Unit&) {}

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      float* const row = out + (unit.first_query + Tile::row(r)) * unit.rows + scores.first_item;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (scores.is_item(c)) row[Tile::col(c)] = scores.at[r][c];
      }
    }
  }

  float* out;
};

// Each item's sum over queries of gradient * score: how far the gradient of its row, divided by its
// norm, lies along the row.
template <class Tile>
struct Along {
  struct Arguments {
    const float* grad;  // (batch, rows)
    float* out;         // (tiles of queries, rows)
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena& arena, const Arguments&) : sums(arena) {}
    ColumnSums<Tile> sums;
  };

  __device__ Along(const Arguments& arguments, const Shared& shared)
      : grad(arguments.grad), out(arguments.out), column_sums(shared.sums) {}
  __device__ void begin(const Unit&) {}
  __device__ void end(const Unit&) {}

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
    float sums[Tile::kCols] = {};
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      const float* const row =
          grad + (unit.first_query + Tile::row(r)) * unit.rows + scores.first_item;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (scores.is_item(c)) sums[c] = fmaf(row[Tile::col(c)], scores.at[r][c], sums[c]);
      }
    }
    column_sums.write(sums, scores.items,
                      out + unit.first_query / Tile::kQueries * unit.rows + scores.first_item);
  }

  const float* grad;
  float* out;
  ColumnSums<Tile> column_sums;
};

}  // namespace

void score_all(const Tables& tables, Array<const float, kBatch, kDim> queries,
               Array<float, kBatch, kItems> out, Launch& launch) {
  const int64_t batch = queries.size[0];
  const float* const inverse_norms = scratch_inverse_norms(launch, "score_all", tables);
  if (launch.measuring()) return;
  with_tile<false>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
    scan.parts = parts_for<Tile>(launch, scan);
    enqueue_scan<WriteScores, Tile>(launch, "score_all", scan, {out});
  });
}

void score_all_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                        Array<const float, kBatch, kItems> grad,
                        Optional<Array<float, kBatch, kDim>> grad_queries,
                        Optional<Array<float, kItems, kNullDim>> grad_ids, Launch& launch) {
  const char* const op = "score_all_backward";
  const int64_t batch = queries.size[0], rows = tables.rows;
  const Coefficients coefficients{grad, DType::kFloat32, rows};
  const float* const inverse_norms = scratch_inverse_norms(launch, op, tables);
  if (grad_queries != nullptr) {
    const ProductPlan plan = plan_grad_queries(launch, tables, batch);
    auto* const partial = launch.scratch<float>(plan.partial());
    if (!launch.measuring()) {
      enqueue_grad_queries(launch, op, plan, tables, coefficients, inverse_norms, partial, false,
                           grad_queries);
    }
  }
  if (grad_ids != nullptr) {
    const ProductPlan plan = plan_grad_ids(launch, tables, batch);
    auto* const partial = launch.scratch<float>(plan.partial());
    float* along = nullptr;
    if (tables.cosine) {
      along = launch.scratch<float>(rows);
      with_tile<false>(launch, batch, [&](auto tile) {
        using Tile = decltype(tile);
        Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
        auto* const of_tiles = launch.scratch<float>(scan.query_tiles * rows);
        if (launch.measuring()) return;
        scan.parts = parts_for<Tile>(launch, scan);
        enqueue_scan<Along, Tile>(launch, op, scan, {grad, of_tiles});
        enqueue_sum_parts(launch, op, of_tiles, scan.query_tiles, rows, false, along);
      });
    }
    if (!launch.measuring()) {
      enqueue_grad_ids(launch, op, plan, tables, coefficients, queries, inverse_norms, along,
                       partial, grad_ids);
    }
  }
}

}  // namespace cuda
}  // namespace alphafuse
