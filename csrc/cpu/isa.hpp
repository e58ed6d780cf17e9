// The instruction sets that the CPU's kernels are compiled for, and the one in use.
#pragma once

#include <atomic>
#include <iterator>
#include <stdexcept>
#include <string>

namespace vimpac {

constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512bf16"};
constexpr int kIsas = static_cast<int>(std::size(kIsaNames));

// The number of the best one of this processor.
inline int detect_isa() {
#if defined(__x86_64__)
  // Every processor with AVX2 and FMA has F16C as well; old compilers cannot ask for it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
  }
  return avx2 ? 1 : 0;
#else
  return 0;
#endif
}

inline std::atomic<int> current_isa{detect_isa()};

inline std::string cpu_capability() {
  return kIsaNames[current_isa];
}

inline void set_cpu_capability(const std::string& name) {
  const int best = detect_isa();
  for (int isa = 0; isa <= best; ++isa) {
    if (name == kIsaNames[isa]) {
      current_isa = isa;
      return;
    }
  }
  throw std::invalid_argument("this processor cannot run '" + name + "'; its best is '" +
                              kIsaNames[best] + "'");
}

} // namespace vimpac
