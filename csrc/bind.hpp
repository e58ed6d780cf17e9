// Fills the arguments of an op from the keywords of a call in Python, and defines the functions of
// a module. A field takes the keyword of its name; without one, or with None, it keeps its default.
// An empty tensor is a null pointer: of a result, not wanted. Tensors are read through the methods
// that Python sees, so that no part of torch is needed to build; their dtype must be the field's.
#pragma once

#include "common/arguments.hpp"

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <iterator>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace vimpac {

namespace py = pybind11;

// torch's names and dtypes, looked up once.
struct TorchNames {
  const py::object data_ptr = py::str("data_ptr"), dtype = py::str("dtype");
  const py::object shape = py::str("shape"), stride = py::str("stride");
  const py::module_ torch = py::module_::import("torch");
  const py::object float32 = torch.attr("float32"), bfloat16 = torch.attr("bfloat16");
  const py::object float16 = torch.attr("float16"), boolean = torch.attr("bool");
  const py::object int16 = torch.attr("int16"), uint16 = torch.attr("uint16");
  const py::object int32 = torch.attr("int32"), int64 = torch.attr("int64");

  static const TorchNames& get() {
    static const TorchNames* const names = new TorchNames; // never freed: Python may end first
    return *names;
  }
};

// The values of one call on their way into fields. It keeps alive what it had to copy.
class Values {
public:
  explicit Values(bool aligns) : aligns_(aligns) {}

  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  void read(const py::str&, py::handle value, T& field) {
    field = value.cast<T>();
  }
  template <class T, class = std::enable_if_t<std::is_enum_v<T>>, class = void>
  void read(const py::str&, py::handle value, T& field) {
    field = static_cast<T>(value.cast<int>());
  }
  template <class T, size_t kSize>
  void read(const py::str&, py::handle value, T (&field)[kSize]) {
    const auto list = py::reinterpret_borrow<py::sequence>(value);
    for (size_t i = 0; i < kSize && i < list.size(); ++i) {
      field[i] = list[i].cast<T>();
    }
  }
  void read(const py::str& name, py::handle value, const float*& field) {
    field = reinterpret_cast<const float*>(aligned(name, value, names_.float32, true));
  }
  void read(const py::str& name, py::handle value, float*& field) {
    field = reinterpret_cast<float*>(aligned(name, value, names_.float32, false));
  }
  void read(const py::str& name, py::handle value, const int64_t*& field) {
    field = reinterpret_cast<const int64_t*>(unaligned(name, value, names_.int64));
  }
  void read(const py::str& name, py::handle value, const int32_t*& field) {
    field = reinterpret_cast<const int32_t*>(unaligned(name, value, names_.int32));
  }
  void read(const py::str& name, py::handle value, int32_t*& field) {
    field = reinterpret_cast<int32_t*>(unaligned(name, value, names_.int32));
  }
  void read(const py::str& name, py::handle value, const uint8_t*& field) {
    field = reinterpret_cast<const uint8_t*>(unaligned(name, value, names_.boolean));
  }
  void read(const py::str& name, py::handle value, uint8_t*& field) {
    field = reinterpret_cast<uint8_t*>(unaligned(name, value, names_.boolean));
  }
  template <class Void>
  void read(const py::str& name, py::handle value, BasicArray<Void, ElementType>& field) {
    read_array(name, value, field,
               Types<ElementType>{{names_.float32, ElementType::kFloat32},
                                  {names_.bfloat16, ElementType::kBfloat16},
                                  {names_.float16, ElementType::kFloat16}});
  }
  void read(const py::str& name, py::handle value, ConstStridedArray& field) {
    field.type = type(name, value,
                      Types<ElementType>{{names_.float32, ElementType::kFloat32},
                                         {names_.bfloat16, ElementType::kBfloat16},
                                         {names_.float16, ElementType::kFloat16}});
    const auto read_from = [&](py::handle tensor) {
      field.data = reinterpret_cast<const void*>(address(tensor));
      const py::tuple shape = py::getattr(tensor, names_.shape);
      const py::tuple strides = tensor.attr(names_.stride)();
      bool aligned = reinterpret_cast<uintptr_t>(field.data) % 16 == 0;
      const int64_t bytes = field.type == ElementType::kFloat32 ? 4 : 2;
      for (size_t i = 0; i < shape.size() && i < std::size(field.sizes); ++i) {
        field.sizes[i] = shape[i].cast<int64_t>();
        field.strides[i] = strides[i].cast<int64_t>();
        const bool is_row = i + 1 == shape.size() || field.sizes[i] == 1;
        aligned = aligned && (is_row || field.strides[i] * bytes % 16 == 0);
      }
      return aligned;
    };
    if (!read_from(value) && aligns_) {
      copies_.push_back(
          value.attr("clone")(py::arg("memory_format") = names_.torch.attr("contiguous_format")));
      read_from(copies_.back());
    }
  }
  template <class Void>
  void read(const py::str& name, py::handle value, BasicArray<Void, IntegerType>& field) {
    read_array(name, value, field,
               Types<IntegerType>{{names_.int64, IntegerType::kInt64},
                                  {names_.int32, IntegerType::kInt32},
                                  {names_.int16, IntegerType::kInt16},
                                  {names_.uint16, IntegerType::kUint16}});
  }

  // Of a tensor's first element.
  uintptr_t address(py::handle tensor) const {
    const auto result = py::reinterpret_steal<py::object>(
        PyObject_CallMethodNoArgs(tensor.ptr(), names_.data_ptr.ptr()));
    if (!result) {
      throw py::error_already_set();
    }
    return result.cast<uintptr_t>();
  }

private:
  template <class Type>
  using Types = std::initializer_list<std::pair<const py::object&, Type>>;

  // The same, of a copy where kernels could not load 16 bytes at once.
  uintptr_t aligned(const py::str& name, py::handle tensor, bool may_copy) {
    const uintptr_t found = address(tensor);
    if (!aligns_ || found % 16 == 0) {
      return found;
    }
    if (!may_copy) {
      throw py::value_error(std::string(name) + " must start at a multiple of 16 bytes");
    }
    copies_.push_back(tensor.attr("clone")());
    return address(copies_.back());
  }

  uintptr_t
  aligned(const py::str& name, py::handle value, const py::object& wanted, bool may_copy) {
    expect(name, value, wanted);
    return aligned(name, value, may_copy);
  }

  uintptr_t unaligned(const py::str& name, py::handle value, const py::object& wanted) const {
    expect(name, value, wanted);
    return address(value);
  }

  py::object dtype(const py::str& name, py::handle value) const {
    const auto found =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(value.ptr(), names_.dtype.ptr()));
    if (!found) {
      PyErr_Clear();
      throw py::type_error(std::string(name) + " must be a tensor, got " +
                           std::string(py::repr(value)));
    }
    return found;
  }

  void expect(const py::str& name, py::handle value, const py::object& wanted) const {
    if (const py::object found = dtype(name, value); !found.is(wanted)) {
      throw wrong_dtype(name, found);
    }
  }

  static py::type_error wrong_dtype(const py::str& name, const py::object& found) {
    return py::type_error(std::string(name) + ": the kernel does not take " +
                          std::string(py::str(found)));
  }

  template <class Type>
  Type type(const py::str& name, py::handle value, const Types<Type>& types) const {
    const py::object found = dtype(name, value);
    for (const auto& [known, type] : types) {
      if (known.is(found)) {
        return type;
      }
    }
    throw wrong_dtype(name, found);
  }

  template <class Void, class Type>
  void read_array(const py::str& name,
                  py::handle value,
                  BasicArray<Void, Type>& field,
                  const Types<Type>& types) {
    field.type = type(name, value, types);
    field.data = reinterpret_cast<Void*>(aligned(name, value, std::is_const_v<Void>));
    const py::tuple shape = py::getattr(value, names_.shape);
    field.rows = field.columns = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      const auto size = shape[i].cast<int64_t>();
      (i + 1 < shape.size() ? field.rows : field.columns) *= size;
      if (i < std::size(field.sizes)) {
        field.sizes[i] = size;
      }
    }
  }

  const TorchNames& names_ = TorchNames::get();
  const bool aligns_;
  std::vector<py::object> copies_;
};

