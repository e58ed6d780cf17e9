// Defines the operators of a module: fills the arguments of an op from the keywords of a call in
// Python. A field takes the keyword of its name; without one, or with None, it keeps its default.
// Tensors are read through their Python methods, so the build needs no part of torch. Their dtype
// must be that of the field. An empty tensor becomes a null pointer: a result that is not wanted.
#pragma once

#include "common/arguments.hpp"

#include <new>
#include <pybind11/pybind11.h>
#include <string>
#include <type_traits>
#include <vector>

namespace vimpac {
namespace py = pybind11;

// Which of TorchNames::dtypes a field takes: from the first to before the last.
struct Dtypes {
  int first, last;
  static constexpr Dtypes of(ElementType) { return {0, 3}; }
  static constexpr Dtypes of(IntegerType) { return {3, 7}; }
  static constexpr Dtypes of(ByteType) { return {8, 9}; }
  static constexpr Dtypes of(float) { return {0, 1}; }
  static constexpr Dtypes of(int32_t) { return {5, 6}; }
  static constexpr Dtypes of(int64_t) { return {6, 7}; }
  static constexpr Dtypes of(uint8_t) { return {7, 9}; }
};

// Attributes of torch and of its tensors, looked up once.
struct TorchNames {
  const py::object data_ptr = py::str("data_ptr"), dtype = py::str("dtype");
  const py::object shape = py::str("shape"), stride = py::str("stride");
  const py::module_ torch = py::module_::import("torch");
  const py::object dtypes[9] = {
      torch.attr("float32"), torch.attr("bfloat16"), torch.attr("float16"),
      torch.attr("int16"),   torch.attr("uint16"),   torch.attr("int32"),
      torch.attr("int64"),   torch.attr("bool"),     torch.attr("uint8")};

  static const TorchNames& get() {
    static const auto& names = *new TorchNames; // never freed: Python may end first
    return names;
  }
};

// Reads the values of one call into fields, and keeps the copies alive that it had to make.
class Values {
public:
  explicit Values(bool aligns) : aligns_(aligns) {}

