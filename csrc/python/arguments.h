// Arguments of kernels from Python objects. A tensor is anything that has the attributes of a
// PyTorch tensor; the core neither includes nor links PyTorch. What does not fit is an exception
// that names kernel and argument.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "array.h"
#include "compressed.h"
#include "cpu/exclude.h"
#include "cpu/grouping.h"
#include "launch.h"

namespace alphafuse {
namespace python {

namespace py = pybind11;

// Where memory lies: on the host, or on the GPU of an index.
constexpr int kHost = -1;
constexpr int kUnknownPlace = -2;

enum class Element { kFloat32, kBFloat16, kFloat16, kInt64, kInt8, kUInt8, kAnyFloat };

// What `_core.Tables` holds: the tables as kernels see them, and the tensors, which stay alive.
struct TablesObject {
  TablesObject(py::object semantic_rows, py::object id_embeddings, const std::string& fusion,
               const std::string& similarity, int64_t first_id);

  py::object semantic_rows, id_embeddings;
  std::string fusion, similarity;
  Tables tables;
  int place = kUnknownPlace;
};

// A kernel's name and those of its arguments, for errors.
struct Signature {
  Signature(const char* name, const char* arguments);  // as written in kernels.def

  std::string name;
  std::vector<std::string> arguments;
  std::string text() const;
};

// One call of a kernel: which argument is being read, and the sizes known so far.
class Call {
 public:
  explicit Call(const Signature& signature) : signature_(signature) {
    for (int64_t& size : sizes_) size = -1;
  }

  Call& at(std::size_t argument) {
    argument_ = argument;
    return *this;
  }

  // Throws `error` (a Python exception type): "kernel: argument: got ...; expected ...".
  [[noreturn]] void refuse(PyObject* error, const std::string& got,
                           const std::string& expected) const;

  // All memory of a call lies in one place.
  void fix_place(int place);
  // A size as another argument says it to be, or -1.
  int64_t size(Size name) const { return sizes_[name]; }
  void fix(Size name, int64_t value);
  void forget(Size name) { sizes_[name] = -1; }

  // A contiguous tensor; its sizes go to `size`, one for each of `names`.
  void* read(PyObject* object, Element& element, const Size* names, int count, int64_t* size);
  int64_t read_integer(PyObject* object);
  double read_number(PyObject* object);
  const Tables& tables(PyObject* object);
  const Tables& tables() const { return *tables_; }  // those read before

 private:
  std::string shape_of(const Size* names, int count) const;

  const Signature& signature_;
  const Tables* tables_ = nullptr;
  std::size_t argument_ = 0;
  int place_ = kUnknownPlace;
  int64_t sizes_[kSizes];
};

template <class T>
struct ElementOf;
template <>
struct ElementOf<float> {
  static constexpr Element value = Element::kFloat32;
};
template <>
struct ElementOf<int64_t> {
  static constexpr Element value = Element::kInt64;
};
template <>
struct ElementOf<int8_t> {
  static constexpr Element value = Element::kInt8;
};
template <>
struct ElementOf<uint8_t> {
  static constexpr Element value = Element::kUInt8;
};

// Argument<T> reads an argument of type T from a Python object and holds it during the call.
template <class T>
struct Argument;

template <class T, Size... names>
struct Argument<Array<T, names...>> {
  Array<T, names...> value;
  Argument(Call& call, PyObject* object) {
    static constexpr Size kNames[] = {names...};
    Element element = ElementOf<std::remove_const_t<T>>::value;
    value.data = static_cast<T*>(call.read(object, element, kNames, sizeof...(names), value.size));
  }
};

template <class Void, Size... names>
struct Argument<FloatArray<Void, names...>> {
  FloatArray<Void, names...> value;
  Argument(Call& call, PyObject* object) {
    static constexpr Size kNames[] = {names...};
    Element element = Element::kAnyFloat;
    value.data = call.read(object, element, kNames, sizeof...(names), value.size);
    value.dtype = DType(element);
  }
};

template <class Any>
struct Argument<Optional<Any>> {
  Optional<Any> value = {};
  Argument(Call& call, PyObject* object) {
    if (object != Py_None) static_cast<Any&>(value) = Argument<Any>(call, object).value;
  }
};

template <>
struct Argument<const Tables&> {
  const Tables& value;
  Argument(Call& call, PyObject* object);
};

// A `Grouping`. Devices have groups of their own.
template <>
struct Argument<const Groups&> {
  Groups value;
  Argument(Call& call, PyObject* object);
};

// None, an `Exclude`, or on a device a tuple (offsets, ids).
template <>
struct Argument<const ExcludedIds&> {
  ExcludedIds value;
  Argument(Call& call, PyObject* object);
};

// A list of tensors, as ops/compressed.py makes it; empty: null.
template <>
struct Argument<const Compressed*> {
  struct {
    Compressed copy;
    bool present;
    operator const Compressed*() const { return present ? &copy : nullptr; }
  } value = {};
  Argument(Call& call, PyObject* object);
};

template <>
struct Argument<int64_t> {
  int64_t value;
  Argument(Call& call, PyObject* object) : value(call.read_integer(object)) {}
};

template <>
struct Argument<int> {
  int value;
  Argument(Call& call, PyObject* object) : value(static_cast<int>(call.read_integer(object))) {}
};

template <>
struct Argument<double> {
  double value;
  Argument(Call& call, PyObject* object) : value(call.read_number(object)) {}
};

template <>
struct Argument<bool> {
  bool value;
  Argument(Call&, PyObject* object) : value(object == Py_True) {}
};

template <>
struct Argument<std::string> {
  std::string value;
  Argument(Call&, PyObject* object) : value(py::handle(object).cast<std::string>()) {}
};

// A number of threads, or a tuple of that and the precision of products.
template <>
struct Argument<Workers> {
  Workers value;
  Argument(Call& call, PyObject* object);
};

// A tuple (index of the device, stream, allocate, precision): allocate(bytes) gives a uint8 tensor.
template <>
struct Argument<Launch&> {
  Launch value;
  Argument(Call& call, PyObject* object);
  void allocate();

 private:
  Call& call_;
  py::object allocate_, memory_;
};

}  // namespace python
}  // namespace alphafuse