// The names of the fields of Args, as Python's dictionaries know them.
template <class Args>
const std::vector<py::str>& field_names() {
  static const auto* const names = [] {
    auto* const found = new std::vector<py::str>; // never freed: Python may end first
    std::istringstream words(Args::kNames);       // "dy, x, bias"
    for (std::string word; words >> word;) {
      if (word.back() == ',') {
        word.pop_back();
      }
      found->emplace_back(word);
      PyUnicode_InternInPlace(&found->back().ptr());
    }
    return found;
  }();
  return *names;
}

template <class Args>
Args fill(const char* op, const py::dict& keywords, Values& values) {
  Args args{};
  auto name = field_names<Args>().begin();
  size_t found = 0;
  const auto fill_field = [&](auto& field) {
    const py::handle value = PyDict_GetItem(keywords.ptr(), name->ptr());
    found += static_cast<bool>(value);
    if (value && !value.is_none()) {
      values.read(*name, value, field);
    }
    ++name;
  };
  std::apply([&](auto&... field) { (fill_field(field), ...); }, args.fields());
  if (found != keywords.size()) {
    throw py::type_error(std::string(op) + " does not take all of " +
                         std::string(py::repr(py::list(keywords))));
  }
  return args;
}

// Defines op(keywords, num_threads) for a kernel of the CPU; `run` picks the instruction set. It
// returns the first index that is out of range, or -1.
template <class Args, class Run>
void define_cpu_op(py::module_& module, const char* op, const Run& run) {
  module.def(op, [op, run](const py::dict& keywords, int num_threads) {
    Values values(false);
    Args args = fill<Args>(op, keywords, values);
    int64_t invalid = -1;
    args.num_threads = num_threads;
    args.invalid = &invalid;
    run(args);
    return invalid;
  });
}

// Defines op(keywords, stream, allocate) for a kernel of CUDA; allocate(n) makes n fp32 elements.
template <class Args>
void define_cuda_op(py::module_& module,
                    const char* op,
                    void (*run)(const Args&),
                    int64_t (*workspace)(const Args&) = nullptr) {
  module.def(op, [=](const py::dict& keywords, uintptr_t stream, const py::object& allocate) {
    Values values(true);
    Args args = fill<Args>(op, keywords, values);
    args.stream = reinterpret_cast<void*>(stream);
    const int64_t elements = workspace == nullptr ? 0 : workspace(args);
    const py::object scratch = elements == 0 ? py::none() : allocate(elements);
    args.workspace = elements == 0 ? nullptr : reinterpret_cast<float*>(values.address(scratch));
    run(args);
  });
}

} // namespace vimpac
