// The one file that knows pybind11. Arrays arrive as addresses: Python owns every array, has
// checked its shape and type, and keeps it alive during the call. The GIL is released around the
// kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <utility>

#include "compressed.h"
#include "cpu/dispatch.h"
#include "cpu/exclude.h"
#include "cpu/grouping.h"
#include "ids.h"
#include "tables.h"
#if defined(ALPHAFUSE_CUDA)
#include "cuda/kernels.h"
#endif

namespace py = pybind11;

namespace alphafuse {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void define_cpu(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();

  m.def(
      "lookup",
      [](const Tables& tables, Address ids, int64_t count, Address out, int dtype, int threads) {
        kernels().lookup(tables, at<int64_t>(ids), count, at<void>(out), DType(dtype), threads);
      },
      unlocked);
  m.def(
      "lookup_backward",
      [](Address grad, int dtype, int64_t dim, int64_t cols, const Grouping& groups, bool dense,
         Address out, int threads) {
        kernels().lookup_backward(at<void>(grad), DType(dtype), dim, cols, groups.view(), 0, dense,
                                  at<float>(out), threads);
      },
      unlocked);
  m.def(
      "score_all",
      [](const Tables& tables, Address queries, int64_t batch, Address out, int threads) {
        kernels().score_all(tables, at<float>(queries), batch, at<float>(out), threads);
      },
      unlocked);
  m.def(
      "score_all_backward",
      [](const Tables& tables, Address queries, int64_t batch, Address grad, Address grad_queries,
         Address grad_ids, int threads) {
        kernels().score_all_backward(tables, at<float>(queries), batch, at<float>(grad),
                                     at<float>(grad_queries), at<float>(grad_ids), threads);
      },
      unlocked);
  m.def(
      "score_candidates",
      [](const Tables& tables, Address queries, int64_t groups, int64_t rows, Address candidates,
         int64_t k, Address out, int threads) {
        kernels().score_candidates(tables, at<float>(queries), groups, rows,
                                   at<int64_t>(candidates), k, at<float>(out), threads);
      },
      unlocked);
  m.def(
      "score_candidates_grad_queries",
      [](const Tables& tables, int64_t groups, int64_t rows, Address candidates, int64_t k,
         Address grad, Address grad_queries, int threads) {
        kernels().score_candidates_grad_queries(tables, groups, rows, at<int64_t>(candidates), k,
                                                at<float>(grad), at<float>(grad_queries), threads);
      },
      unlocked);
  m.def(
      "score_candidates_grad_ids",
      [](const Tables& tables, Address queries, int64_t rows, int64_t k, Address scores,
         Address grad, const Grouping& groups, bool dense, Address out, int threads) {
        kernels().score_candidates_grad_ids(tables, at<float>(queries), rows, k, at<float>(scores),
                                            at<float>(grad), groups.view(), dense, at<float>(out),
                                            threads);
      },
      unlocked);
  m.def(
      "target_scores",
      [](const Tables& tables, Address queries, int64_t batch, Address targets, Address out,
         int threads) {
        kernels().target_scores(tables, at<float>(queries), batch, at<int64_t>(targets),
                                at<float>(out), threads);
      },
      unlocked);
  m.def(
      "log_sum_exp",
      [](const Tables& tables, Address queries, int64_t batch, Address maxima, Address logs,
         int threads) {
        kernels().log_sum_exp(tables, at<float>(queries), batch, at<float>(maxima),
                              at<float>(logs), threads);
      },
      unlocked);
  m.def(
      "cross_entropy_backward",
      [](const Tables& tables, Address queries, int64_t batch, Address targets, Address maxima,
         Address logs, Address weights, Address grad_queries, Address grad_ids, int threads) {
        kernels().cross_entropy_backward(tables, at<float>(queries), batch, at<int64_t>(targets),
                                         at<float>(maxima), at<float>(logs), at<float>(weights),
                                         at<float>(grad_queries), at<float>(grad_ids), threads);
      },
      unlocked);
  m.def(
      "topk",
      [](const Tables& tables, Address queries, int64_t batch, int64_t k, const Exclude& exclude,
         const Compressed* compressed, Address values, Address ids, int threads) {
        FirstPassCount counted = {0, 0};
        kernels().topk(tables, at<float>(queries), batch, k, exclude.view(), compressed, counted,
                       at<float>(values), at<int64_t>(ids), threads);
        return std::pair(counted.blocks, counted.redone);
      },
      unlocked);
  m.def(
      "target_ranks",
      [](const Tables& tables, Address queries, int64_t batch, Address targets, Address scores,
         const Exclude& exclude, const Compressed* compressed, Address out, int threads) {
        FirstPassCount counted = {0, 0};
        kernels().target_ranks(tables, at<float>(queries), batch, at<int64_t>(targets),
                               at<float>(scores), exclude.view(), compressed, counted,
                               at<int64_t>(out), threads);
        return std::pair(counted.blocks, counted.redone);
      },
      unlocked);
}

void define_compressed(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();

  py::class_<Compressed>(m, "Compressed")
      .def(py::init([](Address semantic_codes, Address semantic_bounds, Address id_codes,
                       Address id_bounds, Address inverse_norms, int64_t rows) {
             const auto table = [rows](Address codes, Address bounds) {
               const auto* values = at<float>(bounds);
               const int64_t length = codes == 0 ? 0 : padded_rows(rows);
               return CompressedTable{at<int8_t>(codes), values, values + length,
                                      values + 2 * length};
             };
             return Compressed{table(semantic_codes, semantic_bounds), table(id_codes, id_bounds),
                               at<float>(inverse_norms)};
           }));
  m.def("padded_rows", &padded_rows);
  m.def(
      "compress",
      [](Address data, int dtype, int64_t stride, int64_t cols, int64_t rows, Address codes,
         Address bounds, int threads) {
        const int64_t length = padded_rows(rows);
        kernels().compress({at<void>(data), DType(dtype), stride, cols}, rows, at<int8_t>(codes),
                           at<float>(bounds), at<float>(bounds) + length,
                           at<float>(bounds) + 2 * length, threads);
      },
      unlocked);
  m.def(
      "inverse_row_norms",
      [](const Tables& tables, Address out, int threads) {
        kernels().inverse_row_norms(tables, at<float>(out), threads);
      },
      unlocked);
}

#if defined(ALPHAFUSE_CUDA)
void define_cuda(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();

  m.def(
      "cuda_lookup",
      [](const Tables& tables, Address ids, int64_t count, Address out, int dtype, Address stream) {
        cuda::lookup(tables, at<int64_t>(ids), count, at<void>(out), DType(dtype),
                     at<void>(stream));
      },
      unlocked);
  m.def(
      "cuda_lookup_backward",
      [](Address grad, int dtype, int64_t dim, int64_t cols, Address ids, Address offsets,
         Address entries, int64_t count, bool dense, Address out, Address stream) {
        const Groups groups{count, at<int64_t>(ids), at<int64_t>(offsets), at<int64_t>(entries)};
        cuda::lookup_backward(at<void>(grad), DType(dtype), dim, cols, groups, 0, dense,
                              at<float>(out), at<void>(stream));
      },
      unlocked);
  m.def(
      "cuda_score_all",
      [](const Tables& tables, Address queries, int64_t batch, Address inverse_norms, Address out,
         Address stream) {
        cuda::score_all(tables, at<float>(queries), batch, at<float>(inverse_norms),
                        at<float>(out), at<void>(stream));
      },
      unlocked);
  m.def(
      "cuda_score_all_backward",
      [](const Tables& tables, Address queries, int64_t batch, Address inverse_norms, Address grad,
         Address grad_queries, Address grad_ids, Address stream) {
        cuda::score_all_backward(tables, at<float>(queries), batch, at<float>(inverse_norms),
                                 at<float>(grad), at<float>(grad_queries), at<float>(grad_ids),
                                 at<void>(stream));
      },
      unlocked);
}
#endif

}  // namespace
}  // namespace alphafuse

