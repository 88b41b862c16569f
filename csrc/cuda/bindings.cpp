// `_core.cuda`, or `_core.cuda_emulated`: the kernels there are so far. The rest raise NotImplementedError.
#include "cuda/kernels.h"

#include "python/function.h"

namespace alphafuse {
namespace python {
namespace {

// The arguments of each kernel, as written in kernels.def.
namespace declared {
#define KERNEL(result, name, ...) constexpr const char* name = #__VA_ARGS__ ", Launch& launch";
#include "kernels.def"
}  // namespace declared

#define ALPHAFUSE_DEFINE(name) define(m, #name, declared::name, +[] { return &cuda::name; })

void define_cuda(py::module_& m) {
  ALPHAFUSE_DEFINE(lookup);
  ALPHAFUSE_DEFINE(lookup_backward);
  ALPHAFUSE_DEFINE(score_all);
  ALPHAFUSE_DEFINE(score_all_backward);
  ALPHAFUSE_DEFINE(inverse_row_norms);
}

const Backend registered(ALPHAFUSE_CUDA_BACKEND, &define_cuda);  // "cuda" or "cuda_emulated"

}  // namespace
}  // namespace python
}  // namespace alphafuse
