// The backward pass of cross entropy without coefficients in memory: a block keeps 128 rows of one
// side and goes through the other, 32 rows at a time. It computes their scores, turns these into
// coefficients where they lie in registers, and multiplies them at once by the 32 rows, which are
// still in shared memory, into sums in registers. Once with queries kept, for their gradient; once
// with items kept, for that of the ID embeddings: so no block adds to another's sums.
//
//   FLOPs   2 * batch * rows * (2 * dim + dim + null_dim), scores being computed twice; for more than
//           64 null columns three times
//   Bytes   the tables once for each 128 queries, the queries in bfloat16 once for each 128 items, from
//           the cache; gradients once. With coefficients in memory (cross_entropy.cu) it is one
//           product of scores less, and 6 bytes for each coefficient more: at dim 128 that product
//           takes about 0.2 us of one multiprocessor of an H100 for a million of them, at 24 bytes a
//           clock of the cache these bytes take 0.14 ms.
//
// Scratch memory, where a part is one of what a block goes through, and parts * (tiles of 128 rows) is
// at most one for each block that the device runs at once, and one more for each tile, and `width` is
// dim, the columns of each table filled up to 16 and all to 32: the queries once more, 2 * width bytes
// each, and 16 bytes, of whole tiles; parts * batch * width floats; parts * rows * null_dim floats, if
// the parts are more than one; with cosine rows floats for the norms, and (1 + parts) * rows; and a
// strip (strips.cuh), which kept queries go through. Kept items are rounded once for all queries.
#include "cuda/bulk_scan.cuh"
#include "cuda/cross_entropy_fused.cuh"
#include "cuda/norms.cuh"
#include "cuda/product.cuh"
#include "cuda/strips.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

using Element = __nv_bfloat16;
// A warp has 32 rows of what is kept and all rows of what passes by, so that no other warp adds to
// its sums, and a fragment from shared memory is multiplied twice.
using FusedTile = TileOf<Precision::kBFloat16, 4, 1, 2, 4, 4>;
constexpr int kSliceColumns = kSliceBytes / sizeof(Element);
constexpr int kMaxColumns = 128;
constexpr int kMaxNullColumns = 64;  // in one pass

// What is known of a query before its scores are. In units of log 2, of which `shift` is a whole number
// near its largest score, an exponential is one multiply-add and one instruction, and the shift exact:
// weight * softmax = scale * 2^(score * kLog2E - shift).
struct alignas(16) QuerySoftmax {
  float weight, scale, shift;
  int target;  // row of this part of the catalog; -1: of none
};

// For a query that there is not, or of weight 0: it has no coefficients, whatever its scores.
__device__ inline QuerySoftmax no_query() { return {0.0f, 0.0f, INFINITY, -1}; }

__device__ inline QuerySoftmax query_softmax(float weight, float maximum, float log, int target) {
  if (weight == 0.0f) return no_query();
  constexpr double kUnit = 1.0 / kLog2E;
  constexpr auto kHigh = static_cast<float>(kUnit);
  constexpr auto kLow = static_cast<float>(kUnit - kHigh);
  const float shift = rintf(maximum * kLog2E);
  const float above = fmaf(shift, kLow, fmaf(shift, kHigh, -maximum));  // the shift the maximum
  return {weight, weight * expf(above - log), shift, target};
}

__device__ inline float probability(const QuerySoftmax& query, float score) {
  return query.scale * fast_exp2(fmaf(score, kLog2E, -query.shift));
}

// --- Sums in registers ----------------------------------------------------------------------------

// sums (rows of the tile, columns) += coefficients (rows of the tile, items) times items.
template <class Tile, int kColumns>
struct Accumulator {
  static_assert(Tile::kItems == Tile::kWarpItems, "a warp has all items of the tile");
  static constexpr int kSums = kColumns / 4;  // of a row, of a thread
  // Of these, what one wgmma adds to.
  static constexpr int kSumsOfBlock = Tile::kWarpGroups ? 16 : kSums;

  float sums[kSums / kSumsOfBlock][Tile::kRows][kSumsOfBlock];

