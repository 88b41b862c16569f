// The scan of tile.cuh as an H100 can make it, of strips in tiles (strips.cuh): bulk copies, which one
// thread begins, fill the stages, and two groups of four warps multiply 64 queries each by what has come.
// A group waits for its products once for each stage, frees it, and has its epilogue while the other, and
// those of a second block on the multiprocessor, multiply: it may be a tile ahead or behind.
//
// A warp of its own for the copies would take the registers of four. Epilogues are those of tile.cuh, of a
// WarpGroupTile, without barriers. To one that is a NeedsItems a tile's are what lies from
// KeptItems::stages on as in the strip.
#pragma once

#include "cuda/strips.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {

constexpr int kBulkStages = 4;  // of which a tile takes one, or two that follow each other
constexpr int kBulkAhead = 2;   // stages that are on their way: the others are a slower group's
constexpr int kPiecesOfChunk = kLineBytes / kPieceBytes;  // of a row, in a stage
constexpr int kSlicesOfChunk = kPiecesOfChunk / kPiecesOfSlice;
constexpr int kChunkBytes = static_cast<int>(kStripStep) * kLineBytes;
constexpr int kMaxBulkSlices = 2 * kSlicesOfChunk;  // so that shared memory has room for two blocks

// On a multiprocessor: sums of products with items leave no registers for a second one.
template <class Epilogue>
constexpr int kBulkBlocks = std::is_base_of<NeedsItems, Epilogue>::value ? 1 : 2;

// A place in the ring of stages.
struct RingPlace {
  int stage = 0, parity = 0;  // of the round

  __device__ void advance() {
    if (++stage < kBulkStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <class Tile>
struct BulkShared {
  static constexpr int kQueryBytes = Tile::QuerySlice::kBytes;

  __host__ __device__ BulkShared(SharedMemoryArena& arena, const Scan& scan)
      : queries(arena.take<unsigned char>(int64_t{kQueryBytes} * scan.slices)),
        items(arena.take<unsigned char>(int64_t{kChunkBytes} * kBulkStages)),
        full(arena.take<uint64_t>(kBulkStages)),
        empty(arena.take<uint64_t>(kBulkStages)) {}

  unsigned char *queries, *items;
  uint64_t *full, *empty;  // mbarriers: its copy has come; all warps are done with it
};

template <class Tile, template <class> class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, kBulkBlocks<Epilogue<Tile>>)
    bulk_scan_kernel(Scan scan, const void* strip, typename Epilogue<Tile>::Arguments arguments) {
  using Shared = BulkShared<Tile>;
  using Slice = typename Tile::QuerySlice;
  static_assert(Tile::kItems == kStripStep, "a tile of the strip");
  constexpr bool kNeedsItems = std::is_base_of<NeedsItems, Epilogue<Tile>>::value;
  constexpr int kSlice = kSliceBytes / sizeof(typename Tile::Element), kEight = 8 * kPieceBytes;
  const int chunks = scan.slices / kSlicesOfChunk;
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const Shared memory(arena, scan);
  const typename Epilogue<Tile>::Shared epilogue_memory(arena, arguments);
  Epilogue<Tile> epilogue(arguments, epilogue_memory);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kBulkStages; ++stage) {
      init_barrier(memory.full + stage, 1);
      init_barrier(memory.empty + stage, Tile::kThreads / kWarpLanes);
    }
  }
  const auto free_stage = [&](int stage) {
    __syncwarp();
    if (Tile::lane() == 0) arrive(memory.empty + stage);
  };

