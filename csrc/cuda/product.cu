#include "cuda/norms.cuh"
#include "cuda/product.cuh"
#include "cuda/tile.cuh"

namespace alphafuse {
namespace cuda {
namespace {

// A tile of the result; its columns are those of the right factor.
template <Precision kPrecisionOfTile, bool kTransposedLeft, int kN8>
struct ProductTile : TileOf<kPrecisionOfTile, 4, 2, 2, kN8, 4> {
  using Base = TileOf<kPrecisionOfTile, 4, 2, 2, kN8, 4>;
  using Element = typename Base::Element;
  static constexpr bool kTransposed = kTransposedLeft;  // the left factor lies as (depth, rows)
  static constexpr int kM = Base::kQueries, kN = Base::kItems;
  static constexpr int kPiece = kPieceBytes / sizeof(Element);
  static constexpr int kDepth = kSliceBytes / sizeof(Element);  // of a stage
  // Between rows of (depth, ...): so that ldmatrix, or lanes that differ in depth and column, meet
  // different banks.
  static constexpr int kGap = sizeof(Element) == 4 ? 2 * kPieceBytes : kPieceBytes;
  static constexpr int kRightPitch = kN * sizeof(Element) + kGap;
  static constexpr int kLeftPitch =
      kTransposed ? kM * static_cast<int>(sizeof(Element)) + kGap : kSlicePitch;
  static constexpr int kLeftBytes = kLeftPitch * (kTransposed ? kDepth : kM);
  static constexpr int kRightBytes = kRightPitch * kDepth;

  using LeftLoader = Loader<Element, kTransposed ? kDepth : kM, Base::kThreads,
                            kTransposed ? kM / kPiece : kPiecesOfSlice, kLeftPitch>;
  using RightLoader = Loader<Element, kDepth, Base::kThreads, kN / kPiece, kRightPitch>;

  // Without tensor cores a thread has four neighbouring rows and columns at a time.
  static __device__ int row(int r) {
    return Base::kTensorCores ? Base::row(r)
                              : Base::warp_query() + r / 4 * 16 + Base::lane() / 8 * 4 + r % 4;
  }
  static __device__ int col(int c) {
    return Base::kTensorCores ? Base::col(c)
                              : Base::warp_item() + c / 4 * 32 + Base::lane() % 8 * 4 + c % 4;
  }
  static __device__ const Element* left(const unsigned char* stage, int m, int k) {
    return reinterpret_cast<const Element*>(stage + (kTransposed ? k : m) * kLeftPitch) +
           (kTransposed ? m : k);
  }
  static __device__ const Element* right(const unsigned char* stage, int k, int n) {
    return reinterpret_cast<const Element*>(stage + k * kRightPitch) + n;
  }
};

struct Product {
  Rows left, right;
  int64_t rows, cols, depth, parts;
  int64_t lists;       // of the transposed left factor, and of the right: `depth` rows for each
  int64_t right_cols;  // as they lie in the tiles, with the gap between the two tables
  float* out;          // (parts, lists, rows, cols)
  bool accumulate;

  // Of the result; -1 for a column of the gap.
  __device__ int64_t col(int64_t c) const {
    if (right.sum || c < right.first.cols) return c;
    const int64_t second = c - right.second_from;
    return second < 0 ? -1 : right.first.cols + second;
  }
};

template <class Tile>
struct ProductShared {
  __host__ __device__ explicit ProductShared(SharedMemoryArena& arena)
      : left(arena.take<unsigned char>(Tile::kLeftBytes * Tile::kStages)),
        right(arena.take<unsigned char>(Tile::kRightBytes * Tile::kStages)) {}