  __device__ float& sum(int r, int n) { return sums[n / kSumsOfBlock][r][n % kSumsOfBlock]; }

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
      for (int n = 0; n < kSums; ++n) sum(r, n) = 0.0f;
    }
  }

  // The columns from `begin` on, a multiple of 16, to before `end`.
  __device__ void add(const float (&coefficients)[Tile::kRows][Tile::kCols],
                      const KeptItems<Tile>& items, int begin, int end) {
    // Two neighbouring 8 x 8 of the scores are, rounded, what mma reads as its left factor.
    uint32_t left[Tile::kItems / 16][Tile::kRows / 2][4];
#pragma unroll
    for (int k = 0; k < Tile::kItems / 16; ++k) {
#pragma unroll
      for (int m = 0; m < Tile::kRows / 2; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* const pair = &coefficients[2 * m + i % 2][4 * k + i / 2 * 2];
          left[k][m][i] = pack_bfloat16(pair[0], pair[1]);
        }
      }
    }
    if constexpr (Tile::kWarpGroups) {
      constexpr int kPieceStride = Tile::kItems * kPieceBytes;
#pragma unroll
      for (int block = 0; block < kSums / kSumsOfBlock; ++block) {
        const int at = begin + 4 * kSumsOfBlock * block;
        if (at >= end) continue;
        MatrixInShared right(
            items.stages + at * static_cast<int>(sizeof(Element)) / kPieceBytes * kPieceStride,
            8 * kPieceBytes, kPieceStride);
        begin_wgmma();
#pragma unroll
        for (int k = 0; k < Tile::kItems / 16; ++k) {
          wgmma_registers(sums[block][0], sums[block][1], left[k][0], right.bits());
          right.advance(16 * kPieceBytes);
        }
        end_wgmma(sums[block][0], sums[block][1]);
      }
    } else {
      const int row = Tile::lane() % 16 * kSlicePitch + Tile::lane() / 16 * kPieceBytes;
#pragma unroll
      for (int n = 0; n < kSums / 2; n += 2) {
        const int at = begin + 8 * n;
        if (at >= end) continue;
        const unsigned char* const from = items.slice(
            at / kSliceColumns, row + at % kSliceColumns * static_cast<int>(sizeof(Element)));
#pragma unroll
        for (int k = 0; k < Tile::kItems / 16; ++k) {
          const uint32_t (&a)[Tile::kRows / 2][4] = left[k];
          uint32_t b[4];
          load_matrices<4, true>(b, from + 16 * k * kSlicePitch);
#pragma unroll
          for (int m = 0; m < Tile::kRows / 2; ++m) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              float* const top = &sum(2 * m, 0);
              float* const bottom = &sum(2 * m + 1, 0);
              const int c = 2 * (n + j);
              mma<Tile::kPrecision>(top[c], top[c + 1], bottom[c], bottom[c + 1], a[m], b[2 * j],
                                    b[2 * j + 1]);
            }
          }
        }
      }
    }
  }
};

// --- Gradient of the queries ----------------------------------------------------------------------

template <int kColumns, bool kCosine>
struct GradQueries {
  template <class Tile>
  struct Epilogue : NeedsItems {
    struct Arguments {
      const QuerySoftmax* softmax;  // of whole tiles
      const float* inverse_norms;   // of the items, with cosine
      int width;                    // columns, as tiles have them
      int64_t first;                // row of the strip, in this part of the catalog
      float* out;                   // (parts, batch, width): goes on after the first strip
    };
    struct Shared {
      __host__ __device__ Shared(SharedMemoryArena&, const Arguments&) {}
    };

    __device__ Epilogue(const Arguments& given, const Shared&) : arguments(given) {}

    __device__ void begin(const Unit& unit) {
      products.clear();
      if (arguments.first > 0) {
        for_sums(unit, [](const float2& before, float& sum, float& next) {
          sum = before.x;
          next = before.y;
        });
      }
    }

    __device__ void visit_tile(const Unit& unit, Scores<Tile>& scores,
                               const KeptItems<Tile>& items) {
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
        const QuerySoftmax query = arguments.softmax[unit.first_query + Tile::row(r)];
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) {
          scores.at[r][c] = probability(query, scores.at[r][c]);
        }
        const int64_t target = query.target - (arguments.first + scores.first_item);
        if (target < 0 || target >= Tile::kItems) continue;
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) {
          if (Tile::col(c) == static_cast<int>(target)) scores.at[r][c] -= query.weight;
        }
      }
      if (kCosine || scores.items < Tile::kItems) {
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) {
          const bool is_item = scores.is_item(c);
          const float scale = kCosine && is_item ? arguments.inverse_norms[scores.item(c)] : 1.0f;
#pragma unroll
          for (int r = 0; r < Tile::kRows; ++r) {
            scores.at[r][c] = is_item ? scores.at[r][c] * scale : 0.0f;
          }
        }
      }
      products.add(scores.at, items, 0, arguments.width);
    }

    __device__ void end(const Unit& unit) {
      for_sums(unit, [](float2& to, float sum, float next) { to = {sum, next}; });
    }

    // act(where two sums have their place, one, the other)
    template <class Act>
    __device__ void for_sums(const Unit& unit, const Act& act) {
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
        const int64_t b = unit.first_query + Tile::row(r);
        if (b >= unit.batch) continue;
        float* const out =
            arguments.out + (unit.part * unit.batch + b) * arguments.width + Tile::lane() % 4 * 2;
#pragma unroll
        for (int n = 0; n < kColumns / 4; n += 2) {
          if (4 * n >= arguments.width) continue;
          act(*reinterpret_cast<float2*>(out + 4 * n), products.sum(r, n), products.sum(r, n + 1));
        }
      }
    }

    Arguments arguments;
    Accumulator<Tile, kColumns> products;
  };
};