PYBIND11_MODULE(_core, m) {
  using namespace alphafuse;

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
  const char* wanted = std::getenv("ALPHAFUSE_ISA");
  set_isa(wanted ? wanted : "");

  py::class_<Tables>(m, "Tables")
      .def(py::init([](Address semantic, int semantic_dtype, int64_t semantic_stride,
                       int64_t semantic_cols, Address id, int id_dtype, int64_t id_stride,
                       int64_t id_cols, int64_t rows, int64_t first_id, bool add, bool cosine) {
             return make_tables(
                 {at<void>(semantic), DType(semantic_dtype), semantic_stride, semantic_cols},
                 {at<void>(id), DType(id_dtype), id_stride, id_cols}, rows, first_id, add, cosine);
           }),
           py::arg("semantic"), py::arg("semantic_dtype"), py::arg("semantic_stride"),
           py::arg("semantic_cols"), py::arg("id"), py::arg("id_dtype"), py::arg("id_stride"),
           py::arg("id_cols"), py::arg("rows"), py::arg("first_id"), py::arg("add"),
           py::arg("cosine"))
      .def_readonly("rows", &Tables::rows)
      .def_readonly("dim", &Tables::dim)
      .def_readonly("null_offset", &Tables::null_offset);

  m.def(
      "check_ids",
      [](const char* argument, Address ids, int64_t count, int64_t least, int64_t greatest) {
        check_ids(argument, at<int64_t>(ids), count, least, greatest);
      },
      py::call_guard<py::gil_scoped_release>());

  py::class_<Exclude>(m, "Exclude")
      .def(py::init<>())
      .def_static(
          "from_padded",
          [](Address ids, int64_t batch, int64_t width, int64_t num_embeddings) {
            return Exclude::from_padded(at<int64_t>(ids), batch, width, num_embeddings);
          },
          py::call_guard<py::gil_scoped_release>())
      .def_static(
          "from_offsets",
          [](Address offsets, int64_t batch, Address ids, int64_t count, int64_t num_embeddings) {
            return Exclude::from_offsets(at<int64_t>(offsets), batch, at<int64_t>(ids), count,
                                         num_embeddings);
          },
          py::call_guard<py::gil_scoped_release>());

  py::class_<Grouping>(m, "Grouping")
      .def(py::init([](Address ids, int64_t count, int64_t first_id, int64_t rows) {
             return Grouping(at<int64_t>(ids), count, first_id, rows);
           }),
           py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("count", &Grouping::count)
      .def("copy_ids",
           [](const Grouping& groups, Address out) { groups.copy_ids(at<int64_t>(out)); });

  define_compressed(m);
  define_cpu(m);
#if defined(ALPHAFUSE_CUDA)
  define_cuda(m);
#endif
}