  unsigned char *left, *right;
};

// sums += left right over the depth of a stage.
template <class Tile>
__device__ inline void multiply(const unsigned char* left, const unsigned char* right,
                                float (&sums)[Tile::kRows][Tile::kCols]) {
  const int lane = Tile::lane(), first_row = Tile::warp_query(), first_col = Tile::warp_item();
  if constexpr (Tile::kTensorCores) {
    constexpr bool kTF32 = Tile::kPrecision == Precision::kTF32;
    constexpr int kStep = kTF32 ? 8 : 16;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += kStep) {
      uint32_t a[Tile::kRows / 2][4];
#pragma unroll
      for (int m = 0; m < Tile::kRows / 2; ++m) {
        const int row = first_row + 16 * m;
        if constexpr (kTF32) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[m][i] = to_tf32(__float_as_uint(
                *Tile::left(left, row + lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4)));
          }
        } else if constexpr (Tile::kTransposed) {
          load_matrices<4, true>(
              a[m], Tile::left(left, row + lane / 8 % 2 * 8, k + lane % 8 + lane / 16 * 8));
        } else {
          load_matrices(a[m], Tile::left(left, row + lane % 16, k + lane / 16 * 8));
        }
      }
#pragma unroll
      for (int n = 0; n < Tile::kCols / 2; n += 2) {
        uint32_t b[4];
        if constexpr (kTF32) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            b[i] = to_tf32(__float_as_uint(*Tile::right(right, k + lane % 4 + i % 2 * 4,
                                                        first_col + (n + i / 2) * 8 + lane / 4)));
          }
        } else {
          load_matrices<4, true>(b, Tile::right(right, k + lane % 8 + lane / 8 % 2 * 8,
                                                first_col + n * 8 + lane / 16 * 8));
        }
#pragma unroll
        for (int m = 0; m < Tile::kRows / 2; ++m) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float (&top)[Tile::kCols] = sums[2 * m];
            float (&bottom)[Tile::kCols] = sums[2 * m + 1];
            const int c = 2 * (n + j);
            mma<Tile::kPrecision>(top[c], top[c + 1], bottom[c], bottom[c + 1], a[m], b[2 * j],
                                  b[2 * j + 1]);
          }
        }
      }
    }
  } else {
#pragma unroll 4
    for (int k = 0; k < Tile::kDepth; ++k) {
      float a[Tile::kRows], b[Tile::kCols];
#pragma unroll
      for (int r = 0; r < Tile::kRows; r += 4) {
        const int row = first_row + r / 4 * 16 + lane / 8 * 4;
        if constexpr (Tile::kTransposed) {
          const float4 four = *reinterpret_cast<const float4*>(Tile::left(left, row, k));
          a[r] = four.x, a[r + 1] = four.y, a[r + 2] = four.z, a[r + 3] = four.w;
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[r + i] = *Tile::left(left, row + i, k);
        }
      }
#pragma unroll
      for (int c = 0; c < Tile::kCols; c += 4) {
        const float4 four = *reinterpret_cast<const float4*>(
            Tile::right(right, k, first_col + c / 4 * 32 + lane % 8 * 4));
        b[c] = four.x, b[c + 1] = four.y, b[c + 2] = four.z, b[c + 3] = four.w;
      }
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Tile::kCols; ++c) sums[r][c] = fmaf(a[r], b[c], sums[r][c]);
      }
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) product_kernel(Product product) {
  ALPHAFUSE_DYNAMIC_SHARED(shared);
  SharedMemoryArena arena(shared, shared_bytes);
  const ProductShared<Tile> memory(arena);
  const int64_t row_tiles = ceil_div(product.rows, Tile::kM);
  const int64_t col_tiles = ceil_div(product.right_cols, Tile::kN);
  const int64_t stages = ceil_div(product.depth, Tile::kDepth);

  const int64_t units = row_tiles * col_tiles * product.parts * product.lists;
  for (int64_t u = blockIdx.x; u < units; u += gridDim.x) {
    // Blocks that run side by side share what they read of the larger factor.
    const int64_t first_col = u % col_tiles * Tile::kN;
    const int64_t first_row = u / col_tiles % row_tiles * Tile::kM;
    const int64_t part = u / col_tiles / row_tiles % product.parts;
    const int64_t list = u / col_tiles / row_tiles / product.parts;
    const int64_t base = list * product.depth;  // of the list, in the depth
    Rows left = product.left, right = product.right;
    right.count = base + product.depth;
    if (Tile::kTransposed) left.count = right.count;
    const int64_t begin = stages * part / product.parts;
    const int64_t end = stages * (part + 1) / product.parts;

    typename Tile::LeftLoader left_loader;
    typename Tile::RightLoader right_loader;
    int next_stage = 0;
    const auto begin_fetch = [&](int64_t i) {
      if (i >= end) return;
      unsigned char* const to = memory.left + next_stage * Tile::kLeftBytes;
      if (Tile::kTransposed) {
        if (i != begin) left_loader.aim_next(left, base + i * Tile::kDepth);
        left_loader.begin(left, base + i * Tile::kDepth, first_row, to);
      } else {
        left_loader.begin(left, first_row, i * Tile::kDepth, to);
      }
      if (i != begin) right_loader.aim_next(right, base + i * Tile::kDepth);
      right_loader.begin(right, base + i * Tile::kDepth, static_cast<int>(first_col),
                         memory.right + next_stage * Tile::kRightBytes);
    };
    const auto end_fetch = [&](int64_t i) {
      if (i < end) {
        left_loader.end(memory.left + next_stage * Tile::kLeftBytes);
        right_loader.end(memory.right + next_stage * Tile::kRightBytes);
        if (++next_stage == Tile::kStages) next_stage = 0;
      }
      commit_copies();
    };

    left_loader.aim(left, Tile::kTransposed ? base + begin * Tile::kDepth : first_row);
    right_loader.aim(right, base + begin * Tile::kDepth);
    for (int i = 0; i < Tile::kStages - 1; ++i) {
      begin_fetch(begin + i);
      end_fetch(begin + i);
    }
    float sums[Tile::kRows][Tile::kCols] = {};
    int stage = 0;
#pragma unroll 1
    for (int64_t i = begin; i < end; ++i) {
      wait_copies<Tile::kStages - 2>();
      __syncthreads();  // stage i has come for all, and all are done with the one before it
      begin_fetch(i + Tile::kStages - 1);
      multiply<Tile>(memory.left + stage * Tile::kLeftBytes,
                     memory.right + stage * Tile::kRightBytes, sums);
      end_fetch(i + Tile::kStages - 1);
      if (++stage == Tile::kStages) stage = 0;
    }
    wait_copies<0>();
    __syncthreads();  // before the next unit writes to the stages

#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      const int64_t row = first_row + Tile::row(r);
      if (row >= product.rows) continue;
      float* const out =
          product.out + ((part * product.lists + list) * product.rows + row) * product.cols;
#pragma unroll
      for (int c = 0; c < Tile::kCols; ++c) {
        const int64_t col = product.col(first_col + Tile::col(c));
        if (col < 0 || col >= product.cols) continue;
        out[col] = product.accumulate ? out[col] + sums[r][c] : sums[r][c];
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* partial, int64_t parts, int64_t count, bool accumulate,
                     float* out) {
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < count; i += step) {
    float sum = accumulate ? out[i] : 0.0f;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * count + i];
    out[i] = sum;
  }
}

