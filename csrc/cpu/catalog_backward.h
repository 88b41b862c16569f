// The backward pass of an op that scores the whole catalog, without a (batch, rows) array.
//
// Scores are computed again, tile by tile, and turned into the gradient of each score, c[b][i].
// Then the gradient of the queries is  sum_i c[b][i] t_i  over the fused rows t, and that of the ID
// embeddings  sum_b c[b][i] q_b[null columns]: only null_dim / dim of a product.
#pragma once

#include "cpu/scan.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

// The null columns of the queries as the second operand of a product over them: a row of
// row_stride(null_dim) for each step.
template <class T>
void copy_null_columns(const Tables& tables, const float* queries, int64_t batch, T* out) {
  const int64_t cols = tables.id.cols, row = row_stride(cols);
  const auto copy_to = [&](int64_t b, float* to) {
    clear(to + cols, row - cols);
    if (b < batch) copy(to, queries + b * tables.dim + tables.null_offset, cols);
    if (b >= batch) clear(to, cols);
  };
  if constexpr (kIsPair<T>) {
    const Buffer<float> pair(2 * row);
    for (int64_t b = 0; b < batch; b += 2) {
      copy_to(b, pair);
      copy_to(b + 1, pair + row);
      pair_rows(pair, pair + row, padded(cols), out + b / 2 * row);
    }
  } else {
    for (int64_t b = 0; b < batch; ++b) copy_to(b, out + b * row);
  }
}

// The gradient of one ID embedding from that of its fused row's null columns.
//
// With cosine the row enters as t = v / |v|, and d v = (g - (g . t) t) / |v|; `along` is g . t, the
// sum of gradient times score over the queries. A clamped norm is a constant: no second term.
template <class T>
void write_id_gradient(const Tables& tables, const Tile<T>& tile, int64_t i, const float* grad,
                       float along, float* out, bool add = false) {
  const int64_t cols = tables.id.cols;
  const auto write = [&](const auto& value) {
    for (int64_t j = 0; j < cols; ++j) out[j] = add ? out[j] + value(j) : value(j);
  };
  if (!tables.cosine) return write([&](int64_t j) { return grad[j]; });
  const float inverse = tile.inverse_norm(i);
  const float projected = tile.norm_varies(i) ? along : 0.0f;
  const float* row = tile.row(i) + tables.null_offset;
  write([&](int64_t j) { return inverse * (grad[j] - projected * row[j]); });
}

// Maximum number of floats for separate query gradients of each part: 32 MiB. More queries are
// processed in chunks, each of which reads the catalog again, which is cheap beside the products.
constexpr int64_t kMaxPartial = 8 << 20;

// catalog_backward for a chunk of queries, which `operand` has in the precision of the products.
template <class T, class Coefficients>
void catalog_backward_turn(const Tables& tables, const float* queries, const T* operand,
                           int64_t batch, float* grad_queries, float* grad_ids, bool add_to_ids,
                           int threads, const Coefficients& coefficients) {
  const int64_t parts = parts_for_sums(tables);
  const Blocking block = blocking_of<T>(tables.dim);
  const int64_t dim = tables.dim, row = row_stride(dim);
  const int64_t cols = tables.id.cols, null_row = row_stride(cols);
  const Buffer<T> null_columns(grad_ids ? steps<T>(batch) * null_row : 0);
  const Buffer<float> partial(grad_queries ? parts * batch * row : 0);
  if (grad_ids) copy_null_columns<T>(tables, queries, batch, null_columns);

  auto body = [&](int64_t part) {
    const int64_t stride = block.items;
    Tile<T> tile(tables, stride, true);
    const Buffer<float> scores(block.queries * stride);
    const ScoreGradients<T> c(block.queries, stride);
    const Buffer<float> id_sums(grad_ids ? stride * null_row : 0), along(stride);
    float* query_sums = partial + part * batch * row;
    if (grad_queries) clear(query_sums, batch * row);

    const int64_t end = part_begin(tables, part + 1, parts);
    for (int64_t first = part_begin(tables, part, parts); first < end; first += stride) {
      const int64_t items = min(stride, end - first);
      tile.read(first, items);
      if (grad_ids) clear(id_sums, items * null_row);
      clear(along, items);
      for (int64_t b = 0; b < batch; b += block.queries) {
        const int64_t count = min(block.queries, batch - b);
        check_interrupt();
        tile.score(operand + b * steps<T>(dim), count, scores, stride);
        for (int64_t r = 0; r < count; ++r) {
          float* row_c = c.row(r);
          const float* row_scores = scores + r * stride;
          coefficients(b + r, row_scores, first, items, row_c);
          for (int64_t i = 0; tables.cosine && grad_ids && i < items; ++i) {
            along[i] += row_c[i] * row_scores[i];
          }
          c.finish(r, count, items);
        }
        if (grad_queries) {
          c.add_over_items(count, items, tile.rows(), row, dim, query_sums + b * row);
        }
        if (grad_ids) {
          c.add_over_queries(count, items, null_columns + steps<T>(b) * null_row, null_row, cols,
                             id_sums);
        }
      }
      for (int64_t i = 0; grad_ids && i < items; ++i) {
        write_id_gradient(tables, tile, i, id_sums + i * null_row, along[i],
                          grad_ids + (first + i) * cols, add_to_ids);
      }
    }
  };
  parallel(parts, threads_for_scan(tables, 3 * batch, threads), body);

  if (!grad_queries) return;
  for (int64_t b = 0; b < batch; ++b) {
    float* out = grad_queries + b * dim;
    copy(out, partial + b * row, dim);
    for (int64_t part = 1; part < parts; ++part) {
      const float* from = partial + (part * batch + b) * row;
      for (int64_t d = 0; d < dim; ++d) out[d] += from[d];
    }
  }
}

// coefficients(b, scores, first, count, c) writes c[0, count) for query b from its scores with the
// items first, first + 1, ..., and may write up to padded(count) of either. Gradients
// that are null are not computed. Rows of grad_ids are each written by one thread; those of
// grad_queries are summed over the parts in their order.
template <class Coefficients>
void catalog_backward(const Tables& tables, const float* queries, int64_t batch,
                      float* grad_queries, float* grad_ids, Workers workers,
                      const Coefficients& coefficients) {
  const int64_t at_once = kMaxPartial / (parts_for_sums(tables) * row_stride(tables.dim));
  const int64_t turns = grad_queries ? max(1, ceil_div(batch, max(1, at_once))) : 1;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t begin = batch * turn / turns, end = batch * (turn + 1) / turns;
    const float* const from = queries + begin * tables.dim;
    in_precision(workers.precision, from, end - begin, tables.dim, [&](const auto* operand) {
      catalog_backward_turn(tables, from, operand, end - begin,
                            grad_queries ? grad_queries + begin * tables.dim : nullptr, grad_ids,
                            turn > 0, workers.threads,
                            [&](int64_t b, const float* scores, int64_t first, int64_t count,
                                float* c) { coefficients(begin + b, scores, first, count, c); });
    });
  }
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