  template <class T>
  void read(py::handle, py::handle value, T& field) {
    field = static_cast<T>(value.cast<std::conditional_t<std::is_enum_v<T>, int, T>>());
  }
  template <class T, size_t kSize>
  void read(py::handle, py::handle value, T (&field)[kSize]) {
    const auto list = py::reinterpret_borrow<py::sequence>(value);
    for (size_t i = 0; i < kSize && i < list.size(); ++i) {
      field[i] = list[i].cast<T>();
    }
  }
  template <class T>
  void read(py::handle name, py::handle value, T*& field) {
    dtype(name, value, Dtypes::of(std::remove_const_t<T>{}));
    constexpr bool kVectors = std::is_same_v<std::remove_const_t<T>, float>;
    field =
        reinterpret_cast<T*>(kVectors ? aligned(name, value, std::is_const_v<T>) : address(value));
  }
  template <class Void, class Type>
  void read(py::handle name, py::handle value, BasicArray<Void, Type>& field) {
    field.type = static_cast<Type>(dtype(name, value, Dtypes::of(Type{})));
    field.data = reinterpret_cast<Void*>(aligned(name, value, std::is_const_v<Void>));
    const py::tuple shape = py::getattr(value, names_.shape);
    field.rows = field.columns = 1;
    for (size_t i = 0; i < shape.size(); ++i) {
      field.rows *= field.columns;
      field.columns = shape[i].cast<int64_t>();
      if (i < std::size(field.sizes)) {
        field.sizes[i] = field.columns;
      }
    }
  }
  void read(py::handle name, py::handle value, ConstStridedArray& field) {
    field.type = static_cast<ElementType>(dtype(name, value, Dtypes::of(ElementType{})));
    const int64_t bytes = field.type == ElementType::kFloat32 ? 4 : 2;
    const auto read_from = [&](py::handle tensor) {
      field.data = reinterpret_cast<const void*>(address(tensor));
      const py::tuple shape = py::getattr(tensor, names_.shape);
      const py::tuple strides = tensor.attr(names_.stride)();
      bool aligned = reinterpret_cast<uintptr_t>(field.data) % 16 == 0;
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

  // The address of a tensor's first element.
  uintptr_t address(py::handle tensor) const {
    PyObject* const found = PyObject_CallMethodNoArgs(tensor.ptr(), names_.data_ptr.ptr());
    return found == nullptr ? throw py::error_already_set()
                            : py::reinterpret_steal<py::object>(found).cast<uintptr_t>();
  }

private:
  // The same, or that of a copy if the tensor's address does not allow loads of 16 bytes.
  uintptr_t aligned(py::handle name, py::handle tensor, bool may_copy) {
    const uintptr_t found = address(tensor);
    if (!aligns_ || found % 16 == 0) {
      return found;
    }
    if (!may_copy) {
      throw py::value_error(py::str("{} must start at a multiple of 16 bytes").format(name));
    }
    copies_.push_back(tensor.attr("clone")());
    return address(copies_.back());
  }

  // The number of a tensor's dtype among those that its field takes.
  int dtype(py::handle name, py::handle value, Dtypes taken) const {
    const py::object found = py::getattr(value, names_.dtype, py::none());
    for (int i = taken.first; i < taken.last; ++i) {
      if (found.is(names_.dtypes[i])) {
        return i - taken.first;
      }
    }
    throw py::type_error(found.is_none()
                             ? py::str("{} must be a tensor, got {!r}").format(name, value)
                             : py::str("{}: the kernel does not take {}").format(name, found));
  }

  const TorchNames& names_ = TorchNames::get();
  const bool aligns_;
  std::vector<py::object> copies_;
};

// The arguments of a call; `name` are those of the fields.
template <class Args>
Args fill(const char* op, const py::dict& keywords, Values& values) {
  static const auto& names = *new py::list(py::str(Args::kNames).attr("split")(", "));
  Args args{};
  size_t number = 0, found = 0;
  const auto fill_field = [&](auto& field) {
    const py::handle name = PyList_GET_ITEM(names.ptr(), number++);
    const py::handle value = PyDict_GetItem(keywords.ptr(), name.ptr());
    found += static_cast<bool>(value);
    if (value && !value.is_none()) {
      values.read(name, value, field);
    }
  };
  std::apply([&](auto&... field) { (fill_field(field), ...); }, args.fields());
  if (found != keywords.size()) {
    throw py::type_error(py::str("{} does not take all of {}").format(op, py::list(keywords)));
  }
  return args;
}

// Defines op(keywords, num_threads) for a CPU kernel; `run` returns false if memory ran out. The
// operator returns the first index that is out of range, or -1.
template <class Args, class Run>
void define_cpu_operator(py::module_& module, const char* op, const Run& run) {
  module.def(op, [op, run](const py::dict& keywords, int num_threads) {
    Values values(false);
    Args args = fill<Args>(op, keywords, values);
    int64_t invalid = -1;
    args.num_threads = num_threads;
    args.invalid = &invalid;
    const py::gil_scoped_release release;
    if (!run(args)) {
      throw std::bad_alloc();
    }
    return invalid;
  });
}

// Defines op(keywords, stream, allocate) for a kernel of CUDA; allocate(n) makes n fp32 elements.
template <class Args>
void define_cuda_operator(py::module_& module,
                          const char* op,
                          void (*run)(const Args&),
                          int64_t (*workspace)(const Args&)) {
  module.def(op, [=](const py::dict& keywords, uintptr_t stream, const py::object& allocate) {
    Values values(true);
    Args args = fill<Args>(op, keywords, values);
    args.stream = reinterpret_cast<void*>(stream);
    const int64_t elements = workspace(args);
    const py::object scratch = elements == 0 ? py::none() : allocate(elements);
    args.workspace = elements == 0 ? nullptr : reinterpret_cast<float*>(values.address(scratch));
    run(args);
  });
}

} // namespace vimpac