// From the gradient of a row divided by its norm to that of the row; see product.cuh.
__global__ void __launch_bounds__(kThreads)
    through_norms_kernel(Tables tables, const float* inverse_norms, const float* along,
                         float* out) {
  const int64_t cols = tables.id.cols, step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < tables.rows * cols;
       i += step) {
    const int64_t row = i / cols, column = tables.null_offset + i % cols;
    const float inverse = inverse_norms[row];
    const bool varies = inverse < 1.0f / kMinNorm;
    const float tangent = varies ? along[row] * fused(tables, row, column) * inverse : 0.0f;
    out[i] = inverse * (out[i] - tangent);
  }
}

template <class Tile>
void enqueue_tiles(Launch& launch, const char* op, const Product& product) {
  SharedMemoryArena arena;
  const ProductShared<Tile> memory(arena);
  const int64_t tiles = ceil_div(product.rows, Tile::kM) * ceil_div(product.right_cols, Tile::kN);
  enqueue(launch, op, product_kernel<Tile>, grid_of(tiles * product.parts * product.lists, 1),
          Tile::kThreads, arena.used(), product);
}

template <bool kTransposed>
void enqueue_product(Launch& launch, const char* op, Product product, bool accumulate,
                     float* partial, float* out) {
  if (product.lists * product.rows == 0) return;
  product.out = product.parts > 1 ? partial : out;
  product.accumulate = product.parts == 1 && accumulate;
  with_precision<false>(launch.precision(), [&](auto precision) {
    constexpr Precision kPrecision = decltype(precision)::value;
    if (product.right_cols > 64) {
      enqueue_tiles<ProductTile<kPrecision, kTransposed, 8>>(launch, op, product);
    } else {
      enqueue_tiles<ProductTile<kPrecision, kTransposed, 4>>(launch, op, product);
    }
  });
  if (product.parts == 1) return;
  enqueue_sum_parts(launch, op, partial, product.parts, product.lists * product.rows * product.cols,
                    accumulate, out);
}

// Calls act(Element{}) with the type that tiles hold.
template <class Act>
void with_element(Precision precision, Act&& act) {
  switch (precision) {
    case Precision::kBFloat16:
      return act(__nv_bfloat16{});
    case Precision::kFloat16:
      return act(__half{});
    default:
      return act(float{});
  }
}

