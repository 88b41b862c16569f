// Softmax cross entropy over the whole catalog: a running (maximum, sum of exponentials) for each
// query forward, scores computed again backward.
//
// Many queries go through the catalog in strips (strips.cuh). Backward in bfloat16 is
// cross_entropy_fused.cu, where it can be. Else the coefficients of a strip, the gradients of its scores,
// are written out, and multiplied by items and by queries (product.cuh): it has as many items as
// kCoefficientBytes allow, and at least kStripStep.
//
//   FLOPs   forward 2 * batch * rows * dim; backward as much again for the scores, as much for the
//           gradient of the queries, and null_dim / dim of it for that of the ID embeddings
//   Bytes   forward the tables once for each tile of 128 queries, from the cache where these run side
//           by side; backward that too, and each coefficient written once and read once by either
//           product, from the cache as far as a strip fits in it
//
// Scratch memory, in floats of 4 bytes, with `tiles` of 128 queries, or of 16 where there are no more:
//
//   forward    2 * batch * parts of the catalog; parts * tiles is at most one for each block that the
//              device runs at once, and `tiles` more
//   backward   batch * strip coefficients, of 2 bytes each in bfloat16: at most kCoefficientBytes, or
//              what kStripStep items take; for each of the two products on a strip the parts of its
//              result: one of its tiles of 128 x 128 for each multiprocessor, and as many as it has
//   strips     see strips.cuh
//   cosine     rows; backward with gradients of the ID embeddings strip * (1 + tiles) more
#include "cuda/bulk_scan.cuh"
#include "cuda/cross_entropy_fused.cuh"
#include "cuda/norms.cuh"
#include "cuda/product.cuh"
#include "cuda/strips.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

// --- Forward --------------------------------------------------------------------------------------

// Of some scores: the sum is that of exp(score - maximum). NaN is no maximum, and shows in the sum.
struct Softmax {
  float maximum, sum;
};

// What to subtract: where all scores are -inf their exponentials are 0.
__device__ inline float shift_of(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

__device__ inline float rescaled(const Softmax& softmax, float maximum) {
  return softmax.maximum == maximum ? softmax.sum
                                    : softmax.sum * fast_exp(softmax.maximum - maximum);
}

__device__ inline Softmax merged(const Softmax& a, const Softmax& b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  return {maximum, rescaled(a, maximum) + rescaled(b, maximum)};
}

// Each thread's own over its columns, merged when a part of the catalog ends.
template <class Tile>
struct RunningSoftmax {
  struct Arguments {
    Softmax* out;  // (parts, batch)
    bool goes_on;  // from what is there, of the strips before
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena& arena, const Arguments&)
        : of_warps(arena.take<Softmax>(
              Tile::kItemWarps == 1 ? 0 : int64_t{Tile::kItemWarps} * Tile::kQueries)) {}
    Softmax* of_warps;
  };

  __device__ RunningSoftmax(const Arguments& given, const Shared& shared)
      : arguments(given), of_warps(shared.of_warps) {}

  __device__ void begin(const Unit&) {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      softmax[r] = {-INFINITY, 0.0f};
      lost[r] = 0.0f;
    }
  }

  __device__ void visit_tile(const Unit&, Scores<Tile>& scores) {
    if (scores.items < Tile::kItems) {
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (scores.is_item(c)) continue;
#pragma unroll
        for (int r = 0; r < Tile::kRows; ++r) scores.at[r][c] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      float maximum = softmax[r].maximum;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) maximum = fmaxf(maximum, scores.at[r][c]);
      if (maximum > softmax[r].maximum) {
        const float scale = fast_exp(softmax[r].maximum - maximum);
        softmax[r] = {maximum, softmax[r].sum * scale};
        lost[r] *= scale;
      }
      const float shift = shift_of(maximum);
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) sum += fast_exp(scores.at[r][c] - shift);
      // What the last addition rounded off is made up for, so that a million terms lose nothing.
      sum -= lost[r];
      const float total = softmax[r].sum + sum;
      lost[r] = (total - softmax[r].sum) - sum;
      softmax[r].sum = total;
    }
  }

  __device__ void end(const Unit& unit) {
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      Softmax own = softmax[r];
#pragma unroll
      for (int bit = 1; bit < Tile::kLanesOfRow; bit *= 2) {
        own = merged(own, {__shfl_xor_sync(kAllLanes, own.maximum, bit),
                           __shfl_xor_sync(kAllLanes, own.sum, bit)});
      }
      if (Tile::lane() % Tile::kLanesOfRow != 0) continue;
      if constexpr (Tile::kItemWarps == 1) {
        write(unit, Tile::row(r), own);
      } else {
        of_warps[Tile::warp() % Tile::kItemWarps * Tile::kQueries + Tile::row(r)] = own;
      }
    }
    if (Tile::kItemWarps == 1) return;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kQueries; i += Tile::kThreads) {
      Softmax all = of_warps[i];
      for (int w = 1; w < Tile::kItemWarps; ++w) {
        all = merged(all, of_warps[w * Tile::kQueries + i]);
      }
      write(unit, i, all);
    }
  }

  __device__ void write(const Unit& unit, int row, const Softmax& all) const {
    if (unit.first_query + row >= unit.batch) return;
    Softmax& out = arguments.out[unit.part * unit.batch + unit.first_query + row];
    out = arguments.goes_on ? merged(out, all) : all;
  }

  Arguments arguments;
  Softmax* of_warps;
  Softmax softmax[Tile::kRows];
  float lost[Tile::kRows];
};

