// `_core.cuda`, or `_core.cuda_emulated`: the kernels there are so far; the rest raise
// NotImplementedError. And what prepares arguments for them.
#include "cuda/ids.h"
#include "cuda/kernels.h"
#include "python/function.h"

namespace alphafuse {
namespace python {

// A tuple (rows, entries, number of rows, ...) as ops/gradients.py makes it.
template <>
struct Argument<const cuda::Groups&> {
  cuda::Groups value;

  Argument(Call& call, PyObject* object) {
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) < 3) {
      call.refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "groups of ids");
    }
    const auto rows =
        Argument<Array<const int64_t, kEntries>>(call, PyTuple_GET_ITEM(object, 0)).value;
    const auto entries =
        Argument<Array<const int64_t, kEntries>>(call, PyTuple_GET_ITEM(object, 1)).value;
    value = {rows.size[0], rows, entries, call.read_integer(PyTuple_GET_ITEM(object, 2))};
    const int64_t count = call.size(kCount);
    const int64_t places = count == -1 ? call.size(kLists) * call.size(kCandidates) : count;
    if (value.count != places) {
      call.refuse(PyExc_ValueError, "groups of " + std::to_string(value.count) + " ids",
                  std::to_string(places));
    }
    call.fix(kGradRows, value.num_rows);
  }
};

namespace {

// The arguments of each kernel, as written in kernels.def.
namespace declared {
#define KERNEL(result, name, ...) constexpr const char* name = #__VA_ARGS__ ", Launch& launch";
#include "kernels.def"
}  // namespace declared

#define ALPHAFUSE_DEFINE(name) define(m, #name, declared::name, +[] { return &cuda::name; })

void define_cuda(py::module_& m) {
  define(m, "check_ids", "argument, ids, min_id, max_id, launch", +[] { return &cuda::check_ids; });
  define(m, "group_ids", "ids, max_id, sorted, entries, launch", +[] { return &cuda::group_ids; });
  ALPHAFUSE_DEFINE(lookup);
  ALPHAFUSE_DEFINE(lookup_backward);
  ALPHAFUSE_DEFINE(score_all);
  ALPHAFUSE_DEFINE(score_all_backward);
  ALPHAFUSE_DEFINE(score_candidates);
  ALPHAFUSE_DEFINE(score_candidates_grad_queries);
  ALPHAFUSE_DEFINE(score_candidates_grad_ids);
  ALPHAFUSE_DEFINE(target_scores);
  ALPHAFUSE_DEFINE(log_sum_exp);
  ALPHAFUSE_DEFINE(cross_entropy_backward);
  ALPHAFUSE_DEFINE(topk);
  ALPHAFUSE_DEFINE(target_ranks);
  ALPHAFUSE_DEFINE(inverse_row_norms);
}

const Backend registered(ALPHAFUSE_CUDA_BACKEND, &define_cuda);  // "cuda" or "cuda_emulated"

}  // namespace
}  // namespace python
}  // namespace alphafuse
