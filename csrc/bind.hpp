// Fills the arguments of an op from the keywords of a call in Python, and defines the functions of
// a module. A field takes the keyword of its name; without one, or with None, it keeps its default.
// An empty tensor is a null pointer: of a result, not wanted. Tensors are read through the methods
// that Python sees, so that no part of torch is needed to build; their dtype must be the field's.
#pragma once

#include "common/arguments.hpp"

#include <pybind11/pybind11.h>

#include <iterator>
#include <string>
#include <vector>

namespace vimpac {

namespace py = pybind11;

// torch's objects that tensors are asked for, found once.
struct TorchNames {
  py::object data_ptr = py::str("data_ptr"), dtype = py::str("dtype"), shape = py::str("shape");
  py::object float32, bfloat16, float16, int64;

  static const TorchNames& get() {
    static const TorchNames* const names = new TorchNames; // never freed: Python may end first
    return *names;
  }

private:
  TorchNames() {
    const py::module_ torch = py::module_::import("torch");
    float32 = torch.attr("float32");
    bfloat16 = torch.attr("bfloat16");
    float16 = torch.attr("float16");
    int64 = torch.attr("int64");
  }
};

// The values of one call on their way into fields. It keeps alive what it had to copy.
class Values {
public:
  explicit Values(bool aligns) : aligns_(aligns) {}

  void read(const char*, py::handle value, bool& field) { field = value.cast<bool>(); }
  void read(const char*, py::handle value, int& field) { field = value.cast<int>(); }
  void read(const char*, py::handle value, int64_t& field) { field = value.cast<int64_t>(); }
  void read(const char*, py::handle value, uint32_t& field) { field = value.cast<uint32_t>(); }
  void read(const char*, py::handle value, float& field) { field = value.cast<float>(); }

  void read(const char* name, py::handle value, const float*& field) {
    expect(name, value, names_.float32);
    field = reinterpret_cast<const float*>(address(name, value, true));
  }
  void read(const char* name, py::handle value, float*& field) {
    expect(name, value, names_.float32);
    field = reinterpret_cast<float*>(address(name, value, false));
  }
  void read(const char* name, py::handle value, const int64_t*& field) {
    expect(name, value, names_.int64);
    field = reinterpret_cast<const int64_t*>(address(value));
  }
  void read(const char* name, py::handle value, ConstArray& field) {
    read_array(name, value, field);
    field.data = reinterpret_cast<const void*>(address(name, value, true));
  }
  void read(const char* name, py::handle value, Array& field) {
    read_array(name, value, field);
    field.data = reinterpret_cast<void*>(address(name, value, false));
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
  // The same, of a copy where kernels could not load 16 bytes at once.
  uintptr_t address(const char* name, py::handle tensor, bool may_copy) {
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

  py::object dtype(const char* name, py::handle value) const {
    const auto found =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(value.ptr(), names_.dtype.ptr()));
    if (!found) {
      PyErr_Clear();
      throw py::type_error(std::string(name) + " must be a tensor, got " +
                           std::string(py::repr(value)));
    }
    return found;
  }

  void expect(const char* name, py::handle value, const py::object& wanted) const {
    if (const py::object found = dtype(name, value); !found.is(wanted)) {
      throw py::type_error(std::string(name) + " must be " + std::string(py::str(wanted)) +
                           ", got " + std::string(py::str(found)));
    }
  }

  template <class AnyArray>
  void read_array(const char* name, py::handle value, AnyArray& field) const {
    const py::object type = dtype(name, value);
    if (type.is(names_.float32)) {
      field.type = ElementType::kFloat32;
    } else if (type.is(names_.bfloat16)) {
      field.type = ElementType::kBfloat16;
    } else if (type.is(names_.float16)) {
      field.type = ElementType::kFloat16;
    } else {
      throw py::type_error(std::string(name) + " must be float32, bfloat16 or float16, got " +
                           std::string(py::str(type)));
    }
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
const std::vector<PyObject*>& field_names() {
  static const auto* const names = [] {
    auto* const found = new std::vector<PyObject*>; // never freed, as the strings
    Args{}.each_field(
        [&](const char* name, auto&) { found->push_back(PyUnicode_InternFromString(name)); });
    return found;
  }();
  return *names;
}

template <class Args>
Args fill(const char* op, const py::dict& keywords, Values& values) {
  Args args{};
  const std::vector<PyObject*>& names = field_names<Args>();
  size_t field_number = 0, found = 0;
  args.each_field([&](const char* name, auto& field) {
    const py::handle value = PyDict_GetItem(keywords.ptr(), names[field_number++]);
    found += static_cast<bool>(value);
    if (value && !value.is_none()) {
      values.read(name, value, field);
    }
  });
  if (found != keywords.size()) {
    throw py::type_error(std::string(op) + " does not take all of " +
                         std::string(py::repr(py::list(keywords))));
  }
  return args;
}

// Defines op(keywords, num_threads) for a kernel of the CPU; `run` picks the instruction set.
template <class Args, class Run>
void define_cpu_op(py::module_& module, const char* op, const Run& run) {
  module.def(op, [op, run](const py::dict& keywords, int num_threads) {
    Values values(false);
    Args args = fill<Args>(op, keywords, values);
    args.num_threads = num_threads;
    run(args);
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
