// Python module vimpac_kernels._C_cpu: picks an instruction set once and hands plain pointers to
// the kernels. It knows nothing of torch; vimpac_kernels/_library.py registers the ops.
#include "bind.hpp"
#include "cpu/axial_axis.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>
#include <optional>
#include <string>
#include <vector>

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

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
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

// Whether axial_attention_long.cpp is the faster kernel: longer lines overflow the other's tiles,
// and only it multiplies pairs of bf16.
bool has_long_lines(const vimpac::AxialAttention& args) {
  const bool pairs = args.dtype == vimpac::ElementType::kBfloat16 && current_isa == Isa::avx512bf16;
  return vimpac::longest_line(args) >= (pairs ? 64 : 192);
}

template <bool kBackward>
void axial_attention(uintptr_t dout,    // (B, S, N, Dh) contiguous; 0 in the forward
                     uintptr_t qkv,     // (B, S, 3, N, Dh), unit last stride
                     uintptr_t padding, // (B, T, H, W) bool, or 0
                     uintptr_t seed,    // 0-d int64, or 0
                     uintptr_t result,  // out (B, S, N, Dh), or dqkv (B, S, 3, N, Dh)
                     uintptr_t bias,    // (3, N, Dh) fp32, or 0
                     uintptr_t dbias,   // (3, N, Dh) fp32, or 0
                     int dtype,
                     std::array<int64_t, 5> shape, // of qkv
                     std::array<int64_t, 5> strides,
                     std::array<int64_t, 3> grid,
                     const std::vector<int>& axes,
                     float scale,
                     uint32_t threshold,
                     float keep_scale,
                     int num_threads) {
  using Args = vimpac::AxialAttention;
  Args args{};
  args.qkv = pointer<const void>(qkv);
  args.dout = pointer<const void>(dout);
  args.result = pointer<void>(result);
  args.bias = pointer<const float>(bias);
  args.dbias = pointer<float>(dbias);
  args.padding = pointer<const uint8_t>(padding);
  args.seed = pointer<const int64_t>(seed);
  args.dtype = static_cast<vimpac::ElementType>(dtype);
  args.B = shape[0];
  std::copy(grid.begin(), grid.end(), args.grid);
  args.N = shape[3];
  args.Dh = shape[4];
  std::copy(strides.begin(), strides.begin() + 4, args.strides);
  args.has_cls = shape[1] != grid[0] * grid[1] * grid[2];
  args.num_axes = static_cast<int>(std::min<size_t>(axes.size(), 3));
  std::copy(axes.begin(), axes.begin() + args.num_axes, args.axes);
  args.scale = scale;
  args.threshold = threshold;
  args.keep_scale = keep_scale;
  args.num_threads = num_threads;
  const bool is_long = has_long_lines(args);
  if constexpr (kBackward) {
    is_long ? run<Args>(VIMPAC_EACH_ISA(axial_attention_long_bwd), args)
            : run<Args>(VIMPAC_EACH_ISA(axial_attention_bwd), args);
  } else {
    is_long ? run<Args>(VIMPAC_EACH_ISA(axial_attention_long_fwd), args)
            : run<Args>(VIMPAC_EACH_ISA(axial_attention_fwd), args);
  }
}

} // namespace

PYBIND11_MODULE(_C_cpu, module) {
  module.doc() = "CPU kernels of vimpac_kernels, for raw pointers";
  module.def("cpu_capability", &cpu_capability,
             "Instruction set in use: portable, avx2, avx512 or avx512bf16");
  module.def("set_cpu_capability", &set_cpu_capability, py::arg("name"),
             "Use a lower instruction set (tests); ValueError if the processor lacks it");
  VIMPAC_DEFINE_CPU_OP(module, mask_tokens_fwd, vimpac::MaskTokens);
  module.def("axial_attention_fwd", &axial_attention<false>);
  module.def("axial_attention_bwd", &axial_attention<true>);
  VIMPAC_DEFINE_CPU_OP(module, linear_cross_entropy_fwd, vimpac::LinearCrossEntropy);
  VIMPAC_DEFINE_CPU_OP(module, dropout_add_layer_norm_fwd, vimpac::DropoutAddLayerNorm);
  VIMPAC_DEFINE_CPU_OP(module, dropout_add_layer_norm_bwd, vimpac::DropoutAddLayerNorm);
  VIMPAC_DEFINE_CPU_OP(module, bias_gelu_fwd, vimpac::BiasGelu);
  VIMPAC_DEFINE_CPU_OP(module, bias_gelu_bwd, vimpac::BiasGelu);
  VIMPAC_DEFINE_CPU_OP(module, embed_tokens_fwd, vimpac::EmbedTokens);
  VIMPAC_DEFINE_CPU_OP(module, embed_tokens_bwd, vimpac::EmbedTokens);
}
