// topk of a small catalog: all scores of some queries are written as whole numbers in the order of a
// ranking, and a block chooses the best of each query, digit by digit.
//
//   FLOPs   2 * batch * rows * dim
//   Bytes   the tables once for each tile of 128 queries, from the cache; 4 for each score, written
//           once and read, from the cache too, about six times: the four digits of a score, most of
//           which are told apart before, once to move the best, once to leave some out
//
// Scratch memory: 4 bytes for each score of as many queries as have kMaxOrderBytes of them, and of
// at least 128 queries.
#include "cuda/tile.cuh"
#include "cuda/topk_of_scores.cuh"

namespace alphafuse {
namespace cuda {
namespace {

constexpr int64_t kMaxOrderBytes = 64 << 20;  // about what an H100's cache holds

template <class Tile>
struct WriteOrders {
  struct Arguments {
    uint32_t* orders;  // (batch, rows)
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena&, const Arguments&) {}
  };

  __device__ WriteOrders(const Arguments& given, const Shared&) : arguments(given) {}

  __device__ void begin(const Unit&) {}
  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      if (!scores.is_query(r)) continue;
      uint32_t* const orders =
          arguments.orders + (unit.first_query + Tile::row(r)) * unit.rows + scores.first_item;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (scores.is_item(c)) orders[Tile::col(c)] = order_of(scores.at[r][c]);
      }
    }
  }
  __device__ void end(const Unit&) {}

  Arguments arguments;
};

// The best of `batch` queries from number `first_query` on; a block for a query.
__global__ void __launch_bounds__(kThreads)
    choose_of_scores_kernel(uint32_t* orders, int rows, int64_t first_query, int64_t batch,
                            ExcludedIds exclude, Best best) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const BestKeys keys(arena);
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    uint32_t* const own = orders + b * rows;
    int found = rows;
    if (exclude.offsets != nullptr) {
      const int64_t begin = exclude.offsets[first_query + b];
      const int64_t end = exclude.offsets[first_query + b + 1];
      for (int64_t first = begin; first < end; first += kThreads) {
        const int64_t at = first + threadIdx.x;
        const int64_t row = at < end ? exclude.ids[at] - best.first_id : -1;
        // An id that comes twice is counted once: the list is in order.
        const bool counts =
            row >= 0 && row < rows && (at == begin || exclude.ids[at - 1] != exclude.ids[at]);
        if (counts) own[row] = kOrderOfNone;
        found -= __syncthreads_count(counts);
      }
    }
    const auto key_at = [=](int i) {
      return own[i] == kOrderOfNone ? kNoKey : key_of_order(own[i], i);
    };
    keys.write(best, first_query + b, key_at, rows, found);
  }
}

}  // namespace

void topk_of_scores(const Tables& tables, const float* queries, int64_t batch,
                    const ExcludedIds& exclude, const float* inverse_norms, const Best& best,
                    Launch& launch) {
  const char* const op = "topk";
  const int64_t row_bytes = tables.rows * static_cast<int64_t>(sizeof(uint32_t));
  const int64_t turn = min(batch, max(128, kMaxOrderBytes / row_bytes));
  auto* const orders = launch.scratch<uint32_t>(turn * tables.rows);
  if (launch.measuring()) return;
  SharedMemoryArena arena;
  const BestKeys memory(arena);
  with_tile<true>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    for (int64_t first = 0; first < batch; first += turn) {
      const int64_t count = min(turn, batch - first);
      Scan scan = scan_of<Tile>(tables, queries + first * tables.dim, DType::kFloat32, count,
                                inverse_norms);
      scan.parts = parts_for<Tile>(launch, scan);
      enqueue_scan<WriteOrders, Tile>(launch, op, scan, {orders});
      enqueue(launch, op, choose_of_scores_kernel, grid_of(count, 1), kThreads, arena.used(),
              orders, static_cast<int>(tables.rows), first, count, exclude, best);
    }
  });
}

}  // namespace cuda
}  // namespace alphafuse