// partial (parts, batch), in the order of the parts.
__global__ void __launch_bounds__(kThreads)
    merge_softmax_kernel(const Softmax* partial, int64_t parts, int64_t batch, float* maxima,
                         float* logs) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t b = int64_t{kThreads} * blockIdx.x + threadIdx.x; b < batch; b += step) {
    Softmax all{-INFINITY, 0.0f};
    for (int64_t part = 0; part < parts; ++part) all = merged(all, partial[part * batch + b]);
    maxima[b] = all.maximum;
    logs[b] = logf(all.sum);
  }
}

// --- Backward -------------------------------------------------------------------------------------

constexpr int64_t kCoefficientBytes = kEmulated ? 32 << 10 : 64 << 20;  // of a strip

// float16 has no room for probabilities: its coefficients are float32, and their products TF32, whose
// range is that of float32 and whose mantissa that of float16.
template <Precision precision>
struct CoefficientFor {
  using Type = float;
};
template <>
struct CoefficientFor<Precision::kBFloat16> {
  using Type = __nv_bfloat16;
};

// weight * (softmax - [item is the target]), 0 for a weight of 0; and, for cosine, each item's sum
// over queries of that times score (see product.cuh).
template <class Tile>
struct WriteCoefficients {
  using Coefficient = typename CoefficientFor<Tile::kPrecision>::Type;
  struct Query {
    float weight = 0.0f, maximum = 0.0f, log = 0.0f;
    int64_t target = 0;  // from the first item of the tile
  };
  struct Arguments {
    const int64_t* targets;
    int64_t first_id;  // of the strip
    const float *maxima, *logs, *weights;
    Coefficient* out;  // (batch, stride)
    int64_t stride;    // whole tiles
    float* along;      // (tiles of queries, rows); null: not wanted
  };
  struct Shared {
    __host__ __device__ Shared(SharedMemoryArena& arena, const Arguments&) : sums(arena) {}
    ColumnSums<Tile> sums;
  };

  __device__ WriteCoefficients(const Arguments& given, const Shared& shared)
      : arguments(given), column_sums(shared.sums) {}
  __device__ void begin(const Unit&) {}
  __device__ void end(const Unit&) {}

