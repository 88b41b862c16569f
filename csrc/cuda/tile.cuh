// The product that every op over the catalog is made of: scores of a tile of queries with a tile of
// items, of fused rows that exist nowhere but in shared memory. An op adds an epilogue, which visits
// each tile of scores, as each thread has its part of them in registers, and forgets it:
//
//   template <class Tile>
//   struct Epilogue {
//     struct Arguments { ... };             // of the kernel: addresses, sizes
//     struct Shared { __host__ __device__ Shared(SharedMemoryArena&, const Arguments&); ... };
//     __device__ Epilogue(const Arguments&, const Shared&);
//     // All threads of the block call these, together: barriers are allowed.
//     __device__ void begin(const Unit&);  // a tile of queries, a part of the catalog
//     __device__ void visit_tile(const Unit&, Scores<Tile>&);  // the next tile of items of it
//     __device__ void end(const Unit&);
//   };
//
// An epilogue that is a NeedsItems is given the items of the tile as well, as KeptItems:
// visit_tile(unit, scores, items). Its queries are resident, and its scan needs the stages that
// keep_items() adds.
//
//   with_tile<false>(launch, batch, [&](auto tile) {
//     using Tile = decltype(tile);
//     Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
//     scan.parts = parts_for<Tile>(launch, scan);
//     enqueue_scan<Epilogue, Tile>(launch, "op", scan, {arguments});
//   });
//
// Every score is a sum in one order that depends only on its row's and its query's values, so equal
// rows score bitwise equal wherever they stand.
#pragma once

#include <type_traits>

#include "cuda/rows.cuh"
#include "cuda/waves.h"

namespace alphafuse {
namespace cuda {

// --- The shape of a tile --------------------------------------------------------------------------

// What a tile holds in shared memory for a precision, and how many elements to a register of mma.
template <Precision precision>
struct ElementFor {
  using Type = float;
};
template <>
struct ElementFor<Precision::kBFloat16> {
  using Type = __nv_bfloat16;
};
template <>
struct ElementFor<Precision::kFloat16> {
  using Type = __half;
};

// Warps stand in a grid over the tile; each has kM16 * 16 queries and kN8 * 8 items.
//
// With tensor cores lane l has of each 16 x 8 scores the rows l / 4 and l / 4 + 8, and the columns
// l % 4 * 2 and the next one. Without, it has every fourth row from l / 8 on and every eighth column
// from l % 8 on.
template <Precision kPrecisionOfTile, int kWarpsOfQueries, int kWarpsOfItems, int kM16, int kN8,
          int kStagesOfTile>
struct TileOf {
  static constexpr Precision kPrecision = kPrecisionOfTile;
  using Element = typename ElementFor<kPrecision>::Type;
  static constexpr bool kTensorCores = kPrecision != Precision::kFloat32;
  static constexpr int kWarpQueries = kM16 * 16, kWarpItems = kN8 * 8;
  static constexpr int kQueries = kWarpsOfQueries * kWarpQueries;
  static constexpr int kItems = kWarpsOfItems * kWarpItems;
  static constexpr int kItemWarps = kWarpsOfItems;
  static constexpr int kThreads = kWarpLanes * kWarpsOfQueries * kWarpsOfItems;
  static constexpr int kStages = kStagesOfTile;
  static constexpr bool kWarpGroups = false;  // see WarpGroupTile
  using QuerySlice = RowsOfSlice<kQueries>;
  using ItemSlice = RowsOfSlice<kItems>;
  // Scores of a thread: rows times columns.
  static constexpr int kRows = kTensorCores ? 2 * kM16 : 4 * kM16;
  static constexpr int kCols = kTensorCores ? 2 * kN8 : kN8;
  // On a multiprocessor at a time: 64 scores of a thread leave no registers for a second one.
  static constexpr int kBlocks = kRows * kCols < 64 ? 2 : 1;
  static constexpr int kLanesOfRow = kTensorCores ? 4 : 8;  // neighbours, that share their rows

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % kWarpLanes; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / kWarpLanes; }
  static __device__ int warp_query() { return warp() / kWarpsOfItems * kWarpQueries; }
  static __device__ int warp_item() { return warp() % kWarpsOfItems * kWarpItems; }
  static __device__ int row(int r) {
    return warp_query() + (kTensorCores ? r / 2 * 16 + r % 2 * 8 + lane() / 4 : r * 4 + lane() / 8);
  }
  static __device__ int col(int c) {
    return warp_item() + (kTensorCores ? c / 2 * 8 + lane() % 4 * 2 + c % 2 : c * 8 + lane() % 8);
  }
};

template <Precision precision>
using WideTile = TileOf<precision, 4, 2, 2, 8, 4>;  // 128 queries, 128 items
template <Precision precision>
using NarrowTile =
    TileOf<precision, 1, 8, 1, 2, 4>;  // 16 queries, 128 items: few queries, read once

// 128 queries, 128 items, of which each four warps multiply 64 queries at once by wgmma, right out of
// shared memory; a warp has 16 of them, and all items. For halves, and for sm_90a alone.
template <Precision precision>
struct WarpGroupTile : TileOf<precision, 8, 1, 1, 16, 4> {
  using Base = TileOf<precision, 8, 1, 1, 16, 4>;
  static constexpr bool kWarpGroups = true;
  using QuerySlice = PiecesOfSlice<Base::kQueries>;
  using ItemSlice = PiecesOfSlice<Base::kItems>;
};

// --- What an epilogue visits ----------------------------------------------------------------------

// A tile of queries and a part of the catalog, which one block goes through.
struct Unit {
  int64_t first_query;
  int64_t part;
  int64_t batch, rows;  // of all queries, all items
};

template <class Tile>
struct Scores {
  float at[Tile::kRows][Tile::kCols];
  int64_t first_item;  // rows of this part of the catalog, not ids
  int queries, items;  // of the tile that exist; the scores of others are 0

