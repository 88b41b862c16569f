// Each query's score with its own target: bitwise what the tiles of the catalog give for the two in
// the same precision, since it is the same multiplication. A warp takes 16 queries and their 16
// targets, gathered, and keeps the diagonal: of the scores it computes one in 16 is wanted, which is
// still next to nothing beside the whole catalog, and each row is read once.
//
// Scratch memory: none.
#include "cuda/kernels.h"
#include "cuda/norms.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

template <Precision precision>
using DiagonalTile = TileOf<precision, 1, 1, 1, 2, 4>;

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    target_scores_kernel(Scan scan, Tables tables, const int64_t* targets, float* out) {
  using Shared = TileShared<Tile>;
  using Element = typename Tile::Element;
  static_assert(Tile::kThreads == kWarpLanes && Tile::kQueries == Tile::kItems,
                "a square for a warp");
  constexpr int kSlice = kSliceBytes / sizeof(Element);
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const Shared memory(arena, scan);
  Loader<Element, Tile::kQueries, Tile::kThreads> query_loader;
  Loader<Element, Tile::kItems, Tile::kThreads> target_loader;

  for (int64_t u = blockIdx.x; u < scan.query_tiles; u += gridDim.x) {
    const int64_t first = u * Tile::kQueries;
    // -1 for the padding, for a target of another part, and for no query.
    const auto row_of = [&](int i) -> int64_t {
      if (first + i >= scan.queries.count) return -1;
      const int64_t row = targets[first + i] - tables.first_id;
      return row < tables.rows ? row : -1;
    };
    const auto fetch = [&](int slice) {
      if (slice < scan.slices) {
        unsigned char* const queries = memory.queries + slice % Tile::kStages * Shared::kQueryBytes;
        unsigned char* const items = memory.items + slice % Tile::kStages * Shared::kItemBytes;
        query_loader.begin(scan.queries, first, slice * kSlice, queries);
        target_loader.begin_gather(scan.items, row_of, slice * kSlice, items);
        query_loader.end(queries);
        target_loader.end(items);
      }
      commit_copies();
    };
    query_loader.aim(scan.queries, first);
    Scores<Tile> scores{};
    for (int slice = 0; slice < Tile::kStages - 1; ++slice) fetch(slice);
    for (int slice = 0; slice < scan.slices; ++slice) {
      wait_copies<Tile::kStages - 2>();
      __syncthreads();  // this stage has come for all, and all are done with the one before it
      fetch(slice + Tile::kStages - 1);
      multiply(memory.queries + slice % Tile::kStages * Shared::kQueryBytes,
               memory.items + slice % Tile::kStages * Shared::kItemBytes, scores);
    }
    wait_copies<0>();
    __syncthreads();  // before the next queries are written to the stages

    for (int i = 0; i < Tile::kQueries && first + i < scan.queries.count; ++i) {
      const int64_t row = row_of(i);
      const float scale = tables.cosine && row >= 0 ? inverse_norm(tables, row) : 1.0f;
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) {
          if (Tile::row(r) != i || Tile::col(c) != i) continue;
          out[first + i] = row >= 0 ? scores.at[r][c] * scale : -INFINITY;
        }
      }
    }
  }
}

}  // namespace

void target_scores(const Tables& tables, Array<const float, kBatch, kDim> queries,
                   Array<const int64_t, kBatch> targets, Array<float, kBatch> out, Launch& launch) {
  const int64_t batch = queries.size[0];
  if (launch.measuring() || batch == 0) return;
  with_precision<false>(launch.precision(), [&](auto precision) {
    using Tile = DiagonalTile<decltype(precision)::value>;
    Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, nullptr);
    scan.resident = false;
    SharedMemoryArena arena;
    const TileShared<Tile> memory(arena, scan);
    enqueue(launch, "target_scores", target_scores_kernel<Tile>, grid_of(scan.query_tiles, 1),
            Tile::kThreads, arena.used(), scan, tables, targets, out);
  });
}

}  // namespace cuda
}  // namespace alphafuse