// --- Gradient of the ID embeddings ----------------------------------------------------------------

// Items stand where a scan has queries, and queries where it has items.
template <int kColumns, bool kCosine>
struct GradIds {
  template <class Tile>
  struct Epilogue : NeedsItems {
    struct Arguments {
      const QuerySoftmax* softmax;  // of whole tiles
      const float* inverse_norms;   // of the kept items, with cosine
      int begin, skip, cols;  // columns as tiles have them: of kColumns from `begin` on, after
                              // the first `skip`, those that are null columns
      float* out;             // (parts, rows, stride)
      int64_t stride;
      float* along;  // (parts, rows), with cosine; see product.cuh
    };
    struct Shared {
      __host__ __device__ Shared(SharedMemoryArena&, const Arguments&) {}
    };

    __device__ Epilogue(const Arguments& given, const Shared&) : arguments(given) {}

    __device__ void begin(const Unit& unit) {
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
        const int64_t row = unit.first_query + Tile::row(r);
        scales[r] = kCosine && row < unit.batch ? arguments.inverse_norms[row] : 1.0f;
        along[r] = 0.0f;
      }
      products.clear();
    }

    __device__ void visit_tile(const Unit& unit, Scores<Tile>& scores,
                               const KeptItems<Tile>& queries) {
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        const QuerySoftmax query = arguments.softmax[scores.item(c)];
        float of_items[Tile::kRows];
#pragma unroll
        for (int r = 0; r < Tile::kRows; ++r) {
          of_items[r] = kCosine ? scores.at[r][c] * scales[r] : scores.at[r][c];
          scores.at[r][c] = probability(query, of_items[r]);
        }
        const int64_t target = query.target - unit.first_query;
        if (target >= 0 && target < Tile::kQueries) {
#pragma unroll
          for (int r = 0; r < Tile::kRows; ++r) {
            if (Tile::row(r) == static_cast<int>(target)) scores.at[r][c] -= query.weight;
          }
        }
#pragma unroll
        for (int r = 0; r < Tile::kRows; ++r) {
          if (kCosine) along[r] = fmaf(scores.at[r][c], of_items[r], along[r]);
        }
      }
      products.add(scores.at, queries, arguments.begin,
                   arguments.begin + arguments.skip + arguments.cols);
    }

    __device__ void end(const Unit& unit) {
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
        const int64_t row = unit.first_query + Tile::row(r);
        const float sum = kCosine ? sum_lanes<Tile::kLanesOfRow>(along[r]) : 0.0f;
        if (row >= unit.batch) continue;
        const int64_t at = unit.part * unit.batch + row;
        if (kCosine && Tile::lane() % Tile::kLanesOfRow == 0) arguments.along[at] = sum;
        float* const out = arguments.out + at * arguments.stride;
        const int first = Tile::lane() % 4 * 2 - arguments.skip;
#pragma unroll
        for (int n = 0; n < kColumns / 4; ++n) {
          const int column = first + n / 2 * 8 + n % 2;
          if (column >= 0 && column < arguments.cols) out[column] = products.sum(r, n);
        }
      }
    }

    Arguments arguments;
    float scales[Tile::kRows], along[Tile::kRows];
    Accumulator<Tile, kColumns> products;
  };
};

// --- Host side ------------------------------------------------------------------------------------

// The queries (batch, width) as tiles read them, so that they pass by without being converted; or of whole
// tiles, as a strip's are.
struct Prepared {
  Element* queries;
  QuerySoftmax* softmax;  // of whole tiles
  int64_t batch, width;
  bool in_tiles;

