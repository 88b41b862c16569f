// The CUDA kernels' host side. Addresses in `tables` are device addresses; `stream` is a
// cudaStream_t; every call works on the current device and returns without waiting. An error of a
// launch is a std::runtime_error that names the op; an id out of range is a device assertion.
#pragma once

#include "cpu/grouping.h"
#include "tables.h"

namespace alphafuse {
namespace cuda {

// out (count, dim), of type `dtype`; the padding id, first_id + rows, gives a row of zeros.
void lookup(const Tables& tables, const int64_t* ids, int64_t count, void* out, DType dtype,
            void* stream);

// As on the CPU (cpu/kernels.h); rows are summed in the order of their entries, without atomics.
void lookup_backward(const void* grad, DType dtype, int64_t dim, int64_t cols,
                     const Groups& groups, int64_t first_id, bool dense, float* out, void* stream);

// out (batch, rows). `inverse_norms` (rows,) is scratch memory for cosine.
void score_all(const Tables& tables, const float* queries, int64_t batch, float* inverse_norms,
               float* out, void* stream);

// grad_queries (batch, dim) and grad_ids (rows, id.cols), null if unused.
void score_all_backward(const Tables& tables, const float* queries, int64_t batch,
                        float* inverse_norms, const float* grad, float* grad_queries,
                        float* grad_ids, void* stream);

}  // namespace cuda
}  // namespace alphafuse
