// Python functions made of kernels: arguments and result are deduced from the kernel's type.
#pragma once

#include <new>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "cpu/interrupt.h"
#include "python/arguments.h"

namespace alphafuse {
namespace python {

template <class Value>
py::object to_python(Value&& value) {
  return py::cast(std::forward<Value>(value));
}
inline py::object to_python(FirstPassCount counted) {
  return py::make_tuple(counted.blocks, counted.redone);
}

// Lets Python see to signals, in its main thread: whether a handler has raised, as that of Ctrl-C does.
inline bool signal_has_raised() {
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  PyGILState_Release(state);
  return raised;
}

// Runs `body` as a Python function: an exception becomes Python's.
template <class Body>
PyObject* guarded(const Body& body) {
  try {
    return body().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (py::builtin_exception& error) {
    error.set_error();
  } catch (const Interrupted&) {  // by what the signal's handler has raised
  } catch (const std::out_of_range& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// `find` gives the kernel to call, at each call: which one it is may be a matter of the machine.
template <class Result, class... Parameters>
class Function {
 public:
  using Kernel = Result (*)(Parameters...);

  // The function lives as long as the process.
  static void define(py::module_& module, const char* name, const char* declared,
                     Kernel (*find)()) {
    auto* function = new Function(name, declared, find);
    const auto self = py::capsule(function);
    PyObject* made =
        PyCFunction_NewEx(&function->method_, self.ptr(), module.attr("__name__").ptr());
    if (made == nullptr) throw py::error_already_set();
    module.attr(name) = py::reinterpret_steal<py::object>(made);
  }

 private:
  static constexpr std::size_t kCount = sizeof...(Parameters);
  static constexpr bool kLaunches = (std::is_same<Parameters, Launch&>::value || ...);

  Function(const char* name, const char* declared, Kernel (*find)())
      : signature_(name, declared), text_(signature_.text()), find_(find) {
    method_.ml_name = name;
    method_.ml_meth = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call));
    method_.ml_flags = METH_FASTCALL;
    method_.ml_doc = text_.c_str();
  }

  static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
    return guarded([&] {
      const auto& function = *static_cast<Function*>(PyCapsule_GetPointer(self, nullptr));
      if (count != static_cast<Py_ssize_t>(kCount)) {
        throw py::type_error(function.signature_.name + ": got " + std::to_string(count) +
                             " arguments; expected " + std::to_string(kCount));
      }
      return function.run(given, std::index_sequence_for<Parameters...>());
    });
  }

  template <std::size_t... at>
  py::object run(PyObject* const* given, std::index_sequence<at...>) const {
    Call call(signature_);
    // Between braces: in their order, which sizes depend on.
    std::tuple<Argument<Parameters>...> arguments{Argument<Parameters>(call.at(at), given[at])...};
    const auto run_kernel = [&] {
      const py::gil_scoped_release unlocked;
      const Interruptible scope(&signal_has_raised);
      return find_()(std::get<at>(arguments).value...);
    };
    if constexpr (kLaunches) {
      auto& launch = std::get<kCount - 1>(arguments);
      run_kernel();
      launch.allocate();
    }
    if constexpr (std::is_void<Result>::value) {
      run_kernel();
      return py::none();
    } else {
      return to_python(run_kernel());
    }
  }

  Signature signature_;
  std::string text_;
  Kernel (*find_)();
  PyMethodDef method_;
};

template <class Result, class... Parameters>
void define(py::module_& module, const char* name, const char* declared,
            Result (*(*find)())(Parameters...)) {
  Function<Result, Parameters...>::define(module, name, declared, find);
}

// A device's kernels, a module of their own. Each device registers itself:
//
//   const Backend registered("cuda", [](py::module_& module) { ... });
struct Backend {
  using Define = void (*)(py::module_& module);
  Backend(const char* name, Define define) { all().push_back({name, define}); }
  static std::vector<std::pair<const char*, Define>>& all();
};

}  // namespace python
}  // namespace alphafuse