  __host__ __device__ int64_t whole_tiles() const {
    return ceil_div(batch, kStripStep) * kStripStep;
  }
  __device__ Element& query(int64_t b, int64_t column) const {
    constexpr int64_t kPiece = kPieceBytes / sizeof(Element);
    if (!in_tiles) return queries[b * width + column];
    const int64_t piece = b / kStripStep * width / kPiece + column / kPiece;
    return queries[(piece * kStripStep + b % kStripStep) * kPiece + column % kPiece];
  }
};

__global__ void __launch_bounds__(kThreads)
    prepare_kernel(Tables tables, const float* queries, const int64_t* targets, const float* maxima,
                   const float* logs, const float* weights, int second_from, Prepared to) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < to.whole_tiles() * to.width;
       i += step) {
    const int64_t b = i / to.width, column = i % to.width, second = column - second_from;
    if (b >= to.batch) {
      if (to.in_tiles) to.query(b, column) = from_float<Element>(0.0f);
      if (column == 0) to.softmax[b] = no_query();
      continue;
    }
    float value = 0.0f;
    if (column < tables.semantic.cols) {
      value = queries[b * tables.dim + column];
    } else if (second >= 0 && second < tables.id.cols) {
      value = queries[b * tables.dim + tables.null_offset + second];
    }
    to.query(b, column) = from_float<Element>(value);
    if (column != 0) continue;
    const int64_t row = targets[b] - tables.first_id;
    const int target = row >= 0 && row < tables.rows ? static_cast<int>(row) : -1;
    to.softmax[b] = query_softmax(weights[b], maxima[b], logs[b], target);
  }
}

// out (batch, dim) = the sum of partial (parts, batch, width) in the order of the parts.
__global__ void __launch_bounds__(kThreads)
    sum_queries_kernel(Tables tables, const float* partial, int64_t parts, int64_t batch,
                       int64_t width, int second_from, float* out) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < batch * tables.dim;
       i += step) {
    const int64_t d = i % tables.dim;
    const int64_t column = d < tables.semantic.cols ? d : second_from + (d - tables.null_offset);
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) {
      sum += partial[(part * batch + i / tables.dim) * width + column];
    }
    out[i] = sum;
  }
}

template <class Tile>
Scan scan_of_kept(const Rows& kept, const Rows& passing, int slices) {
  Scan scan{};
  scan.queries = kept;
  scan.items = passing;
  scan.slices = slices;
  scan.resident = true;
  scan.query_tiles = ceil_div(kept.count, Tile::kQueries);
  scan.item_tiles = ceil_div(passing.count, Tile::kItems);
  keep_items<Tile>(scan);
  return scan;
}

// What passes by is in `tiles` for a Tile of warp groups.
template <template <class> class Epilogue, class Tile>
void enqueue_kept_scan(Launch& launch, const char* op, const Scan& scan, const void* tiles,
                       const typename Epilogue<Tile>::Arguments& arguments) {
  if constexpr (Tile::kWarpGroups) {
    enqueue_bulk_scan<Epilogue, Tile>(launch, op, scan, tiles, arguments);
  } else {
    enqueue_scan<Epilogue, Tile>(launch, op, scan, arguments);
  }
}

