#include "cpu/strips.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

namespace {

// 1 / norm of the rows of a strip, as inverse_norms has it. `next` is the strip to ask the memory for.
// A function of its own, that reading columns is compiled once for it.
__attribute__((noinline)) void norms_of(const Strip& strip, const Strip& next, Vec* factors) {
  Vec squares[2] = {};
  strip.columns(next, [&](int64_t, auto half, Vec column) {
    squares[half.value] = multiply_add(squares[half.value], column, column);
  });
  factors[0] = inverse_norms(squares[0]);
  factors[1] = inverse_norms(squares[1]);
}

// The scores of kRows queries with the items of a strip, sums[query][half]: bitwise those of a tile,
// for the price of reading the rows.
template <int64_t kRows>
void score_strip(const Tables& tables, const Strip& strip, const Strip& next, const float* queries,
                 Vec (*sums)[2]) {
  const int64_t dim = tables.dim;
  Vec total[kRows][2] = {};
  if (tables.cosine) {
    Vec factors[2];
    norms_of(strip, next, factors);
    strip.columns(strip, [&](int64_t d, auto half, Vec column) {
      const Vec unit = column * factors[half.value];
      for (int64_t r = 0; r < kRows; ++r) {
        Vec& sum = total[r][half.value];
        sum = multiply_add(sum, fill(queries[r * dim + d]), unit);
      }
    });
  } else {
    strip.columns(next, [&](int64_t d, auto half, Vec column) {
      for (int64_t r = 0; r < kRows; ++r) {
        Vec& sum = total[r][half.value];
        sum = multiply_add(sum, fill(queries[r * dim + d]), column);
      }
    });
  }
  for (int64_t r = 0; r < kRows; ++r) {
    sums[r][0] = total[r][0];
    sums[r][1] = total[r][1];
  }
}

}  // namespace

void score_strips(const Tables& tables, int64_t first, int64_t count, const float* queries,
                  int64_t batch, float* scores, int64_t stride) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const Strip strip = strip_from(tables, first + i);
    const Strip next = strip_from(tables, first + i + kAhead);
    Vec sums[kPackedFrom - 1][2];
    if (batch == kPackedFrom - 1) {
      score_strip<kPackedFrom - 1>(tables, strip, next, queries, sums);
    } else {
      for (int64_t b = 0; b < batch; ++b) {
        score_strip<1>(tables, strip, next, queries + b * tables.dim, sums + b);
      }
    }
    for (int64_t b = 0; b < batch; ++b) {
      store(scores + b * stride + i, sums[b][0]);
      store(scores + b * stride + i + kLanes, sums[b][1]);
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = count; i < padded(count); ++i) scores[b * stride + i] = -__builtin_inff();
  }
}

void score_pairs(const Tables& tables, const float* queries, const int64_t* query_ids,
                 const int64_t* rows, int64_t count, float* scratch, float* out) {
  const int64_t dim = tables.dim;
  const Strip items = Strip::of_rows(tables, rows, count);
  // The queries as a table of their own, to be read as columns too.
  const Table as_table = {queries, DType::kFloat32, dim, dim};
  const Tables all_queries = {as_table, {}, 1, 0, dim, dim, false, false};
  const Strip asking = Strip::of_rows(all_queries, query_ids, count);
  asking.columns(asking, [&](int64_t d, auto half, Vec column) {
    store(scratch + d * kWidth + half.value * kLanes, column);
  });
  Vec total[2] = {};
  if (tables.cosine) {
    Vec factors[2];
    norms_of(items, items, factors);
    items.columns(items, [&](int64_t d, auto half, Vec column) {
      const Vec unit = column * factors[half.value];
      const Vec query = load(scratch + d * kWidth + half.value * kLanes);
      total[half.value] = multiply_add(total[half.value], query, unit);
    });
  } else {
    items.columns(items, [&](int64_t d, auto half, Vec column) {
      const Vec query = load(scratch + d * kWidth + half.value * kLanes);
      total[half.value] = multiply_add(total[half.value], query, column);
    });
  }
  float found[kWidth];
  store(found, total[0]);
  store(found + kLanes, total[1]);
  copy(out, found, count);
}

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
