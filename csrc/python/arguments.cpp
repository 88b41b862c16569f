#include "python/arguments.h"

#include <cstring>
#include <stdexcept>
#include <utility>

namespace alphafuse {
namespace python {
namespace {

constexpr int kMaxDims = 16;

// What is read of a tensor.
struct Tensor {
  void* data = nullptr;
  Element element = Element::kFloat32;
  int dims = 0;
  int64_t sizes[kMaxDims];
  int place = kUnknownPlace;
};

class Name {
 public:
  explicit Name(const char* name) : name_(PyUnicode_InternFromString(name)) {}
  py::object of(PyObject* object) const {
    return py::reinterpret_steal<py::object>(checked(PyObject_GetAttr(object, name_)));
  }
  py::object call(PyObject* object) const {
    return py::reinterpret_steal<py::object>(checked(PyObject_CallMethodNoArgs(object, name_)));
  }

 private:
  static PyObject* checked(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    return result;
  }
  PyObject* name_;
};

int64_t integer(PyObject* object) {
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// Dtypes are compared by the address of their object, after a first comparison by name.
struct ElementType {
  PyObject* dtype;
  const char* name;
  Element element;
};
ElementType element_types[] = {
    {nullptr, "torch.float32", Element::kFloat32}, {nullptr, "torch.bfloat16", Element::kBFloat16},
    {nullptr, "torch.float16", Element::kFloat16}, {nullptr, "torch.int64", Element::kInt64},
    {nullptr, "torch.int8", Element::kInt8},       {nullptr, "torch.uint8", Element::kUInt8},
};

std::string text_of(PyObject* object) { return py::str(py::handle(object)); }

bool find_element(PyObject* dtype, Element& element) {
  for (const ElementType& known : element_types) {
    if (known.dtype == dtype) return element = known.element, true;
  }
  const std::string name = text_of(dtype);
  for (ElementType& known : element_types) {
    if (name != known.name) continue;
    Py_INCREF(dtype);
    known.dtype = dtype;
    return element = known.element, true;
  }
  return false;
}

const char* name_of(Element element) {
  if (element == Element::kAnyFloat) return "torch.float32, torch.bfloat16 or torch.float16";
  for (const ElementType& known : element_types) {
    if (known.element == element) return known.name;
  }
  return "";
}

bool fits(Element given, Element wanted) {
  return given == wanted || (wanted == Element::kAnyFloat && given <= Element::kFloat16);
}

int place_of(PyObject* tensor) {
  static const Name is_cpu("is_cpu"), is_cuda("is_cuda"), get_device("get_device");
  if (is_cpu.of(tensor).ptr() == Py_True) return kHost;
  if (is_cuda.of(tensor).ptr() != Py_True) return kUnknownPlace;
  return static_cast<int>(integer(get_device.call(tensor).ptr()));
}

std::string device_of(PyObject* tensor) { return text_of(Name("device").of(tensor).ptr()); }

std::string place_name(int place) {
  return place == kHost ? "cpu" : "cuda:" + std::to_string(place);
}

int read_sizes(PyObject* tensor, int64_t* sizes) {
  static const Name shape("shape");
  const py::object object = shape.of(tensor);
  if (!PyTuple_Check(object.ptr()) || PyTuple_GET_SIZE(object.ptr()) > kMaxDims) {
    throw py::type_error("a shape that is no tuple");
  }
  const int dims = static_cast<int>(PyTuple_GET_SIZE(object.ptr()));
  for (int i = 0; i < dims; ++i) sizes[i] = integer(PyTuple_GET_ITEM(object.ptr(), i));
  return dims;
}

void* address_of(PyObject* tensor) {
  static const Name data_ptr("data_ptr");
  return reinterpret_cast<void*>(integer(data_ptr.call(tensor).ptr()));
}

PyObject* dtype_of(PyObject* tensor) {
  static const Name dtype("dtype");
  return dtype.of(tensor).ptr();  // tensors of a type share one object, which outlives them
}

std::string joined(const int64_t* sizes, int dims) {
  std::string text = "(";
  for (int i = 0; i < dims; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + (dims == 1 ? ",)" : ")");
}

[[noreturn]] void refuse_argument(PyObject* error, const std::string& argument,
                                  const std::string& got, const std::string& expected) {
  PyErr_SetString(error, (argument + ": got " + got + "; expected " + expected).c_str());
  throw py::error_already_set();
}

// One of the two tables, whose rows may be strided; None gives a null one.
Table read_table(PyObject* object, const char* name, int64_t& rows, int& place) {
  static const Name stride("stride");
  if (object == Py_None) return {nullptr, DType::kFloat32, 0, 0};
  int64_t sizes[kMaxDims];
  PyObject* dtype = nullptr;
  py::object strides;
  int dims = 0, where = kUnknownPlace;
  try {
    dtype = dtype_of(object);
    dims = read_sizes(object, sizes);
    strides = stride.call(object);
    where = place_of(object);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_AttributeError)) throw;
    refuse_argument(PyExc_TypeError, name, Py_TYPE(object)->tp_name, "a tensor or None");
  }
  Element element;
  if (!find_element(dtype, element) || !fits(element, Element::kAnyFloat)) {
    refuse_argument(PyExc_TypeError, name, text_of(dtype), "float32, bfloat16 or float16");
  }
  if (dims != 2 || sizes[0] < 1 || sizes[1] < 1) {
    refuse_argument(PyExc_ValueError, name, "shape " + joined(sizes, dims),
                    "(rows, columns), at least one of each");
  }
  const int64_t step = integer(PyTuple_GetItem(strides.ptr(), 1));
  if (sizes[1] > 1 && step != 1) {
    refuse_argument(PyExc_ValueError, name, "column stride " + std::to_string(step),
                    "1: call .contiguous() on it, once");
  }
  if (rows != -1 && sizes[0] != rows) {
    refuse_argument(PyExc_ValueError, name, std::to_string(sizes[0]) + " rows",
                    std::to_string(rows) + ", as many as semantic_rows");
  }
  if (where == kUnknownPlace || (place != kUnknownPlace && where != place)) {
    refuse_argument(PyExc_ValueError, name, "device " + device_of(object),
                    place == kUnknownPlace ? "cpu or cuda" : place_name(place));
  }
  rows = sizes[0];
  place = where;
  return {address_of(object), DType(element), integer(PyTuple_GetItem(strides.ptr(), 0)), sizes[1]};
}

}  // namespace

Signature::Signature(const char* kernel, const char* declared) : name(kernel) {
  // "const Tables& tables, Array<float, kBatch> out": the last word before each outer comma.
  int depth = 0;
  std::string word;
  for (const char* c = declared;; ++c) {
    depth += (*c == '<') - (*c == '>');
    if (*c == '\0' || (*c == ',' && depth == 0)) {
      arguments.push_back(word);
      if (*c == '\0') break;
    }
    if (*c == ' ' || *c == ',') {
      word.clear();
    } else if (*c != '*' && *c != '&') {
      word += *c;
    }
  }
}

std::string Signature::text() const {
  std::string text = name + "(";
  for (const std::string& argument : arguments) text += argument + ", ";
  return text + "/)\n--\n\n";
}

void Call::refuse(PyObject* error, const std::string& got, const std::string& expected) const {
  refuse_argument(error, signature_.name + ": " + signature_.arguments[argument_], got, expected);
}

void Call::fix_place(int place) {
  if (place_ == kUnknownPlace) place_ = place;
  if (place != place_) refuse(PyExc_ValueError, place_name(place), place_name(place_));
}

void Call::fix(Size name, int64_t value) {
  if (sizes_[name] == -1) sizes_[name] = value;
  if (sizes_[name] != value) {
    const std::string of = std::string(" ") + kSizeNames[name];
    refuse(PyExc_ValueError, std::to_string(value) + of, std::to_string(sizes_[name]) + of);
  }
}

std::string Call::shape_of(const Size* names, int count) const {
  std::string words, numbers;
  for (int i = 0; i < count; ++i) {
    const int64_t size = sizes_[names[i]];
    words += (i ? ", " : "") + std::string(kSizeNames[names[i]]);
    numbers += (i ? ", " : "") + (size == -1 ? kSizeNames[names[i]] : std::to_string(size));
  }
  const char* const end = count == 1 ? ",)" : ")";
  return "(" + words + end + " = (" + numbers + end;
}

void* Call::read(PyObject* object, Element& element, const Size* names, int count, int64_t* size) {
  static const Name is_contiguous("is_contiguous");
  Tensor tensor;
  try {
    PyObject* const dtype = dtype_of(object);
    Element given;
    if (!find_element(dtype, given) || !fits(given, element)) {
      refuse(PyExc_TypeError, text_of(dtype), name_of(element));
    }
    element = given;
    const int place = place_of(object);
    if (place == kUnknownPlace) refuse(PyExc_ValueError, device_of(object), place_name(place_));
    fix_place(place);
    tensor.dims = read_sizes(object, tensor.sizes);
    if (is_contiguous.call(object).ptr() != Py_True) {
      refuse(PyExc_ValueError, "a tensor that is not contiguous", "a contiguous one");
    }
    tensor.data = address_of(object);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_AttributeError)) throw;
    refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "a tensor");
  }
  bool same = tensor.dims >= count - 1;
  for (int i = 0; i < count && same; ++i) {
    const int skipped = tensor.dims - count;
    int64_t found = 1;
    if (i > 0) {
      found = tensor.sizes[skipped + i];
    } else {
      for (int d = 0; d <= skipped; ++d) found *= tensor.sizes[d];
    }
    int64_t& known = sizes_[names[i]];
    if (known == -1) known = found;
    same = known == found;
    size[i] = found;
  }
  if (!same) {
    refuse(PyExc_ValueError, "shape " + joined(tensor.sizes, tensor.dims), shape_of(names, count));
  }
  return tensor.data;
}

