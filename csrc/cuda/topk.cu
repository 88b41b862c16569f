// The best items of the catalog for each query, exactly, without an array of all scores.
//
// Blocks take parts of the catalog. Each query has a list there, and a threshold: a score that is ahead
// of it is appended, and where a list has no room for another tile, the k best of it are kept and the
// last of these is the new threshold. So a part of n items appends about k log(n / k) scores. Then
// blocks choose among the lists of some parts, where there are many, and at last among those of all,
// which are sorted.
//
//   FLOPs   2 * batch * rows * dim
//   Bytes   the tables once for each tile of 128 queries, from the cache where these run side by side;
//           the lists
//
// TF32 never decides a place. Catalogs of less than kMinFusedItems, on which thresholds would hold
// back little, are for topk_of_scores.cu.
//
// Scratch memory: for each query 8 bytes for each of `capacity` places of a list and of the parts of the
// catalog, of which there is one for each block that the device runs at once and tile of queries, and
// fewer where that would be more than kMaxListBytes; 8 for each of k places, rounded up to a power of
// two; 4 for each part; where there are many, 8 for each of k places and 4 for each kMergedParts of
// them. With cosine 4 for each item.
#include <stdexcept>

#include "cuda/best_keys.cuh"
#include "cuda/exclude.cuh"
#include "cuda/kernels.h"
#include "cuda/norms.cuh"
#include "cuda/tile.cuh"
#include "cuda/topk_of_scores.cuh"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int64_t kMaxListBytes = 512 << 20;
constexpr int64_t kMaxPlaces = 1 << 30;
constexpr int64_t kMinFree = 512, kMaxFree = 1024;    // places of a list beside the k best
constexpr int64_t kMergedParts = kEmulated ? 2 : 16;  // whose lists one block makes one of
constexpr int64_t kManyKeys = kEmulated ? 16 : 4096;  // of all lists of a query, for one block

struct Lists {
  Key* keys;   // (batch, parts, capacity)
  int* sizes;  // (batch, parts); at most k
  int64_t parts, capacity, k;

  __host__ __device__ int64_t at(int64_t b, int64_t part) const { return b * parts + part; }
};

template <class Tile>
struct AppendBest {
  struct Arguments {
    Lists lists;
    int64_t first_id;
    ExcludedIds exclude;
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena& arena, const Arguments&)
        : thresholds(arena.take<Key>(Tile::kQueries)),
          sizes(arena.take<int>(Tile::kQueries)),
          excluded(arena),
          best(arena) {}
    Key* thresholds;
    int* sizes;
    ExcludedOfTile<Tile> excluded;
    BestKeys best;
  };
  static_assert(Tile::kThreads == kThreads, "the blocks of BestKeys");

  __device__ AppendBest(const Arguments& given, const Shared& memory)
      : arguments(given), shared(memory) {}

  __device__ void begin(const Unit&) {
    for (int q = static_cast<int>(threadIdx.x); q < Tile::kQueries; q += Tile::kThreads) {
      shared.thresholds[q] = kNoKey;
      shared.sizes[q] = 0;
    }
    shared.excluded.begin();  // a barrier comes before the first tile is seen
  }

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
    shared.excluded.mark(arguments.exclude, unit, scores, arguments.first_id);
    // Of the tiles before this one, whose scores have all been appended.
    const int64_t room = arguments.lists.capacity - Tile::kItems;
    const int own = static_cast<int>(threadIdx.x);
    if (__syncthreads_or(own < scores.queries && shared.sizes[own] > room)) keep_best(unit, room);
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      const int q = Tile::row(r);
      const Key threshold = shared.thresholds[q];
      const float limit = threshold == kNoKey ? -INFINITY : score_of(threshold);
      Key* const list = keys(unit, q);
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (scores.at[r][c] < limit) continue;  // most; not NaN
        if (!scores.is_item(c) || shared.excluded.has(arguments.exclude, r, c)) continue;
        const Key key = key_of(scores.at[r][c], scores.item(c));
        if (key < threshold) list[atomicAdd(&shared.sizes[q], 1)] = key;
      }
    }
  }

  __device__ void end(const Unit& unit) {
    keep_best(unit, arguments.lists.k);
    const auto queries = static_cast<int>(min(unit.batch - unit.first_query, Tile::kQueries));
    for (int q = static_cast<int>(threadIdx.x); q < queries; q += Tile::kThreads) {
      const Lists& lists = arguments.lists;
      lists.sizes[lists.at(unit.first_query + q, unit.part)] = shared.sizes[q];
    }
    __syncthreads();  // before the next unit's begin
  }

  // The list of a query of the tile, for a part of the catalog.
  __device__ Key* keys(const Unit& unit, int q) const {
    const Lists& lists = arguments.lists;
    return lists.keys + lists.at(unit.first_query + q, unit.part) * lists.capacity;
  }

  // Cuts lists that are longer than `max_length`, k or more, to the k best. All threads call, after a barrier.
  __device__ void keep_best(const Unit& unit, int64_t max_length) const {
    const auto k = static_cast<int>(arguments.lists.k);
    for (int q = 0; q < Tile::kQueries; ++q) {
      const int size = shared.sizes[q];
      if (size <= max_length) continue;
      Key* const list = keys(unit, q);
      const Key last = shared.best.choose([=](int i) { return list[i]; }, size, k, list);
      if (threadIdx.x == 0) {
        shared.sizes[q] = k;
        shared.thresholds[q] = last;
      }
    }
    __syncthreads();
  }

  Arguments arguments;
  Shared shared;
};

