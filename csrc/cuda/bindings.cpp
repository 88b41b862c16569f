// `_core.cuda`, or `_core.cuda_emulated`: the kernels, and what prepares arguments for them.
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

void define_cuda(py::module_& m) {
  define(m, "check_ids", "argument, ids, min_id, max_id, launch", +[] { return &cuda::check_ids; });
  define(m, "group_ids", "ids, max_id, sorted, entries, launch", +[] { return &cuda::group_ids; });
#define CPU_KERNEL(...)
#define KERNEL(result, name, ...) \
  define(m, #name, #__VA_ARGS__ ", Launch& launch", +[] { return &cuda::name; });
#include "kernels.def"
}

const Backend registered(ALPHAFUSE_CUDA_BACKEND, &define_cuda);  // "cuda" or "cuda_emulated"

}  // namespace
}  // namespace python
}  // namespace alphafuse