const Tables& Call::tables(PyObject* object) {
  if (!py::isinstance<TablesObject>(object)) {
    refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "Tables");
  }
  const auto& given = py::handle(object).cast<const TablesObject&>();
  fix_place(given.place);
  fix(kItems, given.tables.rows);
  fix(kDim, given.tables.dim);
  fix(kNullDim, given.tables.id.cols);
  fix(kBounds, 3);
  fix(kPaddedItems, padded_rows(given.tables.rows));
  fix(kCodes, codes_of(given.tables.rows, given.tables.dim));
  tables_ = &given.tables;
  return given.tables;
}

int64_t Call::read_integer(PyObject* object) {
  if (!PyLong_Check(object)) refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "an int");
  return integer(object);
}

double Call::read_number(PyObject* object) {
  if (!PyFloat_Check(object)) refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "a float");
  return PyFloat_AS_DOUBLE(object);
}

TablesObject::TablesObject(py::object semantic, py::object id, const std::string& how_fused,
                           const std::string& how_similar, int64_t first_id)
    : semantic_rows(std::move(semantic)),
      id_embeddings(std::move(id)),
      fusion(how_fused),
      similarity(how_similar) {
  if (fusion != "concat" && fusion != "add") {
    refuse_argument(PyExc_ValueError, "fusion", "'" + fusion + "'", "'concat' or 'add'");
  }
  if (similarity != "dot" && similarity != "cosine") {
    refuse_argument(PyExc_ValueError, "similarity", "'" + similarity + "'", "'dot' or 'cosine'");
  }
  int64_t rows = -1;
  const Table first = read_table(semantic_rows.ptr(), "semantic_rows", rows, place);
  const Table second = read_table(id_embeddings.ptr(), "id_embeddings", rows, place);
  if (rows == -1) {
    refuse_argument(PyExc_ValueError, "semantic_rows, id_embeddings", "None for both",
                    "a tensor for at least one of them");
  }
  tables = make_tables(first, second, rows, first_id, fusion == "add", similarity == "cosine");
}

