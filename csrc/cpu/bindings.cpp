// `_core.cpu`: the kernels of the instruction set in use, and what prepares arguments for them.
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "ids.h"
#include "python/function.h"

namespace alphafuse {
namespace python {
namespace {

void check_given_ids(std::string argument, Array<const int64_t, kCount> ids, int64_t min_id,
                     int64_t max_id) {
  check_ids(argument.c_str(), ids, ids.size[0], min_id, max_id);
}

Grouping group_ids(Array<const int64_t, kCount> ids, int64_t rows, bool dense) {
  return Grouping(ids, ids.size[0], 0, rows, dense);
}

Exclude exclude_padded(Array<const int64_t, kBatch, kCount> ids, int64_t num_embeddings) {
  return Exclude::from_padded(ids, ids.size[0], ids.size[1], num_embeddings);
}

Exclude exclude_offsets(Array<const int64_t, kOffsets> offsets, Array<const int64_t, kCount> ids,
                        int64_t num_embeddings) {
  return Exclude::from_offsets(offsets, offsets.size[0] - 1, ids, ids.size[0], num_embeddings);
}

void copy_ids(const Grouping& groups, const py::object& out) {
  const Signature signature("copy_ids", "out");
  Call call(signature);
  call.fix(kGroups, groups.count());
  groups.copy_ids(Argument<Array<int64_t, kGroups>>(call.at(0), out.ptr()).value);
}

// Rows of ids in one call, where Python's steps would take longer than the work. None for what is not
// plain, or at fault: the op then says why.
py::object rows_of(py::object semantic_rows, py::object id_embeddings, const std::string& fusion,
                   const py::object& ids, int threads) {
  static const Signature signature("lookup", "ids");
  try {
    const py::object one = id_embeddings.is_none() ? semantic_rows : id_embeddings;
    const TablesObject given(std::move(semantic_rows), std::move(id_embeddings), fusion, "dot", 0);
    const Tables& tables = given.tables;
    Call call(signature);
    call.fix_place(kHost);
    if (given.place != kHost) return py::none();
    const auto rows = Argument<Array<const int64_t, kCount>>(call.at(0), ids.ptr()).value;
    for (int64_t i = 0; i < rows.size[0]; ++i) {
      if (rows[i] < 0 || rows[i] > tables.rows) return py::none();
    }
    const py::object batch = ids.attr("shape");
    const py::object shape = batch + py::object(py::make_tuple(tables.dim));
    py::object out = one.attr("new_empty")(shape);
    void* const data = reinterpret_cast<void*>(out.attr("data_ptr")().cast<int64_t>());
    const DType dtype = (tables.id.data ? tables.id : tables.semantic).dtype;
    {
      const py::gil_scoped_release unlocked;
      kernels().lookup(tables, rows, {data, {rows.size[0], tables.dim}, dtype}, threads);
    }
    return out;
  } catch (const std::exception&) {
    return py::none();
  }
}

void define_cpu(py::module_& m) {
  py::class_<Grouping>(m, "Grouping")
      .def_property_readonly("size", &Grouping::count)
      .def("copy_ids", &copy_ids);
  py::class_<Exclude>(m, "Exclude");
  m.def("rows_of", &rows_of);
  define(m, "check_ids", "argument, ids, min_id, max_id", +[] { return &check_given_ids; });
  define(m, "group_ids", "ids, rows, dense", +[] { return &group_ids; });
  define(m, "exclude_padded", "ids, num_embeddings", +[] { return &exclude_padded; });
  define(m, "exclude_offsets", "offsets, ids, num_embeddings", +[] { return &exclude_offsets; });
#define KERNEL(result, name, ...) \
  define(m, #name, #__VA_ARGS__ ", int threads", +[] { return kernels().name; });
#define PRODUCT_KERNEL(result, name, ...) \
  define(m, #name, #__VA_ARGS__ ", Workers threads", +[] { return kernels().name; });
#include "kernels.def"
}

const Backend registered("cpu", &define_cpu);

}  // namespace
}  // namespace python
}  // namespace alphafuse