  __device__ bool is_query(int r) const { return Tile::row(r) < queries; }
  __device__ bool is_item(int c) const { return Tile::col(c) < items; }
  __device__ int64_t item(int c) const { return first_item + Tile::col(c); }
};

// The items of a tile as they lie in shared memory, all slices of them.
template <class Tile>
struct KeptItems {
  const unsigned char* stages;
  int first, count;  // the stage of the first slice; stages there are, which go round

  // Byte `at` of slice i.
  __device__ const unsigned char* slice(int i, int at) const {
    const int stage = first + i;
    return stages + ((stage < count ? stage : stage - count) * (Tile::kItems * kSlicePitch) + at);
  }
};

struct NeedsItems {};

// Sums over the queries of a tile, one for each item.
template <class Tile>
struct ColumnSums {
  static constexpr int kQueryWarps = Tile::kQueries / Tile::kWarpQueries;

  __host__ __device__ explicit ColumnSums(SharedMemoryArena& arena)
      : of_warps(arena.take<float>(int64_t{kQueryWarps} * Tile::kItems)) {}

  // `sums` are over a thread's own rows; out[0, items) gets those over the tile. All threads call.
  __device__ void write(float (&sums)[Tile::kCols], int items, float* out) const {
#pragma unroll
    for (int c = 0; c < Tile::kCols; ++c) {
#pragma unroll
      for (int bit = Tile::kLanesOfRow; bit < kWarpLanes; bit *= 2) {
        sums[c] += __shfl_xor_sync(kAllLanes, sums[c], bit);
      }
      if (Tile::lane() < Tile::kLanesOfRow) {
        of_warps[Tile::warp() / Tile::kItemWarps * Tile::kItems + Tile::col(c)] = sums[c];
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < items; i += Tile::kThreads) {
      float sum = 0.0f;
      for (int w = 0; w < kQueryWarps; ++w) sum += of_warps[w * Tile::kItems + i];
      out[i] = sum;
    }
    __syncthreads();  // before the next tile's sums
  }

  float* of_warps;
};

// --- What is scanned ------------------------------------------------------------------------------

struct Scan {
  Rows queries, items;
  int slices;
  int stages;                  // slices that are in shared memory, or on their way there
  bool resident;               // all slices of the queries stay in shared memory
  int64_t parts;               // of the catalog
  const float* inverse_norms;  // of the items; null: scores are not scaled
  int64_t query_tiles, item_tiles;

  __host__ __device__ int64_t units() const { return query_tiles * parts; }
};

// A block's shared memory.
template <class Tile>
struct TileShared {
  static constexpr int kItemBytes = Tile::ItemSlice::kBytes;
  static constexpr int kQueryBytes = Tile::QuerySlice::kBytes;