ProductPlan plan(const Launch& launch, int64_t rows, int64_t cols, int64_t depth,
                 int64_t lists = 1) {
  constexpr int64_t kSide = 128, kMinDepth = kEmulated ? 16 : 512;
  const int64_t tiles = lists * ceil_div(rows, kSide) * ceil_div(cols, kSide);
  const int64_t parts = parts_of_waves(tiles, depth / kMinDepth, multiprocessors(launch));
  return {rows, cols, depth, max(1, parts), lists};
}

}  // namespace

void enqueue_sum_parts(Launch& launch, const char* op, const float* partial, int64_t parts,
                       int64_t count, bool accumulate, float* out) {
  enqueue(launch, op, sum_parts_kernel, grid_of(count), kThreads, 0, partial, parts, count,
          accumulate, out);
}

ProductPlan plan_grad_queries(const Launch& launch, const Tables& tables, int64_t batch) {
  return plan(launch, batch, tables.dim, tables.rows);
}

ProductPlan plan_grad_ids(const Launch& launch, const Tables& tables, int64_t batch) {
  return plan(launch, tables.rows, tables.id.cols, batch);
}

void enqueue_grad_queries(Launch& launch, const char* op, const ProductPlan& plan,
                          const Tables& tables, const Coefficients& coefficients,
                          const float* inverse_norms, float* partial, bool accumulate, float* out) {
  with_element(launch.precision(), [&](auto element) {
    using Element = decltype(element);
    constexpr int kPiece = kPieceBytes / sizeof(Element);
    Product product{};
    product.left.first =
        part_of<Element>(coefficients.data, coefficients.dtype, coefficients.stride, tables.rows);
    product.left.count = plan.rows;
    product.left.second_from = kNoSecond;
    const Depth columns{
        0,
        static_cast<int>(tables.add ? tables.null_offset
                                    : ceil_div(tables.semantic.cols, kPiece) * kPiece),
        tables.add};
    product.right = rows_of_tables<Element>(tables, columns);
    product.right.scale(inverse_norms);
    product.rows = plan.rows;
    product.cols = plan.cols;
    product.depth = plan.depth;
    product.parts = plan.parts;
    product.lists = 1;
    product.right_cols = tables.add ? tables.dim : columns.second_from + tables.id.cols;
    enqueue_product<false>(launch, op, product, accumulate, partial, out);
  });
}

void enqueue_grad_ids(Launch& launch, const char* op, const ProductPlan& plan, const Tables& tables,
                      const Coefficients& coefficients, const float* queries,
                      const float* inverse_norms, const float* along, float* partial, float* out) {
  enqueue_grad_entries(launch, op, plan, tables, coefficients, queries, partial, false, out);
  if (inverse_norms != nullptr) {
    enqueue_through_norms(launch, op, tables, inverse_norms, along, out);
  }
}

ProductPlan plan_grad_entries(const Launch& launch, const Tables& tables, int64_t lists,
                              int64_t queries, int64_t candidates) {
  return plan(launch, candidates, tables.id.cols, queries, lists);
}

void enqueue_grad_entries(Launch& launch, const char* op, const ProductPlan& plan,
                          const Tables& tables, const Coefficients& coefficients,
                          const float* queries, float* partial, bool accumulate, float* out) {
  with_element(launch.precision(), [&](auto element) {
    using Element = decltype(element);
    Product product{};
    product.left.first =
        part_of<Element>(coefficients.data, coefficients.dtype, coefficients.stride, plan.rows);
    product.left.second_from = kNoSecond;
    product.right.first =
        part_of<Element>(queries + tables.null_offset, DType::kFloat32, tables.dim, tables.id.cols);
    product.right.second_from = kNoSecond;
    product.rows = plan.rows;
    product.cols = product.right_cols = plan.cols;
    product.depth = plan.depth;
    product.parts = plan.parts;
    product.lists = plan.lists;
    enqueue_product<true>(launch, op, product, accumulate, partial, out);
  });
}

void enqueue_through_norms(Launch& launch, const char* op, const Tables& tables,
                           const float* inverse_norms, const float* along, float* out) {
  enqueue(launch, op, through_norms_kernel, grid_of(tables.rows * tables.id.cols), kThreads, 0,
          tables, inverse_norms, along, out);
}

}  // namespace cuda
}  // namespace alphafuse
