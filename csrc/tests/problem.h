// Random tables, queries and ids for the native tests of the kernels, each array exactly as large as
// it needs to be (so that AddressSanitizer sees an access behind it), and their values in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "array.h"
#include "launch.h"
#include "tables.h"
#include "tests/half.h"

namespace alphafuse {
namespace tests {

inline std::mt19937 generator(11);

inline int64_t random_below(int64_t n) { return static_cast<int64_t>(generator() % n); }

inline std::size_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline double read(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[i];
  return from_half(static_cast<const uint16_t*>(data)[i], dtype);
}

// To bfloat16.
inline double rounded(double value) {
  return from_half(to_half(static_cast<float>(value), DType::kBFloat16), DType::kBFloat16);
}

inline const char* name_of(Precision precision) {
  const char* const names[] = {"float32", "bfloat16", "float16", "TF32"};
  return names[static_cast<int>(precision)];
}

inline void write(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] = to_half(value, dtype);
  }
}

// (rows, cols) of a type, rows `stride` apart, beginning `shift` elements into its memory. Nothing
// lies behind the last row's last column.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t cols, DType dtype, int64_t stride, int64_t shift)
      : rows_(rows), cols_(cols), dtype_(dtype), stride_(stride), shift_(shift) {
    const int64_t count = rows * cols == 0 ? 0 : shift + (rows - 1) * stride + cols;
    bytes_.reset(static_cast<unsigned char*>(
        std::malloc(static_cast<std::size_t>(count) * bytes_of(dtype) + (count == 0))));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) write(bytes_.get(), dtype, i, NAN);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) set(r, c, normal(generator));
    }
  }
  Matrix(int64_t rows, int64_t cols, DType dtype) : Matrix(rows, cols, dtype, cols, 0) {}

  void set(int64_t r, int64_t c, float value) { write(data(), dtype_, r * stride_ + c, value); }
  double at(int64_t r, int64_t c) const { return read(data(), dtype_, r * stride_ + c); }
  void* data() const { return bytes_.get() + static_cast<std::size_t>(shift_) * bytes_of(dtype_); }
  float* floats() const { return static_cast<float*>(data()); }
  Table table() const { return {rows_ * cols_ == 0 ? nullptr : data(), dtype_, stride_, cols_}; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }
  // What was never written is found.
  void forget() {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) set(r, c, NAN);
    }
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  int64_t rows_, cols_;
  DType dtype_;
  int64_t stride_, shift_;
  std::unique_ptr<unsigned char, Free> bytes_;
};

// A kind of catalog.
struct Case {
  int64_t batch, rows, semantic_cols, id_cols;
  DType semantic = DType::kFloat32, id = DType::kFloat32;
  bool add = false, cosine = false;
  int64_t padding = 0;  // elements between rows
  int64_t shift = 0;    // of the first row from an aligned address
  int64_t first_id = 0;

  std::string name() const {
    const char* const types[] = {"f32", "bf16", "f16"};
    return "batch " + std::to_string(batch) + ", rows " + std::to_string(rows) + ", cols " +
           std::to_string(semantic_cols) + (add ? " + add " : " + ") + std::to_string(id_cols) +
           ", " + types[static_cast<int>(semantic)] + " " + types[static_cast<int>(id)] +
           (cosine ? ", cosine" : "") + ", padding " + std::to_string(padding) + ", shift " +
           std::to_string(shift);
  }
};

struct Problem {
  explicit Problem(const Case& c)
      : semantic(c.rows, c.semantic_cols, c.semantic, c.semantic_cols + c.padding, c.shift),
        id(c.rows, c.id_cols, c.id, c.id_cols + c.padding, c.shift),
        tables(make_tables(semantic.table(), id.table(), c.rows, c.first_id, c.add, c.cosine)) {
    if (c.rows > 140) {  // a row of zeros; equal rows, far apart
      for (int64_t column = 0; column < std::max(c.semantic_cols, c.id_cols); ++column) {
        if (column < c.semantic_cols) {
          semantic.set(3, column, 0.0f);
          semantic.set(140, column, static_cast<float>(semantic.at(5, column)));
        }
        if (column < c.id_cols) {
          id.set(3, column, 0.0f);
          id.set(140, column, static_cast<float>(id.at(5, column)));
        }
      }
    }
    find_rows();
  }

