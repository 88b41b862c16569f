// Fused rows of given ids, and the gradient of the ID embeddings among them.
#include "cpu/convert.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {
constexpr int64_t kRowsOfTask = 256;
}

void lookup(const Tables& tables, const int64_t* ids, int64_t count, void* out, DType dtype,
            int threads) {
  const int64_t dim = tables.dim;
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
      narrow(row, dim, out, dtype, i * dim);
    }
  };
  parallel(ceil_div(count, kRowsOfTask), threads, body);
}

void lookup_backward(const void* grad, DType dtype, int64_t dim, int64_t cols,
                     const Groups& groups, int64_t first_id, bool dense, float* out, int threads) {
  auto body = [&](int64_t task) {
    const int64_t end = least(groups.count, (task + 1) * kRowsOfTask);
    for (int64_t g = task * kRowsOfTask; g < end; ++g) {
      float* sum = out + (dense ? groups.ids[g] - first_id : g) * cols;
      clear(sum, cols);
      for (int64_t e = groups.offsets[g]; e < groups.offsets[g + 1]; ++e) {
        const int64_t begin = groups.entries[e] * dim + dim - cols;
        widen(grad, dtype, begin, cols, sum, true);
      }
    }
  };
  parallel(ceil_div(groups.count, kRowsOfTask), threads, body);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
