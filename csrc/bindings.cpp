// The Python module: what it was built from and runs on, the tables, a submodule for each device.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>

#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "python/function.h"

namespace alphafuse {
namespace python {

std::vector<std::pair<const char*, Backend::Define>>& Backend::all() {
  static std::vector<std::pair<const char*, Define>> backends;
  return backends;
}

namespace {

constexpr const char* kKernels[] = {
#define KERNEL(result, name, ...) #name,
#include "kernels.def"
};

py::cpp_function missing(const std::string& device, const std::string& kernel) {
  return py::cpp_function([=](const py::args&) {
    const std::string text =
        kernel + " has no " + device + " kernel yet; move the queries and both tables to the CPU";
    PyErr_SetString(PyExc_NotImplementedError, text.c_str());
    throw py::error_already_set();
  });
}

}  // namespace
}  // namespace python
}  // namespace alphafuse

PYBIND11_MODULE(_core, m) {
  using namespace alphafuse;
  using namespace alphafuse::python;

  m.attr("version") = ALPHAFUSE_VERSION;
  m.attr("compiler") = ALPHAFUSE_COMPILER;
  m.attr("sanitizers") = ALPHAFUSE_SANITIZERS;
#if defined(ALPHAFUSE_CUDA)
  m.attr("cuda_version") = ALPHAFUSE_CUDA_VERSION;
  m.attr("cuda_architectures") = ALPHAFUSE_CUDA_ARCHS;
#else
  m.attr("cuda_version") = py::none();
  m.attr("cuda_architectures") = "";
#endif

  m.def("built_isas", &built_isas);
  m.def("supported_isas", &supported_isas);
  m.def("isa", [] { return kernels().isa; });
  m.def("set_isa", &set_isa);
  m.def("set_work_of_thread", &set_work_of_thread);
  const char* wanted = std::getenv("ALPHAFUSE_ISA");
  set_isa(wanted ? wanted : "");

  py::class_<TablesObject>(m, "Tables")
      .def(py::init<py::object, py::object, const std::string&, const std::string&, int64_t>(),
           py::arg("semantic_rows"), py::arg("id_embeddings"), py::arg("fusion") = "concat",
           py::arg("similarity") = "dot", py::arg("first_id") = 0)
      .def_readonly("semantic_rows", &TablesObject::semantic_rows)
      .def_readonly("id_embeddings", &TablesObject::id_embeddings)
      .def_readonly("fusion", &TablesObject::fusion)
      .def_readonly("similarity", &TablesObject::similarity)
      .def_property_readonly("num_embeddings", [](const TablesObject& t) { return t.tables.rows; })
      .def_property_readonly("dim", [](const TablesObject& t) { return t.tables.dim; })
      .def_property_readonly("null_dim", [](const TablesObject& t) { return t.tables.id.cols; });
  m.def("padded_rows", &padded_rows);

  py::list devices;
  for (const auto& [name, define] : Backend::all()) {
    py::module_ module = m.def_submodule(name);
    define(module);
    for (const char* kernel : kKernels) {
      if (!py::hasattr(module, kernel)) module.attr(kernel) = missing(name, kernel);
    }
    devices.append(name);
  }
  m.attr("devices") = devices;
}