  // What the tables hold, in double.
  void find_rows() {
    const auto dim = static_cast<std::size_t>(tables.dim);
    fused.resize(static_cast<std::size_t>(tables.rows) * dim);
    inverse_norms.assign(static_cast<std::size_t>(tables.rows), 1.0);
    for (int64_t r = 0; r < tables.rows; ++r) {
      double square = 0;
      for (int64_t d = 0; d < tables.dim; ++d) {
        double value = 0;
        if (d < semantic.cols()) value += semantic.at(r, d);
        if (d >= tables.null_offset && id.cols() > 0) value += id.at(r, d - tables.null_offset);
        fused[static_cast<std::size_t>(r) * dim + static_cast<std::size_t>(d)] = value;
        square += value * value;
      }
      if (tables.cosine) {
        inverse_norms[static_cast<std::size_t>(r)] =
            square == 0 ? 0 : 1 / std::max(std::sqrt(square), 1e-8);
      }
    }
  }

  double row(int64_t r, int64_t d) const {
    return fused[static_cast<std::size_t>(r * tables.dim + d)];
  }
  double unit(int64_t r, int64_t d) const {
    const double value = row(r, d) * inverse_norms[static_cast<std::size_t>(r)];
    return to_bfloat16 ? rounded(value) : value;
  }

  bool to_bfloat16 = false;  // the rows that products see
  Matrix semantic, id;
  Tables tables;
  std::vector<double> fused, inverse_norms;
};

// What queries, or gradients of scores, say of every item, (batch, rows), in plain loops.
inline std::vector<double> plain_scores(const Problem& problem, const Matrix& queries) {
  std::vector<double> scores;
  for (int64_t b = 0; b < queries.rows(); ++b) {
    for (int64_t i = 0; i < problem.tables.rows; ++i) {
      double score = 0;
      for (int64_t d = 0; d < problem.tables.dim; ++d)
        score += queries.at(b, d) * problem.unit(i, d);
      scores.push_back(score);
    }
  }
  return scores;
}

// Where score_all writes, and what its gradients are made of.
inline FloatArray<void, kBatch, kItems> scores_array(void* data, int64_t batch, int64_t rows,
                                                     DType dtype = DType::kFloat32) {
  return {data, {batch, rows}, dtype};
}

inline FloatArray<const void, kBatch, kItems> gradients_array(const void* data, int64_t batch,
                                                              int64_t rows,
                                                              DType dtype = DType::kFloat32) {
  return {data, {batch, rows}, dtype};
}

struct Gradients {
  std::vector<double> queries, ids;
  // Of the gradients of ID embeddings before what is along their rows is taken off, which may leave
  // nearly nothing: what a rounding of the rows is relative to.
  double before_projection = 0;
};

// From grad[b * rows + i], that of the score of query b with item i.
inline Gradients plain_gradients(const Problem& problem, const Matrix& queries,
                                 const std::vector<double>& grad) {
  const Tables& tables = problem.tables;
  Gradients to;
  to.queries.resize(static_cast<std::size_t>(queries.rows() * tables.dim));
  for (int64_t i = 0; i < tables.rows; ++i) {
    std::vector<double> to_row(static_cast<std::size_t>(tables.dim));
    for (int64_t b = 0; b < queries.rows(); ++b) {
      const double g = grad[static_cast<std::size_t>(b * tables.rows + i)];
      for (int64_t d = 0; d < tables.dim; ++d) {
        to.queries[static_cast<std::size_t>(b * tables.dim + d)] += g * problem.unit(i, d);
        to_row[static_cast<std::size_t>(d)] += g * queries.at(b, d);
      }
    }
    double along = 0;
    for (int64_t d = 0; d < tables.dim && tables.cosine; ++d) {
      along += to_row[static_cast<std::size_t>(d)] * problem.unit(i, d);
    }
    for (int64_t d = tables.null_offset; d < tables.dim; ++d) {
      to.before_projection =
          std::fmax(to.before_projection, std::fabs(to_row[static_cast<std::size_t>(d)]) *
                                              problem.inverse_norms[static_cast<std::size_t>(i)]);
      to.ids.push_back((to_row[static_cast<std::size_t>(d)] - along * problem.unit(i, d)) *
                       problem.inverse_norms[static_cast<std::size_t>(i)]);
    }
  }
  return to;
}

template <class T, Size... names, class... Counts>
Array<T, names...> array(T* data, Counts... counts) {
  return {data, {counts...}};
}

template <class T, Size... names, class... Counts>
Optional<Array<T, names...>> optional(T* data, Counts... counts) {
  return {array<T, names...>(data, counts...)};
}

}  // namespace tests
}  // namespace alphafuse
