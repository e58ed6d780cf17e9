// Python module vimpac_kernels._C_cpu: picks an instruction set once and hands plain pointers to
// the kernels. It knows nothing of torch; vimpac_kernels/_library.py registers the ops.
#include "cpu/ops.hpp"
#include "mask_tokens_binding.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>
#include <optional>
#include <string>

namespace py = pybind11;

namespace {

enum class Isa { portable, avx2, avx512 };

Isa detect_isa() {
#if defined(__x86_64__)
  // Every processor with AVX2 and FMA has F16C as well; old compilers cannot ask for it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (avx2) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512"};
std::atomic<Isa> current_isa{detect_isa()};

std::string cpu_capability() {
  return kIsaNames[static_cast<int>(current_isa.load())];
}

void set_cpu_capability(const std::string& name) {
  for (int isa = 0; isa <= static_cast<int>(detect_isa()); ++isa) {
    if (name == kIsaNames[isa]) {
      current_isa = static_cast<Isa>(isa);
      return;
    }
  }
  throw py::value_error("this processor cannot run '" + name + "'; its best is '" +
                        kIsaNames[static_cast<int>(detect_isa())] + "'");
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs the kernel of the current instruction set without the GIL.
template <class Args>
void run(bool (*const (&kernels)[3])(const Args&), const Args& args) {
  bool done;
  {
    py::gil_scoped_release release;
    done = kernels[static_cast<int>(current_isa.load())](args);
  }
  if (!done) {
    throw std::bad_alloc();
  }
}

#if defined(__x86_64__)
#define VIMPAC_EACH_ISA(op) {vimpac::portable::op, vimpac::avx2::op, vimpac::avx512::op}
#else
#define VIMPAC_EACH_ISA(op) {vimpac::portable::op, nullptr, nullptr}
#endif

} // namespace

PYBIND11_MODULE(_C_cpu, module) {
  module.doc() = "CPU kernels of vimpac_kernels, for raw pointers";
  module.def("cpu_capability", &cpu_capability, "Instruction set in use: portable, avx2 or avx512");
  module.def("set_cpu_capability", &set_cpu_capability, py::arg("name"),
             "Use a lower instruction set (tests); ValueError if the processor lacks it");
  vimpac::def_mask_tokens_fwd<int>(module, [](vimpac::MaskTokensFwd& args, int num_threads) {
    args.num_threads = num_threads;
    run<vimpac::MaskTokensFwd>(VIMPAC_EACH_ISA(mask_tokens_fwd), args);
  });
}