  __device__ void visit_tile(const Unit& unit, const Scores<Tile>& scores) {
    Query queries[Tile::kRows];  // read at once, so that it is waited for once
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      const int64_t b = unit.first_query + Tile::row(r);
      if (!scores.is_query(r)) continue;
      queries[r] = {arguments.weights[b], arguments.maxima[b], arguments.logs[b],
                    arguments.targets[b] - arguments.first_id - scores.first_item};
    }
    float sums[Tile::kCols] = {};
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      float coefficients[Tile::kCols] = {};
      const Query& query = queries[r];
      if (query.weight != 0.0f) {
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) {
          const float score = scores.at[r][c];
          coefficients[c] = query.weight * fast_exp((score - query.maximum) - query.log);
        }
        if (query.target >= 0 && query.target < Tile::kItems) {
#pragma unroll
          for (int c = 0; c < Tile::kCols; ++c) {
            if (Tile::col(c) == static_cast<int>(query.target)) coefficients[c] -= query.weight;
          }
        }
        if (arguments.along != nullptr) {
#pragma unroll
          for (int c = 0; c < Tile::kCols; ++c) {
            sums[c] = fmaf(coefficients[c], scores.at[r][c], sums[c]);
          }
        }
      }
      const int64_t b = unit.first_query + Tile::row(r);
      write(coefficients, scores.is_query(r),
            arguments.out + b * arguments.stride + scores.first_item);
    }
    if (arguments.along != nullptr) {
      column_sums.write(
          sums, scores.items,
          arguments.along + unit.first_query / Tile::kQueries * unit.rows + scores.first_item);
    }
  }

  // A row of the tile, those of no item as well; all lanes call. Each writes as many bytes at once as
  // it can, so that a row's lanes fill whole sectors of memory.
  static __device__ void write(const float (&coefficients)[Tile::kCols], bool is_query,
                               Coefficient* row) {
    if constexpr (sizeof(Coefficient) == 2) {
      const int odd = Tile::lane() % 2;
#pragma unroll
      for (int c = 0; c < Tile::kCols; c += 4) {  // neighbours trade pairs: four columns each
        const uint32_t first = pack_bfloat16(coefficients[c], coefficients[c + 1]);
        const uint32_t second = pack_bfloat16(coefficients[c + 2], coefficients[c + 3]);
        const uint32_t traded = __shfl_xor_sync(kAllLanes, odd ? first : second, 1);
        const uint2 four = odd ? uint2{traded, second} : uint2{first, traded};
        if (is_query) *reinterpret_cast<uint2*>(row + Tile::col(c) + 6 * odd) = four;
      }
    } else if constexpr (Tile::kTensorCores) {
#pragma unroll
      for (int c = 0; c < Tile::kCols; c += 2) {
        const float2 two{coefficients[c], coefficients[c + 1]};
        if (is_query) *reinterpret_cast<float2*>(row + Tile::col(c)) = two;
      }
    } else {
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        if (is_query) row[Tile::col(c)] = coefficients[c];
      }
    }
  }

  Arguments arguments;
  ColumnSums<Tile> column_sums;
};

}  // namespace

void log_sum_exp(const Tables& tables, Array<const float, kBatch, kDim> queries,
                 Array<float, kBatch> maxima, Array<float, kBatch> logs, Launch& launch) {
  const char* const op = "log_sum_exp";
  const int64_t batch = queries.size[0];
  const float* const inverse_norms = scratch_inverse_norms(launch, op, tables);
  with_tile<false>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    const bool by_bulk = scans_by_bulk<Tile>(tables, batch);
    const Strips strips(launch, tables, batch, INT64_MAX, by_bulk);
    const auto scan_of_strip = [&](const Tables& strip, int64_t first) {
      return scan_of<Tile>(strip, queries, DType::kFloat32, batch,
                           norms_from(inverse_norms, first));
    };
    const int64_t parts =
        parts_for<Tile>(launch, scan_of_strip(strips.longest(), 0),
                        by_bulk ? kBulkBlocks<RunningSoftmax<Tile>> : Tile::kBlocks);
    auto* const partial = launch.scratch<Softmax>(parts * batch);
    if (launch.measuring()) return;
    for (int64_t first = 0; first < tables.rows; first += strips.length()) {
      Scan scan = scan_of_strip(strips.at(launch, op, first), first);
      scan.parts = parts;
      if constexpr (Tile::kWarpGroups) {
        if (by_bulk) {
          enqueue_bulk_scan<RunningSoftmax, Tile>(launch, op, scan, strips.tiles(),
                                                  {partial, first > 0});
          continue;
        }
      }
      enqueue_scan<RunningSoftmax, Tile>(launch, op, scan, {partial, first > 0});
    }
    enqueue(launch, op, merge_softmax_kernel, grid_of(batch), kThreads, 0, partial, parts, batch,
            maxima, logs);
  });
}