// Of kMergedParts lists each one, of their k best; a block for each of these.
__global__ void __launch_bounds__(kThreads)
    merge_some_kernel(Lists lists, int64_t batch, Lists merged) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const BestKeys keys(arena);
  const auto kept = static_cast<int>(min(lists.k, lists.capacity));
  for (int64_t u = blockIdx.x; u < batch * merged.parts; u += gridDim.x) {
    const int64_t first = lists.at(u / merged.parts, u % merged.parts * kMergedParts);
    const auto parts =
        static_cast<int>(min(kMergedParts, lists.parts - u % merged.parts * kMergedParts));
    int found = 0;
    for (int part = 0; part < parts; ++part) found += lists.sizes[first + part];
    const auto key_at = [&](int i) {
      const int64_t list = first + i / kept;
      const int at = i % kept;
      return at < lists.sizes[list] ? lists.keys[list * lists.capacity + at] : kNoKey;
    };
    const auto k = static_cast<int>(min(found, merged.capacity));
    keys.choose(key_at, parts * kept, k, merged.keys + u * merged.capacity);
    if (threadIdx.x == 0) merged.sizes[u] = k;
  }
}

// The k best of a query's lists, in order; a block for a query.
__global__ void __launch_bounds__(kThreads)
    merge_lists_kernel(Lists lists, int64_t batch, Best best) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const BestKeys keys(arena);
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    int found = 0;
    for (int64_t part = 0; part < lists.parts; ++part) found += lists.sizes[lists.at(b, part)];
    const auto kept = static_cast<int>(min(lists.k, lists.capacity));
    const auto key_at = [&](int i) {
      const auto place = static_cast<unsigned>(i), each = static_cast<unsigned>(kept);
      const int64_t list = lists.at(b, place / each), at = place % each;
      return at < lists.sizes[list] ? lists.keys[list * lists.capacity + at] : kNoKey;
    };
    keys.write(best, b, key_at, static_cast<int>(lists.parts) * kept, found);
  }
}

}  // namespace

int64_t& min_fused_items() {
  static int64_t items = kMinFusedItems;
  return items;
}

FirstPassCount topk(const Tables& tables, Array<const float, kBatch, kDim> queries,
                    const ExcludedIds& exclude, const Compressed* compressed,
                    Array<float, kBatch, kPlaces> values, Array<int64_t, kBatch, kPlaces> ids,
                    Launch& launch) {
  const char* const op = "topk";
  if (compressed != nullptr) {
    throw std::invalid_argument("first_pass: got a compressed copy; expected None on this device");
  }
  if (tables.rows > kMaxRows) {
    throw std::invalid_argument("topk: got " + std::to_string(tables.rows) +
                                " items; expected at most " + std::to_string(kMaxRows));
  }
  const int64_t batch = queries.size[0], k = values.size[1];
  if (k > kMaxPlaces) {
    throw std::invalid_argument("k: got " + std::to_string(k) + "; expected at most " +
                                std::to_string(kMaxPlaces) + " on this device");
  }
  const float* const inverse_norms = scratch_inverse_norms(launch, op, tables);
  const int64_t places = Best::places_for(k);
  const Best best{launch.scratch<Key>(batch * places), places, k, tables.first_id, values, ids};
  if (tables.rows < min_fused_items()) {
    topk_of_scores(tables, queries, batch, exclude, inverse_norms, best, launch);
    return {0, 0};
  }
  with_tile<true>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    Scan scan = scan_of<Tile>(tables, queries, DType::kFloat32, batch, inverse_norms);
    const int64_t free = min(max(3 * k, kMinFree), max(k, kMaxFree));
    const int64_t list_bytes = (k + free) * static_cast<int64_t>(sizeof(Key));
    scan.parts =
        min(parts_for<Tile>(launch, scan), max(1, kMaxListBytes / (max(1, batch) * list_bytes)));
    // No list is longer than its part of the catalog.
    const int64_t capacity = min(k + free, ceil_div(scan.item_tiles, scan.parts) * Tile::kItems);
    Lists lists{nullptr, nullptr, scan.parts, capacity, k};
    lists.keys = launch.scratch<Key>(batch * scan.parts * capacity);
    lists.sizes = launch.scratch<int>(batch * scan.parts);
    const bool many = scan.parts > kMergedParts && scan.parts * k > kManyKeys;
    Lists merged{nullptr, nullptr, many ? ceil_div(scan.parts, kMergedParts) : 0, k, k};
    merged.keys = launch.scratch<Key>(batch * merged.parts * k);
    merged.sizes = launch.scratch<int>(batch * merged.parts);
    if (launch.measuring()) return;
    enqueue_scan<AppendBest, Tile>(launch, op, scan, {lists, tables.first_id, exclude});
    SharedMemoryArena arena;
    const BestKeys memory(arena);
    if (many) {
      enqueue(launch, op, merge_some_kernel, grid_of(batch * merged.parts, 1), kThreads,
              arena.used(), lists, batch, merged);
    }
    enqueue(launch, op, merge_lists_kernel, grid_of(batch, 1), kThreads, arena.used(),
            many ? merged : lists, batch, best);
  });
  return {0, 0};
}

}  // namespace cuda
}  // namespace alphafuse
