// Fused rows of given ids, and the gradient of the ID embeddings among them.
#include "cpu/convert.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {
constexpr int64_t kRowsOfTask = 256;
constexpr int64_t kGathering = 8;  // a number of a row somewhere, beside a multiply-add
constexpr int64_t kAhead = 4;      // rows between that being read and that being asked for

// The processor foresees no order of ids.
ALPHAFUSE_INLINE void prefetch(const Tables& tables, int64_t row) {
  if (row < 0 || row >= tables.rows) return;
  prefetch_row(tables.semantic, row * tables.semantic.stride);
  prefetch_row(tables.id, row * tables.id.stride);
}

}  // namespace

void lookup(const Tables& tables, Array<const int64_t, kCount> ids,
            FloatArray<void, kCount, kDim> out, int threads) {
  const int64_t count = ids.size[0], dim = tables.dim;
  const bool narrows = out.dtype != DType::kFloat32;
  auto body = [&](int64_t task) {
    const Buffer<float> narrowed(narrows ? dim : 0);
    const int64_t end = min(count, (task + 1) * kRowsOfTask);
    for (int64_t i = task * kRowsOfTask; i < end; ++i) {
      if (i + kAhead < end) prefetch(tables, ids[i + kAhead] - tables.first_id);
      float* const row =
          narrows ? narrowed : static_cast<float*>(static_cast<void*>(out)) + i * dim;
      const int64_t local = ids[i] - tables.first_id;
      if (local >= 0 && local < tables.rows) {
        fuse_row(tables, local, row);
      } else {
        clear(row, dim);
      }
      if (narrows) narrow(row, dim, out, out.dtype, i * dim);
    }
  };
  parallel(ceil_div(count, kRowsOfTask), threads_for(count * dim * kGathering, threads), body);
}

void lookup_backward(FloatArray<const void, kCount, kDim> grad, const Groups& groups,
                     Array<float, kGradRows, kNullDim> out, int threads) {
  const int64_t dim = grad.size[1], cols = out.size[1];
  const int64_t entries = groups.offsets[groups.count];
  const Table rows{grad.data, grad.dtype, dim, cols};
  auto body = [&](int64_t task) {
    const int64_t end = min(groups.count, (task + 1) * kRowsOfTask);
    for (int64_t g = task * kRowsOfTask; g < end; ++g) {
      float* sum = out + row_of(groups, g) * cols;
      clear(sum, cols);
      for (int64_t e = groups.offsets[g]; e < groups.offsets[g + 1]; ++e) {
        if (e + kAhead < entries) prefetch_row(rows, groups.entries[e + kAhead] * dim + dim - cols);
        const int64_t begin = groups.entries[e] * dim + dim - cols;
        widen(grad, grad.dtype, begin, cols, sum, true);
      }
    }
  };
  threads = threads_for(grad.size[0] * cols * kGathering, threads);
  parallel(ceil_div(groups.count, kRowsOfTask), threads, body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