  __host__ __device__ TileShared(SharedMemoryArena& arena, const Scan& scan)
      : queries(arena.take<unsigned char>(scan.resident ? int64_t{kQueryBytes} * scan.slices
                                                        : int64_t{kQueryBytes} * scan.stages)),
        items(arena.take<unsigned char>(int64_t{kItemBytes} * scan.stages)) {}

  unsigned char *queries, *items;
};

// --- Multiplying ----------------------------------------------------------------------------------

// scores += queries items^T over one slice.
template <class Tile>
__device__ inline void multiply(const unsigned char* queries, const unsigned char* items,
                                Scores<Tile>& scores) {
  const int lane = Tile::lane();
  if constexpr (Tile::kWarpGroups) {
    using QuerySlice = typename Tile::QuerySlice;
    using ItemSlice = typename Tile::ItemSlice;
    constexpr int kEight = 8 * kPieceBytes, kPiecesOfStep = kStepBytes / kPieceBytes;
    const int first_query = Tile::warp() / kWarpsOfGroup * kWarpsOfGroup * Tile::kWarpQueries;
    MatrixInShared left(queries + first_query * QuerySlice::kPitch, QuerySlice::kPieceStride,
                        kEight);
    MatrixInShared right(items, ItemSlice::kPieceStride, kEight);
    begin_wgmma();
#pragma unroll
    for (int step = 0; step < kSliceBytes; step += kStepBytes) {
      wgmma<Tile::kPrecision>(scores.at[0], scores.at[1], left, right);
      left.advance(kPiecesOfStep * QuerySlice::kPieceStride);
      right.advance(kPiecesOfStep * ItemSlice::kPieceStride);
    }
    end_wgmma(scores.at[0], scores.at[1]);
  } else if constexpr (Tile::kTensorCores) {
    constexpr bool kTF32 = Tile::kPrecision == Precision::kTF32;
    const unsigned char* const query =
        queries + (Tile::warp_query() + lane % 16) * kSlicePitch + lane / 16 * kPieceBytes;
    const unsigned char* const item = items +
                                      (Tile::warp_item() + lane % 8 + lane / 16 * 8) * kSlicePitch +
                                      lane / 8 % 2 * kPieceBytes;
#pragma unroll
    for (int step = 0; step < kSliceBytes; step += kStepBytes) {
      uint32_t a[Tile::kRows / 2][4];
#pragma unroll
      for (int m = 0; m < Tile::kRows / 2; ++m) {
        load_matrices(a[m], query + m * 16 * kSlicePitch + step);
        if constexpr (kTF32) {
          for (uint32_t& word : a[m]) word = to_tf32(word);
        }
      }
#pragma unroll
      for (int n = 0; n < Tile::kCols / 2; n += 2) {
        uint32_t b[4];
        load_matrices(b, item + n * 8 * kSlicePitch + step);
        if constexpr (kTF32) {
          for (uint32_t& word : b) word = to_tf32(word);
        }
#pragma unroll
        for (int m = 0; m < Tile::kRows / 2; ++m) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float (&top)[Tile::kCols] = scores.at[2 * m];
            float (&bottom)[Tile::kCols] = scores.at[2 * m + 1];
            const int c = 2 * (n + j);
            mma<Tile::kPrecision>(top[c], top[c + 1], bottom[c], bottom[c + 1], a[m], b[2 * j],
                                  b[2 * j + 1]);
          }
        }
      }
    }
  } else {
    const unsigned char* const query = queries + (Tile::warp_query() + lane / 8) * kSlicePitch;
    const unsigned char* const item = items + (Tile::warp_item() + lane % 8) * kSlicePitch;
#pragma unroll 1
    for (int piece = 0; piece < kSliceBytes; piece += kPieceBytes) {
      float4 b[Tile::kCols];
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        b[c] = *reinterpret_cast<const float4*>(item + c * 8 * kSlicePitch + piece);
      }
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
        const float4 a = *reinterpret_cast<const float4*>(query + r * 4 * kSlicePitch + piece);
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) {  // one chain, in the order of the columns
          float score = scores.at[r][c];
          score = fmaf(a.x, b[c].x, score);
          score = fmaf(a.y, b[c].y, score);
          score = fmaf(a.z, b[c].z, score);
          scores.at[r][c] = fmaf(a.w, b[c].w, score);
        }
      }
    }
  }
}

