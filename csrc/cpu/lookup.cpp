// Fused rows of given ids, and the gradient of the ID embeddings among them.
#include "cpu/convert.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {
constexpr int64_t kRowsOfTask = 256;
}

void lookup(const Tables& tables, Array<const int64_t, kCount> ids,
            FloatArray<void, kCount, kDim> out, int threads) {
  const int64_t count = ids.size[0], dim = tables.dim;
  auto body = [&](int64_t task) {
    const Buffer<float> row(dim);
    const int64_t end = least(count, (task + 1) * kRowsOfTask);
    for (int64_t i = task * kRowsOfTask; i < end; ++i) {
      const int64_t local = ids[i] - tables.first_id;
      if (local >= 0 && local < tables.rows) {
        fuse_row(tables, local, row);
      } else {
        clear(row, dim);
      }
      narrow(row, dim, out, out.dtype, i * dim);
    }
  };
  parallel(ceil_div(count, kRowsOfTask), threads, body);
}

void lookup_backward(FloatArray<const void, kCount, kDim> grad, const Groups& groups,
                     Array<float, kGradRows, kNullDim> out, int threads) {
  const int64_t dim = grad.size[1], cols = out.size[1];
  auto body = [&](int64_t task) {
    const int64_t end = least(groups.count, (task + 1) * kRowsOfTask);
    for (int64_t g = task * kRowsOfTask; g < end; ++g) {
      float* sum = out + row_of(groups, g) * cols;
      clear(sum, cols);
      for (int64_t e = groups.offsets[g]; e < groups.offsets[g + 1]; ++e) {
        const int64_t begin = groups.entries[e] * dim + dim - cols;
        widen(grad, grad.dtype, begin, cols, sum, true);
      }
    }
  };
  parallel(ceil_div(groups.count, kRowsOfTask), threads, body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
