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

vimpac::EmbedTokens embed_tokens_arguments(std::array<uintptr_t, 10> tensors, // tokens ... seed
                                           std::array<int, 2> types,
                                           bool wide_tokens,
                                           std::array<int64_t, 6> sizes, // B, T, H, W, V, D
                                           uint32_t threshold,
                                           float keep_scale,
                                           int num_threads) {
  vimpac::EmbedTokens args{};
  args.tokens = pointer<const void>(tensors[0]);
  args.embedding = pointer<const void>(tensors[1]);
  for (int axis = 0; axis < 3; ++axis) {
    args.positions[axis] = pointer<const float>(tensors[2 + axis]);
  }
  args.cls = pointer<const float>(tensors[5]);
  args.weight = pointer<const float>(tensors[6]);
  args.mean = pointer<float>(tensors[7]);
  args.rstd = pointer<float>(tensors[8]);
  args.seed = pointer<const int64_t>(tensors[9]);
  args.embedding_type = static_cast<vimpac::ElementType>(types[0]);
  args.type = static_cast<vimpac::ElementType>(types[1]);
  args.wide_tokens = wide_tokens;
  args.B = sizes[0];
  std::copy(sizes.begin() + 1, sizes.begin() + 4, args.grid);
  args.V = sizes[4];
  args.D = sizes[5];
  args.threshold = threshold;
  args.keep_scale = keep_scale;
  args.num_threads = num_threads;
  return args;
}

// Returns the first token outside [0, V), or -1.
int64_t embed_tokens_fwd(uintptr_t bias, // (D,) fp32, or 0
                         uintptr_t y,    // (B, S, D)
                         float eps,
                         const vimpac::EmbedTokens& shared) {
  int64_t invalid = -1;
  vimpac::EmbedTokens args = shared;
  args.bias = pointer<const float>(bias);
  args.y = pointer<void>(y);
  args.eps = eps;
  args.invalid = &invalid;
  run<vimpac::EmbedTokens>(VIMPAC_EACH_ISA(embed_tokens_fwd), args);
  return invalid;
}

// Returns the same.
int64_t embed_tokens_bwd(uintptr_t dy,         // (B, S, D)
                         uintptr_t dembedding, // (V, D) fp32 zeros, or 0
                         uintptr_t dvectors,   // (T + H + W + 3, D) fp32 zeros, or 0
                         const vimpac::EmbedTokens& shared) {
  int64_t invalid = -1;
  vimpac::EmbedTokens args = shared;
  args.invalid = &invalid;
  args.dy = pointer<const void>(dy);
  args.dembedding = pointer<float>(dembedding);
  args.dvectors = pointer<float>(dvectors);
  run<vimpac::EmbedTokens>(VIMPAC_EACH_ISA(embed_tokens_bwd), args);
  return invalid;
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
  py::class_<vimpac::EmbedTokens>(module, "EmbedTokens", py::module_local())
      .def(py::init(&embed_tokens_arguments));
  module.def("embed_tokens_fwd", &embed_tokens_fwd);
  module.def("embed_tokens_bwd", &embed_tokens_bwd);
}
