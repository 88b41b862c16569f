#include "cpu/first_pass.h"

#include "cpu/dispatch.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

FirstPass::Side::Side(const Table& table, int64_t batch, int64_t bytes_of_number)
    : cols(padded_cols(table.cols)),
      bytes(bytes_of_number),
      numbers(batch * cols * bytes),
      sums(batch) {
  for (int64_t i = 0; i < batch * cols * bytes; ++i) numbers[i] = 0;
  for (int64_t b = 0; b < batch; ++b) sums[b] = 0;
}

void FirstPass::Side::set(int64_t b, int64_t d, int16_t number) const {
  sums[b] += number;
  if (bytes == 1) {
    numbers[b * cols + d] = static_cast<int8_t>(number);
  } else {
    const bool in_the_middle = d % 4 == 1 || d % 4 == 2;
    __builtin_memcpy(numbers + (b * cols + (in_the_middle ? d ^ 3 : d)) * 2, &number, 2);
  }
}

FirstPass::FirstPass(const Tables& tables, const Compressed& compressed, const float* queries,
                     int64_t batch, int64_t max_items)
    : tables_(tables),
      compressed_(compressed),
      product_(*kernels().integer_product),
      semantic_(tables.semantic, batch, product_.bytes),
      id_(tables.id, batch, product_.bytes),
      units_(batch),
      norms_(batch),
      slacks_(batch),
      residuals_(max_items),
      sizes_(max_items),
      lower_(max_items) {
  const int64_t dim = tables.dim;
  // Sums of dim products stay below 2^31.
  const float fitting = 0x1p31f / product_.max_product / static_cast<float>(dim);
  const float max_number = fitting < product_.max_number ? fitting : product_.max_number;
  const float rounding = static_cast<float>(dim + 16) * 0x1p-23f;
  for (int64_t b = 0; b < batch; ++b) {
    const float* query = queries + b * dim;
    float largest = 0.0f;
    bool finite = true;
    for (int64_t d = 0; d < dim; ++d) {
      const float size = query[d] < 0.0f ? -query[d] : query[d];
      finite = finite && size <= 0x1.fffffep127f;
      largest = size > largest ? size : largest;
    }
    const bool coded = finite && largest >= 1e-30f;
    const float unit = coded ? largest / max_number : 0.0f;
    double square = 0.0, off = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      const float nearest = coded ? __builtin_rintf(query[d] / largest * max_number) : 0.0f;
      const int16_t number = static_cast<int16_t>(nearest);
      if (d < tables.semantic.cols) semantic_.set(b, d, number);
      if (d >= tables.null_offset) id_.set(b, d - tables.null_offset, number);
      const double x = query[d];
      const double error = x - static_cast<double>(unit) * static_cast<double>(nearest);
      square += x * x;
      off += error * error;
    }
    units_[b] = unit;
    norms_[b] = finite ? static_cast<float>(__builtin_sqrt(square)) * 1.00001f : __builtin_inff();
    slacks_[b] = static_cast<float>(__builtin_sqrt(off)) * 1.00001f + rounding * norms_[b];
  }
}

void FirstPass::read(int64_t first, int64_t count) {
  first_ = first;
  count_ = count;
  const CompressedTable& semantic = compressed_.semantic;
  const CompressedTable& id = compressed_.id;
  // Each array is read a short way at a time, which the processor does not foresee.
  const auto prefetch_next = [&](const CompressedTable& table, int64_t i) {
    if (table.codes == nullptr) return;
    for (const float* bounds : {table.scales, table.residuals, table.norms}) {
      __builtin_prefetch(bounds + first + count + i);
    }
  };
  for (int64_t i = 0; i < padded(count); i += kLanes) {
    prefetch_next(semantic, i);
    prefetch_next(id, i);
    Vec residual = {}, size = {};
    if (semantic.codes != nullptr) {
      residual = load(semantic.residuals + first + i);
      size = load(semantic.norms + first + i);
    }
    if (id.codes != nullptr) {
      const Vec other = load(id.residuals + first + i);
      // Added residuals may point the same way; beside each other they are at a right angle.
      const Vec sum = residual + other;
      Vec side = sum;
      for (int64_t l = 0; l < kLanes && !tables_.add; ++l) {
        side[l] = __builtin_sqrtf(residual[l] * residual[l] + other[l] * other[l]) * 1.00001f;
      }
      // Squares that overflow or underflow give no bound: the sum does.
      residual = side > 1e-15f ? (side < 1e15f ? side : sum) : sum;
      size += load(id.norms + first + i);
    }
    if (tables_.cosine) {
      // Padded like the other arrays.
      const Vec inverse = load(compressed_.inverse_norms + first + i);
      residual *= inverse;
      size *= inverse;
    }
    store(residuals_ + i, residual);
    store(sizes_ + i, size);
  }
}

void FirstPass::multiply(const Side& side, const CompressedTable& table, int64_t b, int64_t count,
                         float* approximate, int64_t stride, bool add) const {
  const IntegerQueries queries = {side.numbers + b * side.cols * side.bytes, side.cols,
                                  side.sums + b, units_ + b};
  product_.run(table, side.cols, tables_.cosine ? compressed_.inverse_norms : nullptr, first_,
               count_, queries, count, approximate, stride, add);
}

void FirstPass::score(int64_t b, int64_t count, float* approximate, int64_t stride) const {
  const bool both = semantic_.cols > 0 && id_.cols > 0;
  if (semantic_.cols > 0) {
    multiply(semantic_, compressed_.semantic, b, count, approximate, stride, false);
  }
  if (id_.cols > 0) multiply(id_, compressed_.id, b, count, approximate, stride, both);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
