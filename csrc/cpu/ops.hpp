// Entry points of the CPU kernels, one namespace per instruction set (csrc/cpu/<op>.cpp is compiled
// once for each). Arguments travel as one plain struct per op: raw pointers, sizes, strides in
// elements and the number of threads. Shapes and values were checked in Python.
// A kernel returns false if scratch memory ran out, with its outputs undefined.
#pragma once

#include "mask_tokens.hpp"

namespace vimpac {

#define VIMPAC_DECLARE_CPU_OPS(isa)                                                                \
  namespace isa {                                                                                  \
  bool mask_tokens_fwd(const MaskTokensFwd& args);                                                 \
  }

VIMPAC_DECLARE_CPU_OPS(portable)
#if defined(__x86_64__)
VIMPAC_DECLARE_CPU_OPS(avx2)
VIMPAC_DECLARE_CPU_OPS(avx512)
#endif

#undef VIMPAC_DECLARE_CPU_OPS

} // namespace vimpac
