// Python module vimpac_kernels._C_cpu: the CPU's kernels, of the instruction set in use.
#include "bind.hpp"
#include "cpu/isa.hpp"
#include "ops.hpp"

namespace vimpac {

#define VIMPAC_DECLARE(op, Args) bool op(const Args& args);

// clang-format off
namespace portable { VIMPAC_EACH_OPERATOR(VIMPAC_DECLARE) }
#if defined(__x86_64__)
namespace avx2 { VIMPAC_EACH_OPERATOR(VIMPAC_DECLARE) }
namespace avx512 { VIMPAC_EACH_OPERATOR(VIMPAC_DECLARE) }
namespace avx512bf16 { VIMPAC_EACH_OPERATOR(VIMPAC_DECLARE) }
#define VIMPAC_EACH_ISA(op) {portable::op, avx2::op, avx512::op, avx512bf16::op}
#else
#define VIMPAC_EACH_ISA(op) {portable::op}
#endif
// clang-format on

PYBIND11_MODULE(_C_cpu, module) {
  module.def("cpu_capability", &cpu_capability);
  module.def("set_cpu_capability", &set_cpu_capability, "Takes a lower instruction set, for tests");
#define VIMPAC_DEFINE(op, Args)                                                                    \
  define_cpu_operator<Args>(module, #op, [](const Args& args) {                                    \
    static constexpr bool (*kKernels[kIsas])(const Args&) = VIMPAC_EACH_ISA(op);                   \
    return kKernels[current_isa](args);                                                            \
  });
  VIMPAC_EACH_OPERATOR(VIMPAC_DEFINE)
}

} // namespace vimpac