  RingPlace at, next;  // what is multiplied, and what is copied next
  for (int64_t u = blockIdx.x; u < scan.units(); u += gridDim.x) {
    const Unit unit{u % scan.query_tiles * Tile::kQueries, u / scan.query_tiles, scan.queries.count,
                    scan.items.count};
    const int64_t first_tile = scan.item_tiles * unit.part / scan.parts;
    const int64_t end_tile = scan.item_tiles * (unit.part + 1) / scan.parts;
    LoaderOf<typename Tile::Element, Tile::kQueries, Tile::kThreads, Slice> loader;
    loader.aim(scan.queries, unit.first_query);
    for (int slice = 0; slice < scan.slices; ++slice) {
      unsigned char* const to = memory.queries + slice * Shared::kQueryBytes;
      loader.begin(scan.queries, unit.first_query, slice * kSlice, to);
      loader.end(to);
    }
    commit_copies();
    wait_copies<0>();
    fence_for_wgmma();  // the queries, and the first time the mbarriers
    __syncthreads();

    const auto* from = static_cast<const unsigned char*>(strip) + first_tile * chunks * kChunkBytes;
    const auto* const end =
        static_cast<const unsigned char*>(strip) + end_tile * chunks * kChunkBytes;
    const auto copy_next = [&] {
      if (threadIdx.x == 0 && from < end) {
        wait_barrier(memory.empty + next.stage, next.parity ^ 1);  // in the first round it is
        arrive_expecting(memory.full + next.stage, kChunkBytes);
        copy_bulk(memory.items + next.stage * kChunkBytes, from, kChunkBytes,
                  memory.full + next.stage);
        from += kChunkBytes;
        next.advance();
      }
      __syncwarp();
    };
    for (int i = 0; i < kBulkAhead; ++i) copy_next();
    epilogue.begin(unit);
    const int group_query = Tile::warp() / kWarpsOfGroup * kWarpsOfGroup * Tile::kWarpQueries;
    const unsigned char* const queries = memory.queries + group_query * Slice::kPitch;
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      Scores<Tile> scores;
      scores.first_item = tile * Tile::kItems;
      scores.queries = static_cast<int>(min(unit.batch - unit.first_query, Tile::kQueries));
      scores.items = static_cast<int>(min(scan.items.count - scores.first_item, Tile::kItems));
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) scores.at[r][c] = 0.0f;
      }
      const int tile_stage = at.stage;
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        copy_next();
        wait_barrier(memory.full + at.stage, at.parity);
        MatrixInShared right(memory.items + at.stage * kChunkBytes, Tile::kItems * kPieceBytes,
                             kEight);
        begin_wgmma();
#pragma unroll
        for (int slice = 0; slice < kSlicesOfChunk; ++slice) {
          MatrixInShared left(queries + (chunk * kSlicesOfChunk + slice) * Shared::kQueryBytes,
                              Slice::kPieceStride, kEight);
#pragma unroll
          for (int step = 0; step < kSliceBytes; step += kStepBytes) {
            wgmma<Tile::kPrecision>(scores.at[0], scores.at[1], left, right);
            left.advance(kStepBytes / kPieceBytes * Slice::kPieceStride);
            right.advance(kStepBytes * Tile::kItems);
          }
        }
        end_wgmma(scores.at[0], scores.at[1]);
        if (!kNeedsItems) free_stage(at.stage);
        at.advance();
      }
      divide_by_norms(scan, scores);
      if constexpr (kNeedsItems) {
        epilogue.visit_tile(unit, scores,
                            KeptItems<Tile>{memory.items + tile_stage * kChunkBytes, 0, chunks});
        for (int chunk = 0; chunk < chunks; ++chunk) free_stage(tile_stage + chunk);
      } else {
        epilogue.visit_tile(unit, scores);
      }
    }
    epilogue.end(unit);
    __syncthreads();  // before the next unit's queries are written
  }
}

// Whether a scan of these is made so.
template <class Tile>
bool scans_by_bulk(const Tables& tables, int64_t batch) {
  return Tile::kWarpGroups && batch >= kLeastQueriesOfStrips &&
         depth_of<typename Tile::Element>(tables).slices <= kMaxBulkSlices;
}

// Of the items of a strip.
template <template <class> class Epilogue, class Tile>
void enqueue_bulk_scan(Launch& launch, const char* op, Scan scan, const void* strip,
                       const typename Epilogue<Tile>::Arguments& arguments) {
  if (scan.units() == 0) return;
  scan.slices = static_cast<int>(ceil_div(scan.slices, kSlicesOfChunk)) * kSlicesOfChunk;
  SharedMemoryArena arena;
  const BulkShared<Tile> memory(arena, scan);
  const typename Epilogue<Tile>::Shared epilogue_memory(arena, arguments);
  enqueue(launch, op, bulk_scan_kernel<Tile, Epilogue>, grid_of(scan.units(), 1), Tile::kThreads,
          arena.used(), scan, strip, arguments);
}

}  // namespace cuda
}  // namespace alphafuse