template <class Tile>
__device__ inline void divide_by_norms(const Scan& scan, Scores<Tile>& scores) {
  if (scan.inverse_norms == nullptr) return;
  const float* const scales = scan.inverse_norms + scores.first_item;
#pragma unroll
  for (int c = 0; c < Tile::kCols; ++c) {
    const float scale = scores.is_item(c) ? scales[Tile::col(c)] : 0.0f;
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) scores.at[r][c] *= scale;
  }
}

// --- The kernel -----------------------------------------------------------------------------------

template <class Tile, template <class> class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    scan_kernel(Scan scan, typename Epilogue<Tile>::Arguments arguments) {
  using Shared = TileShared<Tile>;
  using Element = typename Tile::Element;
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const Shared memory(arena, scan);
  const typename Epilogue<Tile>::Shared epilogue_memory(arena, arguments);
  Epilogue<Tile> epilogue(arguments, epilogue_memory);
  constexpr bool kNeedsItems = std::is_base_of<NeedsItems, Epilogue<Tile>>::value;
  const bool resident =
      kNeedsItems || scan.resident;  // known here, the other way takes no registers

  for (int64_t u = blockIdx.x; u < scan.units(); u += gridDim.x) {
    // Blocks that run side by side take the same items: one of them brings these into the cache.
    const Unit unit{u % scan.query_tiles * Tile::kQueries, u / scan.query_tiles, scan.queries.count,
                    scan.items.count};
    const int64_t first_tile = scan.item_tiles * unit.part / scan.parts;
    const int64_t end_tile = scan.item_tiles * (unit.part + 1) / scan.parts;

    constexpr int kSlice = kSliceBytes / sizeof(Element);
    LoaderOf<Element, Tile::kItems, Tile::kThreads, typename Tile::ItemSlice> item_loader;
    LoaderOf<Element, Tile::kQueries, Tile::kThreads, typename Tile::QuerySlice> query_loader;
    int64_t next_tile = first_tile;  // what is fetched next: a slice of a tile, into a stage
    int next_slice = 0, next_stage = 0;
    query_loader.aim(scan.queries, unit.first_query);
    const auto begin_fetch = [&] {
      if (next_tile == end_tile) return;
      if (next_slice == 0) item_loader.aim(scan.items, next_tile * Tile::kItems);
      item_loader.begin(scan.items, next_tile * Tile::kItems, next_slice * kSlice,
                        memory.items + next_stage * Shared::kItemBytes);
      if (!resident) {
        query_loader.begin(scan.queries, unit.first_query, next_slice * kSlice,
                           memory.queries + next_stage * Shared::kQueryBytes);
      }
    };
    const auto end_fetch = [&] {
      if (next_tile != end_tile) {
        item_loader.end(memory.items + next_stage * Shared::kItemBytes);
        if (!resident) query_loader.end(memory.queries + next_stage * Shared::kQueryBytes);
        if (++next_slice == scan.slices) {
          next_slice = 0;
          ++next_tile;
        }
        if (++next_stage == scan.stages) next_stage = 0;
      }
      commit_copies();
    };

    epilogue.begin(unit);
    if (resident) {  // with the first group of copies
      for (int slice = 0; slice < scan.slices; ++slice) {
        unsigned char* const to = memory.queries + slice * Shared::kQueryBytes;
        query_loader.begin(scan.queries, unit.first_query, slice * kSlice, to);
        query_loader.end(to);
      }
    }
    for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
      begin_fetch();
      end_fetch();
    }

    const auto queries_left = static_cast<int>(min(unit.batch - unit.first_query, Tile::kQueries));
    // The warps of a group multiply together.
    const bool multiplies = Tile::kWarpGroups || Tile::warp_query() < queries_left;
    int stage = 0;
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      const int tile_stage = stage;
      Scores<Tile> scores;
      scores.first_item = tile * Tile::kItems;
      scores.queries = queries_left;
      scores.items = static_cast<int>(min(scan.items.count - scores.first_item, Tile::kItems));
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) scores.at[r][c] = 0.0f;
      }