Argument<const Tables&>::Argument(Call& call, PyObject* object) : value(call.tables(object)) {}

Argument<const Groups&>::Argument(Call& call, PyObject* object) {
  if (py::isinstance<Grouping>(object)) {
    call.fix_place(kHost);
    const auto& grouping = py::handle(object).cast<const Grouping&>();
    value = grouping.view();
    const int64_t count = call.size(kCount);
    const int64_t places = count == -1 ? call.size(kLists) * call.size(kCandidates) : count;
    if (grouping.places() != places) {
      call.refuse(PyExc_ValueError, "groups of " + std::to_string(grouping.places()) + " ids",
                  std::to_string(places));
    }
  } else {
    call.refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "groups of ids");
  }
  call.fix(kGradRows, value.dense ? value.rows : value.count);
}

Argument<const ExcludedIds&>::Argument(Call& call, PyObject* object) {
  if (object == Py_None) {
    value = {nullptr, nullptr};
  } else if (py::isinstance<Exclude>(object)) {
    call.fix_place(kHost);
    const auto& exclude = py::handle(object).cast<const Exclude&>();
    call.fix(kBatch, exclude.batch());
    value = exclude.view();
  } else if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2) {
    const auto at = [&](int i) { return PyTuple_GET_ITEM(object, i); };
    call.fix(kOffsets, call.size(kBatch) + 1);
    value = {Argument<Array<const int64_t, kOffsets>>(call, at(0)).value,
             Argument<Array<const int64_t, kEntries>>(call, at(1)).value};
  } else {
    call.refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "ids to exclude, or None");
  }
}

