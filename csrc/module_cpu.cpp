// Python module vimpac_kernels._C_cpu: picks an instruction set once and calls its kernels.
#include "axial_attention/axis.hpp"
#include "bind.hpp"

#include <pybind11/pybind11.h>

#include <atomic>
#include <new>
#include <string>

namespace py = pybind11;

namespace {

enum class Isa { portable, avx2, avx512, avx512bf16 };

Isa detect_isa() {
#if defined(__x86_64__)
  // Every processor with AVX2 and FMA has F16C as well; old compilers cannot ask for it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  }
  if (avx2) {
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512bf16"};
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

// Runs the kernel of the current instruction set without the GIL.
template <class Args>
void run(bool (*const (&kernels)[4])(const Args&), const Args& args) {
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
#define VIMPAC_EACH_ISA(op)                                                                        \
  {vimpac::portable::op, vimpac::avx2::op, vimpac::avx512::op, vimpac::avx512bf16::op}
#else
#define VIMPAC_EACH_ISA(op) {vimpac::portable::op, nullptr, nullptr, nullptr}
#endif

#define VIMPAC_DEFINE_CPU_OP(module, op, Args)                                                     \
  vimpac::define_cpu_op<Args>(module, #op,                                                         \
                              [](const Args& args) { run<Args>(VIMPAC_EACH_ISA(op), args); })

// Whether axial_attention/cpu_long.cpp is the faster kernel: longer lines overflow the other's
// tiles, and only it multiplies pairs of bf16.
bool has_long_lines(const vimpac::AxialAttention& args) {
  const bool pairs =
      args.qkv.type == vimpac::ElementType::kBfloat16 && current_isa == Isa::avx512bf16;
  return vimpac::longest_line(vimpac::AxialCall(args)) >= (pairs ? 64 : 192);
}

void axial_attention_fwd(const vimpac::AxialAttention& args) {
  has_long_lines(args) ? run(VIMPAC_EACH_ISA(axial_attention_long_fwd), args)
                       : run(VIMPAC_EACH_ISA(axial_attention_fwd), args);
}

void axial_attention_bwd(const vimpac::AxialAttention& args) {
  has_long_lines(args) ? run(VIMPAC_EACH_ISA(axial_attention_long_bwd), args)
                       : run(VIMPAC_EACH_ISA(axial_attention_bwd), args);
}

} // namespace

PYBIND11_MODULE(_C_cpu, module) {
  module.doc() = "CPU kernels of vimpac_kernels";
  module.def("cpu_capability", &cpu_capability,
             "Instruction set in use: portable, avx2, avx512 or avx512bf16");
  module.def("set_cpu_capability", &set_cpu_capability, py::arg("name"),
             "Use a lower instruction set (tests); ValueError if the processor lacks it");
  VIMPAC_DEFINE_CPU_OP(module, mask_tokens_fwd, vimpac::MaskTokens);
  vimpac::define_cpu_op<vimpac::AxialAttention>(module, "axial_attention_fwd", axial_attention_fwd);
  vimpac::define_cpu_op<vimpac::AxialAttention>(module, "axial_attention_bwd", axial_attention_bwd);
  VIMPAC_DEFINE_CPU_OP(module, linear_cross_entropy_fwd, vimpac::LinearCrossEntropy);
  VIMPAC_DEFINE_CPU_OP(module, dropout_add_layer_norm_fwd, vimpac::DropoutAddLayerNorm);
  VIMPAC_DEFINE_CPU_OP(module, dropout_add_layer_norm_bwd, vimpac::DropoutAddLayerNorm);
  VIMPAC_DEFINE_CPU_OP(module, bias_gelu_fwd, vimpac::BiasGelu);
  VIMPAC_DEFINE_CPU_OP(module, bias_gelu_bwd, vimpac::BiasGelu);
  VIMPAC_DEFINE_CPU_OP(module, embed_tokens_fwd, vimpac::EmbedTokens);
  VIMPAC_DEFINE_CPU_OP(module, embed_tokens_bwd, vimpac::EmbedTokens);
}
