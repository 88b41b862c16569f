// Fused rows of given ids, and the gradient of the ID embeddings among them. A team of neighbouring
// lanes reads a row, each lane 16 bytes of the result at a time.
#include "cuda/grouping.cuh"
#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {
namespace {

template <class Element>
__global__ void __launch_bounds__(kThreads)
    lookup_kernel(Rows rows, int dim, int64_t first_id, const int64_t* ids, int64_t count,
                  int team_lanes, bool whole_pieces, Element* out) {
  constexpr int kPiece = kPieceBytes / sizeof(Element);
  const int team = static_cast<int>(threadIdx.x) / team_lanes;
  const int lane = static_cast<int>(threadIdx.x) % team_lanes;
  const int64_t teams = kThreads / team_lanes;
  for (int64_t i = teams * blockIdx.x + team; i < count; i += teams * gridDim.x) {
    const int64_t row = ids[i] - first_id;
    const bool there = row >= 0 && row < rows.count;
    for (int column = lane * kPiece; column < dim; column += team_lanes * kPiece) {
      Piece<Element> piece;
      if (there) {
        float values[kPiece];
        read_fused(rows, row, column, values);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) piece.elements[j] = from_float<Element>(values[j]);
      }
      Element* const to = out + i * int64_t{dim} + column;
      if (whole_pieces) {
        *reinterpret_cast<uint4*>(to) = piece.bits;
      } else {
#pragma unroll
        for (int j = 0; j < kPiece; ++j) {
          if (column + j < dim) to[j] = piece.elements[j];
        }
      }
    }
  }
}

template <class Element>
void enqueue_lookup(Launch& launch, const Tables& tables, const int64_t* ids, int64_t count,
                    void* out) {
  constexpr int kPiece = kPieceBytes / sizeof(Element);
  const Rows rows = rows_of_columns<Element>(tables);
  int team = 1;
  while (team < kWarpLanes && team * kPiece < tables.dim) team *= 2;
  const bool whole_pieces =
      tables.dim % kPiece == 0 && reinterpret_cast<uintptr_t>(out) % kPieceBytes == 0;
  enqueue(launch, "lookup", lookup_kernel<Element>, grid_of(count, kThreads / team), kThreads, 0,
          rows, static_cast<int>(tables.dim), tables.first_id, ids, count, team, whole_pieces,
          static_cast<Element*>(out));
}

// The null columns of the gradient of looked up rows.
struct NullColumns {
  Part part;

  __device__ void read(int64_t entry, int64_t column, float (&values)[kColsOfLane]) const {
    cuda::read(part, entry, column, values);
  }
};

}  // namespace

void lookup(const Tables& tables, Array<const int64_t, kCount> ids,
            FloatArray<void, kCount, kDim> out, Launch& launch) {
  const int64_t count = ids.size[0];
  if (launch.measuring() || count == 0) return;
  switch (out.dtype) {
    case DType::kBFloat16:
      return enqueue_lookup<__nv_bfloat16>(launch, tables, ids, count, out);
    case DType::kFloat16:
      return enqueue_lookup<__half>(launch, tables, ids, count, out);
    default:
      return enqueue_lookup<float>(launch, tables, ids, count, out);
  }
}

void lookup_backward(FloatArray<const void, kCount, kDim> grad, const Groups& groups,
                     Array<float, kGradRows, kNullDim> out, Launch& launch) {
  const int64_t dim = grad.size[1], cols = out.size[1];
  auto* const partial = launch.scratch<float>(scratch_of_sums(groups, cols));
  if (launch.measuring()) return;
  const auto* const first =
      static_cast<const unsigned char*>(grad.data) + (dim - cols) * size_of(grad.dtype);
  const NullColumns source{part_of<float>(first, grad.dtype, dim, cols)};
  enqueue_sums(launch, "lookup_backward", groups, source, cols, partial, out);
}

}  // namespace cuda
}  // namespace alphafuse
