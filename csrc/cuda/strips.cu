#include "cuda/strips.cuh"

namespace alphafuse {
namespace cuda {
namespace {

// out (rows, pieces), or tiles of (pieces, kStripStep): a thread writes a piece, with zeros where there
// is no column, or no row.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    write_strip_kernel(Rows rows, int64_t pieces, bool in_tiles, uint4* out) {
  constexpr int kPiece = kPieceBytes / sizeof(Element);
  const int64_t step = int64_t{kThreads} * gridDim.x;
  const int64_t count = in_tiles ? ceil_div(rows.count, kStripStep) * kStripStep : rows.count;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < count * pieces; i += step) {
    const int64_t row =
        in_tiles ? i / (pieces * kStripStep) * kStripStep + i % kStripStep : i / pieces;
    const int64_t column = (in_tiles ? i / kStripStep : i) % pieces * kPiece;
    const bool second = column >= rows.second_from;
    Piece<Element> piece;
    if (row < rows.count) {
      float values[kPiece];
      read(second ? rows.second : rows.first, row, second ? column - rows.second_from : column,
           values);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) piece.elements[j] = from_float<Element>(values[j]);
    }
    out[i] = piece.bits;
  }
}

template <class Element>
void enqueue_strip(Launch& launch, const char* op, const Tables& tables, int64_t stride,
                   bool in_tiles, void* out) {
  const int64_t pieces = stride * int64_t{sizeof(Element)} / kPieceBytes;
  enqueue(launch, op, write_strip_kernel<Element>, grid_of(tables.rows * pieces), kThreads, 0,
          rows_of_tables<Element>(tables, depth_of<Element>(tables)), pieces, in_tiles,
          static_cast<uint4*>(out));
}

// So many that they are better served by strips.
template <class Element>
int64_t least_queries(const Tables& tables) {
  int64_t least = INT64_MAX;  // of what tiles copy as it lies
  for (const Table* const table : {&tables.semantic, &tables.id}) {
    const Part part = part_of<Element>(table->data, table->dtype, table->stride, table->cols);
    if (table->cols == 0 || part.copied) continue;
    least = min(least, part.vectors ? kLeastQueriesOfStrips : kLeastQueriesOfOddRows);
  }
  return least;
}

}  // namespace

Tables rows_of(Tables tables, int64_t first, int64_t count) {
  for (Table* const table : {&tables.semantic, &tables.id}) {
    if (table->data == nullptr) continue;
    table->data = static_cast<const unsigned char*>(table->data) +
                  first * table->stride * size_of(table->dtype);
  }
  tables.first_id += first;
  tables.rows = count;
  return tables;
}

Strips::Strips(Launch& launch, const Tables& tables, int64_t batch, int64_t most, bool in_tiles)
    : tables_(tables), in_tiles_(in_tiles) {
  const Precision precision = launch.precision();
  dtype_ = precision == Precision::kFloat16 ? DType::kFloat16 : DType::kBFloat16;
  copies_ = in_tiles ||
            (precision == Precision::kBFloat16 && batch >= least_queries<__nv_bfloat16>(tables)) ||
            (precision == Precision::kFloat16 && batch >= least_queries<__half>(tables));
  const Depth depth = depth_of<__half>(tables);  // of either type
  second_from_ = depth.second_from;
  const int64_t row_bytes = ceil_div(int64_t{depth.slices} * kSliceBytes, kLineBytes) * kLineBytes;
  stride_ = row_bytes / size_of(dtype_);
  if (copies_) most = min(most, kStripBytes / row_bytes);
  const int64_t steps = max(1, ceil_div(tables.rows, kStripStep));
  const int64_t fitting = max(1, most / kStripStep);
  length_ = ceil_div(steps, ceil_div(steps, fitting)) * kStripStep;
  const int64_t rows = in_tiles ? length_ : min(length_, tables.rows);
  if (copies_) memory_ = launch.scratch<unsigned char>(rows * row_bytes);
}

Tables Strips::at(Launch& launch, const char* op, int64_t first) const {
  Tables strip = rows_of(tables_, first, min(length_, tables_.rows - first));
  if (!copies_) return strip;
  if (dtype_ == DType::kFloat16) {
    enqueue_strip<__half>(launch, op, strip, stride_, in_tiles_, memory_);
  } else {
    enqueue_strip<__nv_bfloat16>(launch, op, strip, stride_, in_tiles_, memory_);
  }
  if (in_tiles_) return strip;
  const auto table = [&](const Table& of, int64_t column) -> Table {
    if (of.data == nullptr) return of;
    return {static_cast<unsigned char*>(memory_) + column * size_of(dtype_), dtype_, stride_,
            of.cols};
  };
  strip.semantic = table(strip.semantic, 0);
  strip.id = table(strip.id, second_from_);
  return strip;
}

}  // namespace cuda
}  // namespace alphafuse
