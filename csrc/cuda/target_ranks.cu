// How many items are ahead of each query's target: counted where the scores lie in registers. Blocks
// take parts of the catalog; their counts are added up afterwards, which no order changes.
//
// FLOPs and bytes are those of score_all, without its result. TF32 never decides a place.
//
// Scratch memory: 8 bytes for each query and part of the catalog, of which there is about one for each
// block that the device runs at once and tile of 128 queries; with cosine 4 for each item.
#include <stdexcept>

#include "cuda/exclude.cuh"
#include "cuda/kernels.h"
#include "cuda/norms.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

// Of a target with the score `target`: score downward, then id upward, NaN last. `before`: the item has
// a lower id. The target is not ahead of itself.
__device__ inline bool is_ahead(float score, float target, bool before) {
  if (target != target) return before || score == score;
  return before ? score >= target : score > target;
}

template <class Tile>
struct CountAhead {
  struct Arguments {
    const int64_t* targets;
    const float* scores;  // of the targets
    int64_t first_id;
    ExcludedIds exclude;
    int64_t* out;  // (parts, batch)
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena& arena, const Arguments&)
        : of_warps(arena.take<int>(Tile::kItemWarps * Tile::kQueries)), excluded(arena) {}
    int* of_warps;
    ExcludedOfTile<Tile> excluded;
  };

  __device__ CountAhead(const Arguments& given, const Shared& shared)
      : arguments(given), of_warps(shared.of_warps), excluded(shared.excluded) {}

  __device__ void begin(const Unit& unit) {
    excluded.begin();
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      const int64_t b = unit.first_query + Tile::row(r);
      count[r] = 0;
      target[r] = b < unit.batch ? arguments.scores[b] : 0.0f;
      target_row[r] = b < unit.batch ? arguments.targets[b] - arguments.first_id : 0;
    }
  }

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
    excluded.mark(arguments.exclude, unit, scores, arguments.first_id);
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (!scores.is_item(c) || excluded.has(arguments.exclude, r, c)) continue;
        count[r] += is_ahead(scores.at[r][c], target[r], scores.item(c) < target_row[r]);
      }
    }
  }

  __device__ void end(const Unit& unit) {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
      for (int bit = 1; bit < Tile::kLanesOfRow; bit *= 2) {
        count[r] += __shfl_xor_sync(kAllLanes, count[r], bit);
      }
      if (Tile::lane() % Tile::kLanesOfRow == 0) {
        of_warps[Tile::warp() % Tile::kItemWarps * Tile::kQueries + Tile::row(r)] = count[r];
      }
    }
    __syncthreads();
    const auto queries = static_cast<int>(min(unit.batch - unit.first_query, Tile::kQueries));
    for (int i = static_cast<int>(threadIdx.x); i < queries; i += Tile::kThreads) {
      int64_t all = 0;
      for (int w = 0; w < Tile::kItemWarps; ++w) all += of_warps[w * Tile::kQueries + i];
      arguments.out[unit.part * unit.batch + unit.first_query + i] = all;
    }
  }

  Arguments arguments;
  int* of_warps;
  ExcludedOfTile<Tile> excluded;
  int count[Tile::kRows];
  float target[Tile::kRows];
  int64_t target_row[Tile::kRows];
};

__global__ void __launch_bounds__(kThreads)
    add_counts_kernel(const int64_t* counts, int64_t parts, int64_t batch, int64_t* out) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t b = int64_t{kThreads} * blockIdx.x + threadIdx.x; b < batch; b += step) {
    int64_t all = 0;
    for (int64_t part = 0; part < parts; ++part) all += counts[part * batch + b];
    out[b] = all;
  }
}

}  // namespace

FirstPassCount target_ranks(const Tables& tables, Array<const float, kBatch, kDim> queries,
                            Array<const int64_t, kBatch> targets, Array<const float, kBatch> scores,
                            const ExcludedIds& exclude, const Compressed* compressed,
                            Array<int64_t, kBatch> out, Launch& launch) {
  const char* const op = "target_ranks";
  if (compressed != nullptr) {
    throw std::invalid_argument("first_pass: got a compressed copy; expected None on this device");
  }
  const int64_t batch = queries.size[0];
  const float* const inverse_norms = scratch_inverse_norms(launch, op, tables);
  with_tile<true>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
    scan.parts = parts_for<Tile>(launch, scan);
    auto* const counts = launch.scratch<int64_t>(scan.parts * batch);
    if (launch.measuring()) return;
    enqueue_scan<CountAhead, Tile>(launch, op, scan,
                                   {targets, scores, tables.first_id, exclude, counts});
    enqueue(launch, op, add_counts_kernel, grid_of(batch), kThreads, 0, counts, scan.parts, batch,
            out);
  });
  return {0, 0};
}

}  // namespace cuda
}  // namespace alphafuse