template <class Tile>
void backward(const Tables& tables, const float* queries, int64_t batch, const int64_t* targets,
              const float* maxima, const float* logs, const float* weights, float* grad_queries,
              float* grad_ids, Launch& launch) {
  const char* const op = "cross_entropy_backward";
  constexpr bool kInTiles = Tile::kWarpGroups;
  constexpr int64_t kFilled = kInTiles ? kLineBytes / sizeof(Element) : kSliceColumns;
  const Depth depth = depth_of<Element>(tables);
  const int64_t cols = tables.id.cols;
  const int64_t width = ceil_div(int64_t{depth.slices} * kSliceColumns, kFilled) * kFilled;
  const float* const inverse_norms = scratch_inverse_norms(launch, op, tables);
  Prepared prepared{nullptr, nullptr, batch, width, kInTiles};
  prepared.queries = launch.scratch<Element>((kInTiles ? prepared.whole_tiles() : batch) * width);
  prepared.softmax = launch.scratch<QuerySoftmax>(prepared.whole_tiles());
  if (!launch.measuring()) {
    enqueue(launch, op, prepare_kernel, grid_of(batch * width), kThreads, 0, tables, queries,
            targets, maxima, logs, weights, depth.second_from, prepared);
  }
  Rows query_rows = rows_of_queries<Element>(tables, depth, queries, DType::kFloat32, batch);
  if (!kInTiles) {
    query_rows.first = part_of<Element>(prepared.queries, dtype_of<Element>(), width, width);
    query_rows.second_from = kNoSecond;
  }

  if (grad_queries != nullptr) {
    const Strips strips(launch, tables, batch, INT64_MAX, kInTiles);
    const auto scan_of_strip = [&](const Tables& strip) {
      return scan_of_kept<Tile>(query_rows, rows_of_tables<Element>(strip, depth), depth.slices);
    };
    const int64_t parts = parts_for<Tile>(launch, scan_of_strip(strips.longest()));
    auto* const partial = launch.scratch<float>(parts * batch * width);
    if (!launch.measuring()) {
      for (int64_t first = 0; first < tables.rows; first += strips.length()) {
        Scan scan = scan_of_strip(strips.at(launch, op, first));
        scan.inverse_norms = norms_from(inverse_norms, first);
        scan.parts = parts;
        const auto run = [&](auto epilogue) {
          enqueue_kept_scan<decltype(epilogue)::template Epilogue, Tile>(
              launch, op, scan, strips.tiles(),
              {prepared.softmax, scan.inverse_norms, static_cast<int>(width), first, partial});
        };
        if (tables.cosine) {
          run(GradQueries<kMaxColumns, true>());
        } else {
          run(GradQueries<kMaxColumns, false>());
        }
      }
      enqueue(launch, op, sum_queries_kernel, grid_of(batch * tables.dim), kThreads, 0, tables,
              partial, parts, batch, width, depth.second_from, grad_queries);
    }
  }
  if (grad_ids != nullptr) {
    Scan scan =
        scan_of_kept<Tile>(rows_of_tables<Element>(tables, depth), query_rows, depth.slices);
    scan.parts = parts_for<Tile>(launch, scan);
    const int64_t partial_rows = scan.parts == 1 ? 0 : scan.parts * tables.rows;
    auto* const partial = launch.scratch<float>(partial_rows * cols);
    auto* const along = launch.scratch<float>(tables.cosine ? tables.rows : 0);
    auto* const partial_along = launch.scratch<float>(tables.cosine ? partial_rows : 0);
    if (launch.measuring()) return;
    // More columns than a thread has registers for are a second pass.
    for (int64_t first = 0; first < cols; first += kMaxNullColumns) {
      const int64_t from = depth.second_from + first;
      const int64_t begin = kInTiles ? min(from, width - kMaxNullColumns) : from;  // whole blocks
      const auto run = [&](auto epilogue) {
        enqueue_kept_scan<decltype(epilogue)::template Epilogue, Tile>(
            launch, op, scan, prepared.queries,
            {prepared.softmax, inverse_norms, static_cast<int>(begin),
             static_cast<int>(from - begin), static_cast<int>(min(cols - first, kMaxNullColumns)),
             (scan.parts == 1 ? grad_ids : partial) + first, cols,
             scan.parts == 1 ? along : partial_along});
      };
      if (tables.cosine) {
        run(GradIds<kMaxNullColumns, true>());
      } else {
        run(GradIds<kMaxNullColumns, false>());
      }
    }
    if (scan.parts != 1) {
      enqueue_sum_parts(launch, op, partial, scan.parts, tables.rows * cols, false, grad_ids);
      if (tables.cosine) {
        enqueue_sum_parts(launch, op, partial_along, scan.parts, tables.rows, false, along);
      }
    }
    if (tables.cosine) enqueue_through_norms(launch, op, tables, inverse_norms, along, grad_ids);
  }
}

}  // namespace

bool has_fused_backward(const Launch& launch, const Tables& tables) {
  return launch.precision() == Precision::kBFloat16 && !tables.add &&
         depth_of<Element>(tables).slices * kSliceColumns <= kMaxColumns &&
         tables.rows <= 0x7fffffff;
}

void fused_cross_entropy_backward(const Tables& tables, const float* queries, int64_t batch,
                                  const int64_t* targets, const float* maxima, const float* logs,
                                  const float* weights, float* grad_queries, float* grad_ids,
                                  Launch& launch) {
  const auto run = [&](auto with_wgmma) {
    if constexpr (decltype(with_wgmma)::value) {
      using Tile = WarpGroupTile<Precision::kBFloat16>;
      if (has_wgmma(launch) && scans_by_bulk<Tile>(tables, batch)) {
        return backward<Tile>(tables, queries, batch, targets, maxima, logs, weights, grad_queries,
                              grad_ids, launch);
      }
    }
    backward<FusedTile>(tables, queries, batch, targets, maxima, logs, weights, grad_queries,
                        grad_ids, launch);
  };
  run(std::bool_constant<kWgmma>());
}

}  // namespace cuda
}  // namespace alphafuse