#pragma unroll 1
      for (int slice = 0; slice < scan.slices; ++slice) {
        wait_copies<Tile::kStages - 2>();
        if constexpr (Tile::kWarpGroups) fence_for_wgmma();
        __syncthreads();  // this stage has come for all, and all are done with the one before it
        begin_fetch();
        if (multiplies) {
          multiply(memory.queries + (resident ? slice : stage) * Shared::kQueryBytes,
                   memory.items + stage * Shared::kItemBytes, scores);
        }
        end_fetch();
        if (++stage == scan.stages) stage = 0;
      }
      divide_by_norms(scan, scores);
      if constexpr (kNeedsItems) {
        epilogue.visit_tile(unit, scores, KeptItems<Tile>{memory.items, tile_stage, scan.stages});
      } else {
        epilogue.visit_tile(unit, scores);
      }
    }
    wait_copies<0>();
    __syncthreads();  // before the next unit writes to the stages and to the queries
    epilogue.end(unit);
  }
}

// --- Host side ------------------------------------------------------------------------------------

constexpr int64_t kFewQueries = 16;               // of a narrow tile
constexpr std::size_t kResidentBytes = 48 << 10;  // of queries: more would leave one block to an SM

// Calls act(precision), a value of the type of a constant: the launch's, or what is exact beside it.
template <bool kExact, class Act>
void with_precision(Precision precision, Act&& act) {
  switch (precision) {
    case Precision::kBFloat16:
      return act(std::integral_constant<Precision, Precision::kBFloat16>());
    case Precision::kFloat16:
      return act(std::integral_constant<Precision, Precision::kFloat16>());
    case Precision::kTF32:
      if constexpr (!kExact) return act(std::integral_constant<Precision, Precision::kTF32>());
      [[fallthrough]];
    default:
      return act(std::integral_constant<Precision, Precision::kFloat32>());
  }
}

// Calls act(tile), a value of the type of a tile, for the precision that the launch allows and the
// number of queries.
template <bool kExact, class Act>
void with_tile(const Launch& launch, int64_t batch, Act&& act) {
  with_precision<kExact>(launch.precision(), [&](auto precision) {
    constexpr Precision kPrecision = decltype(precision)::value;
    if (batch > kFewQueries) {
      // wgmma may add in another order than mma: not where scores have to agree to the last bit.
      if constexpr (kWgmma && !kExact && sizeof(typename ElementFor<kPrecision>::Type) == 2) {
        if (has_wgmma(launch)) return act(WarpGroupTile<kPrecision>());
      }
      act(WideTile<kPrecision>());
    } else {
      act(NarrowTile<kPrecision>());
    }
  });
}

// What to scan, in one part.
template <class Tile>
Scan scan_of(const Tables& tables, const void* queries, DType dtype, int64_t batch,
             const float* inverse_norms) {
  using Element = typename Tile::Element;
  const Depth depth = depth_of<Element>(tables);
  Scan scan{};
  scan.queries = rows_of_queries<Element>(tables, depth, queries, dtype, batch);
  scan.items = rows_of_tables<Element>(tables, depth);
  scan.slices = depth.slices;
  scan.stages = Tile::kStages;
  scan.resident = std::size_t{TileShared<Tile>::kQueryBytes} * depth.slices <= kResidentBytes;
  scan.parts = 1;
  scan.inverse_norms = inverse_norms;
  scan.query_tiles = ceil_div(batch, Tile::kQueries);
  scan.item_tiles = ceil_div(tables.rows, Tile::kItems);
  return scan;
}

// What is fetched while a tile is looked at takes the place of none of its slices.
template <class Tile>
void keep_items(Scan& scan) {
  scan.stages = scan.slices + Tile::kStages - 1;
}

// Parts of the catalog, so that the units keep the whole device busy to the end.
template <class Tile>
int64_t parts_for(const Launch& launch, const Scan& scan, int blocks = Tile::kBlocks) {
  return parts_of_waves(scan.query_tiles, scan.item_tiles,
                        int64_t{blocks} * multiprocessors(launch));
}

template <template <class> class Epilogue, class Tile>
void enqueue_scan(Launch& launch, const char* op, const Scan& scan,
                  const typename Epilogue<Tile>::Arguments& arguments) {
  if (scan.units() == 0) return;
  SharedMemoryArena arena;
  const TileShared<Tile> memory(arena, scan);
  const typename Epilogue<Tile>::Shared epilogue_memory(arena, arguments);
  enqueue(launch, op, scan_kernel<Tile, Epilogue>, grid_of(scan.units(), 1), Tile::kThreads,
          arena.used(), scan, arguments);
}

}  // namespace cuda
}  // namespace alphafuse