void cross_entropy_backward(const Tables& tables, Array<const float, kBatch, kDim> queries,
                            Array<const int64_t, kBatch> targets, Array<const float, kBatch> maxima,
                            Array<const float, kBatch> logs, Array<const float, kBatch> weights,
                            Optional<Array<float, kBatch, kDim>> grad_queries,
                            Optional<Array<float, kItems, kNullDim>> grad_ids, Launch& launch) {
  if (grad_queries == nullptr && grad_ids == nullptr) return;
  if (has_fused_backward(launch, tables)) {
    return fused_cross_entropy_backward(tables, queries, queries.size[0], targets, maxima, logs,
                                        weights, grad_queries, grad_ids, launch);
  }
  const char* const op = "cross_entropy_backward";
  const int64_t batch = queries.size[0];
  const float* const inverse_norms = scratch_inverse_norms(launch, op, tables);
  with_tile<false>(launch, batch, [&](auto tile) {
    using Tile = decltype(tile);
    using Coefficient = typename WriteCoefficients<Tile>::Coefficient;
    const Strips strips(launch, tables, batch,
                        kCoefficientBytes / (max(1, batch) * int64_t{sizeof(Coefficient)}));
    const int64_t length = strips.length();
    auto* const coefficients = launch.scratch<Coefficient>(batch * length);
    ProductPlan query_plan = plan_grad_queries(launch, strips.longest(), batch);
    ProductPlan id_plan = plan_grad_ids(launch, strips.longest(), batch);
    auto* const query_partial = launch.scratch<float>(grad_queries ? query_plan.partial() : 0);
    auto* const id_partial = launch.scratch<float>(grad_ids ? id_plan.partial() : 0);
    const int64_t query_tiles = ceil_div(batch, Tile::kQueries);
    const bool needs_along = tables.cosine && grad_ids != nullptr;
    auto* const along = launch.scratch<float>(needs_along ? length : 0);
    auto* const along_of_tiles = launch.scratch<float>(needs_along ? query_tiles * length : 0);
    if (launch.measuring()) return;

    Launch products(launch.device(), launch.stream(),
                    Tile::kPrecision == Precision::kFloat16 ? Precision::kTF32 : Tile::kPrecision);
    const Coefficients left{coefficients, dtype_of<Coefficient>(), length};
    for (int64_t first = 0; first < tables.rows; first += length) {
      const Tables part = rows_of(tables, first, min(length, tables.rows - first));
      const Tables strip = strips.at(launch, op, first);
      const float* const part_norms = norms_from(inverse_norms, first);
      Scan scan = scan_of<Tile>(strip, queries, DType::kFloat32, batch, part_norms);
      scan.parts = parts_for<Tile>(launch, scan);
      enqueue_scan<WriteCoefficients, Tile>(
          launch, op, scan,
          {targets, part.first_id, maxima, logs, weights, coefficients, length,
           needs_along ? along_of_tiles : nullptr});
      if (grad_queries != nullptr) {
        query_plan.depth = part.rows;
        // Sums and quotients of rows are rounded themselves, not made of what is rounded.
        const bool as_scanned =
            Tile::kPrecision == Precision::kBFloat16 && !tables.add && !tables.cosine;
        enqueue_grad_queries(products, op, query_plan, as_scanned ? strip : part, left, part_norms,
                             query_partial, first > 0, grad_queries);
      }
      if (grad_ids != nullptr) {
        if (needs_along) {
          enqueue_sum_parts(launch, op, along_of_tiles, query_tiles, part.rows, false, along);
        }
        id_plan.rows = part.rows;
        enqueue_grad_ids(products, op, id_plan, part, left, queries, part_norms, along, id_partial,
                         grad_ids + first * tables.id.cols);
      }
    }
  });
}

}  // namespace cuda
}  // namespace alphafuse
