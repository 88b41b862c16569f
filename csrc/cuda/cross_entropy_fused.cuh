// The backward pass of cross entropy without coefficients in memory; see cross_entropy_fused.cu.
#pragma once

#include "cuda/kernels.h"

namespace alphafuse {
namespace cuda {

// Whether it is there for these: products in bfloat16, rows of up to 128 columns, each of one table.
bool has_fused_backward(const Launch& launch, const Tables& tables);

// As cross_entropy_backward; gradients that are null are not wanted.
void fused_cross_entropy_backward(const Tables& tables, const float* queries, int64_t batch,
                                  const int64_t* targets, const float* maxima, const float* logs,
                                  const float* weights, float* grad_queries, float* grad_ids,
                                  Launch& launch);

}  // namespace cuda
}  // namespace alphafuse
