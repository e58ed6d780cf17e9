// From a value of Python to a field of an argument struct. Tensors are read through the methods
// that Python sees, so that no part of torch is needed to build; their dtype must be the field's.
#pragma once

#include "common/arguments.hpp"

#include <pybind11/pybind11.h>

#include <iterator>
#include <string>
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
  const py::object float32 = torch.attr("float32"), boolean = torch.attr("bool");
  const py::object int32 = torch.attr("int32"), int64 = torch.attr("int64");
  const std::vector<std::pair<py::object, ElementType>> elements = {
      {float32, ElementType::kFloat32},
      {torch.attr("bfloat16"), ElementType::kBfloat16},
      {torch.attr("float16"), ElementType::kFloat16}};
  const std::vector<std::pair<py::object, IntegerType>> integers = {
      {int64, IntegerType::kInt64},
      {int32, IntegerType::kInt32},
      {torch.attr("int16"), IntegerType::kInt16},
      {torch.attr("uint16"), IntegerType::kUint16}};

  const py::object& dtype_of(float) const { return float32; }
  const py::object& dtype_of(int32_t) const { return int32; }
  const py::object& dtype_of(int64_t) const { return int64; }
  const py::object& dtype_of(uint8_t) const { return boolean; }
  const auto& dtypes_of(ElementType) const { return elements; }
  const auto& dtypes_of(IntegerType) const { return integers; }

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
  template <class T>
  void read(const py::str& name, py::handle value, T*& field) {
    using Plain = std::remove_const_t<T>;
    if (const py::object found = dtype(name, value); !found.is(names_.dtype_of(Plain{}))) {
      throw wrong_dtype(name, found);
    }
    field = reinterpret_cast<T*>(
        std::is_same_v<Plain, float> ? aligned(name, value, std::is_const_v<T>) : address(value));
  }
  template <class Void, class Type>
  void read(const py::str& name, py::handle value, BasicArray<Void, Type>& field) {
    field.type = type<Type>(name, value);
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
  void read(const py::str& name, py::handle value, ConstStridedArray& field) {
    field.type = type<ElementType>(name, value);
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

  static py::type_error wrong_dtype(const py::str& name, const py::object& found) {
    return py::type_error(std::string(name) + ": the kernel does not take " +
                          std::string(py::str(found)));
  }

  template <class Type>
  Type type(const py::str& name, py::handle value) const {
    const py::object found = dtype(name, value);
    for (const auto& [known, type] : names_.dtypes_of(Type{})) {
      if (known.is(found)) {
        return type;
      }
    }
    throw wrong_dtype(name, found);
  }

  const TorchNames& names_ = TorchNames::get();
  const bool aligns_;
  std::vector<py::object> copies_;
};

} // namespace vimpac
