// Fills the arguments of an op from the keywords of a call in Python, and defines the functions of
// a module. A field takes the keyword of its name; without one, or with None, it keeps its default.
// An empty tensor is a null pointer: of a result, not wanted.
#pragma once

#include "bind_values.hpp"

#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace vimpac {

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
