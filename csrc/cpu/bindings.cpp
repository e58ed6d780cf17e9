// Python module vimpac_kernels._C_cpu: picks an instruction set once and hands plain pointers to
// the kernels. It knows nothing of torch; vimpac_kernels/_library.py registers the ops.
#include "cpu/ops.hpp"

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

void mask_tokens_fwd(uintptr_t tokens,    // (B, T, H, W), bits per token: token_type
                     uintptr_t seed,      // 0-d int64
                     uintptr_t inputs,    // (B, T, H, W)
                     uintptr_t mask,      // (B, T, H, W) bool
                     uintptr_t positions, // (B*T*H*W,) int32
                     uintptr_t count,     // 0-d int32
                     int token_type,
                     std::array<int64_t, 4> shape,
                     int strategy,
                     int num_blocks,
                     std::array<int, 3> max_block,
                     uint64_t amount,
                     int64_t mask_token,
                     std::optional<int64_t> pad_token,
                     int noise,
                     std::array<uint64_t, 2> noise_below,
                     uint32_t vocab_size,
                     uint32_t clip_offset,
                     int row_offset,
                     int num_threads) {
  using Args = vimpac::MaskTokensFwd;
  Args args{};
  args.tokens = pointer<const void>(tokens);
  args.seed = pointer<const int64_t>(seed);
  args.inputs = pointer<void>(inputs);
  args.mask = pointer<uint8_t>(mask);
  args.positions = pointer<int32_t>(positions);
  args.count = pointer<int32_t>(count);
  args.token_type = static_cast<Args::TokenType>(token_type);
  args.B = shape[0];
  args.T = static_cast<int>(shape[1]);
  args.H = static_cast<int>(shape[2]);
  args.W = static_cast<int>(shape[3]);
  args.strategy = static_cast<Args::Strategy>(strategy);
  args.num_blocks = num_blocks;
  std::copy(max_block.begin(), max_block.end(), args.max_block);
  args.amount = amount;
  args.mask_token = mask_token;
  args.has_pad = pad_token.has_value();
  args.pad_token = pad_token.value_or(0);
  args.noise = static_cast<Args::Noise>(noise);
  args.noise_low = noise_below[0];
  args.noise_high = noise_below[1];
  args.vocab_size = vocab_size;
  args.clip_offset = clip_offset;
  args.row_offset = row_offset;
  args.num_threads = num_threads;
  run<Args>(VIMPAC_EACH_ISA(mask_tokens_fwd), args);
}

} // namespace

PYBIND11_MODULE(_C_cpu, module) {
  module.doc() = "CPU kernels of vimpac_kernels, for raw pointers";
  module.def("cpu_capability", &cpu_capability, "Instruction set in use: portable, avx2 or avx512");
  module.def("set_cpu_capability", &set_cpu_capability, py::arg("name"),
             "Use a lower instruction set (tests); ValueError if the processor lacks it");
  module.def("mask_tokens_fwd", &mask_tokens_fwd);
}