Argument<const Compressed*>::Argument(Call& call, PyObject* object) {
  if (!PyList_Check(object)) call.refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "a list");
  const Py_ssize_t count = PyList_GET_SIZE(object);
  if (count == 0) return;
  const Tables& tables = call.tables();
  Py_ssize_t next = 0;
  const auto take = [&]() {
    if (next == count) call.refuse(PyExc_ValueError, std::to_string(count) + " tensors", "more");
    return PyList_GET_ITEM(object, next++);
  };
  const auto read = [&](const Table& table) -> CompressedTable {
    if (table.data == nullptr) return {};
    call.forget(kCodes);
    call.fix(kCodes, codes_of(tables.rows, table.cols));
    const int8_t* codes = Argument<Array<const int8_t, kCodes>>(call, take()).value;
    const float* bounds = Argument<Array<const float, kBounds, kPaddedItems>>(call, take()).value;
    const int64_t length = padded_rows(tables.rows);
    return {codes, bounds, bounds + length, bounds + 2 * length};
  };
  value.copy.semantic = read(tables.semantic);
  value.copy.id = read(tables.id);
  if (tables.cosine) {
    value.copy.inverse_norms = Argument<Array<const float, kPaddedItems>>(call, take()).value;
  }
  if (next != count) {
    call.refuse(PyExc_ValueError, std::to_string(count) + " tensors", std::to_string(next));
  }
  value.present = true;
}

Argument<Workers>::Argument(Call& call, PyObject* object) : value{} {
  const bool pair = PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2;
  value.threads = Argument<int>(call, pair ? PyTuple_GET_ITEM(object, 0) : object).value;
  if (!pair) return;
  value.precision = Precision(call.read_integer(PyTuple_GET_ITEM(object, 1)));
  if (value.precision != Precision::kFloat32 && value.precision != Precision::kBFloat16) {
    call.refuse(PyExc_ValueError, "precision " + std::to_string(static_cast<int>(value.precision)),
                "float32 or bfloat16, which the CPU multiplies in");
  }
}

Argument<Launch&>::Argument(Call& call, PyObject* object) : value(kHost, nullptr), call_(call) {
  if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 4) {
    call.refuse(PyExc_TypeError, Py_TYPE(object)->tp_name, "(device, stream, allocate, precision)");
  }
  const auto device = static_cast<int>(call.read_integer(PyTuple_GET_ITEM(object, 0)));
  call.fix_place(device);
  value = {device, reinterpret_cast<void*>(call.read_integer(PyTuple_GET_ITEM(object, 1))),
           Precision(call.read_integer(PyTuple_GET_ITEM(object, 3)))};
  allocate_ = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(object, 2));
}

void Argument<Launch&>::allocate() {
  void* memory = nullptr;
  if (value.bytes() > 0) {
    memory_ = allocate_(value.bytes());
    call_.fix(kBytes, value.bytes());
    memory = Argument<Array<uint8_t, kBytes>>(call_, memory_.ptr()).value;
  }
  value.use(memory);
}

}  // namespace python
}  // namespace alphafuse
