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

template <class Out>
struct alignas(2 * sizeof(Out)) Pair {
  Out first, second;
};

template <class Tile>
struct WriteScores {
  struct Arguments {
    void* out;  // (batch, rows)
    DType dtype;
    bool by_pairs;  // every row begins where a pair may: two neighbours are one store
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena&, const Arguments&) {}
  };

  __device__ WriteScores(const Arguments& given, const Shared&) : arguments(given) {}
  __device__ void begin(const Unit&) {}
  __device__ void end(const Unit&) {}

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
    switch (arguments.dtype) {
      case DType::kBFloat16:
        return write<__nv_bfloat16>(unit, scores);
      case DType::kFloat16:
        return write<__half>(unit, scores);
      default:
        return write<float>(unit, scores);
    }
  }

  template <class Out>
  __device__ void write(const Unit& unit, const Scores<Tile>& scores) const {
    constexpr int kNeighbours = Tile::kTensorCores ? 2 : 1;  // of a thread's columns
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      Out* const row = static_cast<Out*>(arguments.out) +
                       (unit.first_query + Tile::row(r)) * unit.rows + scores.first_item;
#pragma unroll
      for (int c = 0; c < Tile::kCols; c += kNeighbours) {
        if (!scores.is_item(c)) continue;
        Out* const to = row + Tile::col(c);
        const Out first = from_float<Out>(scores.at[r][c]);
        if constexpr (kNeighbours == 2) {
          const Out second = from_float<Out>(scores.at[r][c + 1]);
          if (arguments.by_pairs) {
            *reinterpret_cast<Pair<Out>*>(to) = {first, second};
            continue;
          }
          if (scores.is_item(c + 1)) to[1] = second;
        }
        to[0] = first;
      }
    }
  }

  Arguments arguments;
};

// Each item's sum over queries of gradient * score: how far the gradient of its row, divided by its
// norm, lies along the row.
template <class Tile>
struct Along {
  struct Arguments {
    const void* grad;  // (batch, rows)
    DType dtype;
    float* out;  // (tiles of queries, rows)
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena& arena, const Arguments&) : sums(arena) {}
    ColumnSums<Tile> sums;
  };

  __device__ Along(const Arguments& given, const Shared& shared)
      : arguments(given), column_sums(shared.sums) {}
  __device__ void begin(const Unit&) {}
  __device__ void end(const Unit&) {}

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
    float sums[Tile::kCols] = {};
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      const int64_t row = (unit.first_query + Tile::row(r)) * unit.rows + scores.first_item;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (!scores.is_item(c)) continue;
        const float grad = load(arguments.grad, arguments.dtype, row + Tile::col(c));
        sums[c] = fmaf(grad, scores.at[r][c], sums[c]);
      }
    }
    column_sums.write(
        sums, scores.items,
        arguments.out + unit.first_query / Tile::kQueries * unit.rows + scores.first_item);
  }

  Arguments arguments;
  ColumnSums<Tile> column_sums;
};

}  // namespace

void score_all(const Tables& tables, Array<const float, kBatch, kDim> queries,
               FloatArray<void, kBatch, kItems> out, Launch& launch) {
  const int64_t batch = queries.size[0];
  const bool by_pairs =
      tables.rows % 2 == 0 && reinterpret_cast<uintptr_t>(out.data) % (2 * size_of(out.dtype)) == 0;
  const float* const inverse_norms = scratch_inverse_norms(launch, "score_all", tables);
  if (launch.measuring()) return;
  with_tile<false>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
    scan.parts = parts_for<Tile>(launch, scan);
    enqueue_scan<WriteScores, Tile>(launch, "score_all", scan, {out, out.dtype, by_pairs});
  });
}

void score_all_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                        FloatArray<const void, kBatch, kItems> grad,
                        Optional<Array<float, kBatch, kDim>> grad_queries,
                        Optional<Array<float, kItems, kNullDim>> grad_ids, Launch& launch) {
  const char* const op = "score_all_backward";
  const int64_t batch = queries.size[0], rows = tables.rows;
  const Coefficients coefficients{grad, grad.dtype, rows};
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
        enqueue_scan<Along, Tile>(launch, op, scan, {grad, grad.dtype, of_tiles});
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
