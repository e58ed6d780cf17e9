// Entry points of the CPU kernels, one namespace per instruction set (csrc/cpu/<op>.cpp is compiled
// once for each). Arguments travel as one plain struct per op: raw pointers, sizes, strides in
// elements and the number of threads. Shapes and values were checked in Python.
// A kernel returns false if scratch memory ran out, with its outputs undefined.
#pragma once

#include "mask_tokens.hpp"

namespace vimpac {

struct AxialAttention {
  const void* qkv;        // (B, S, 3, N, Dh) of dtype, unit last stride
  const void* dout;       // (B, S, N, Dh) of dtype, contiguous; backward only
  void* result;           // out (B, S, N, Dh), or dqkv (B, S, 3, N, Dh), contiguous
  const uint8_t* padding; // (B, T, H, W), 1 = never a key; null if there is none
  const int64_t* seed;    // 0-d; null without dropout
  enum DType { kFloat32, kBfloat16, kFloat16 } dtype;
  int64_t B;
  int64_t grid[3]; // T, H, W
  int64_t N, Dh;
  int64_t strides[4]; // of qkv, in elements
  bool has_cls;       // S = has_cls + T*H*W
  int num_axes;       // head groups
  int axes[3];        // of each group: 0 T, 1 H, 2 W
  float scale;
  uint32_t threshold; // a 16-bit decision below it drops; 0: no dropout
  float keep_scale;
  int num_threads;
};

#define VIMPAC_DECLARE_CPU_OPS(isa)                                                                \
  namespace isa {                                                                                  \
  bool mask_tokens_fwd(const MaskTokensFwd& args);                                                 \
  bool axial_attention_fwd(const AxialAttention& args);                                            \
  bool axial_attention_bwd(const AxialAttention& args);                                            \
  }

VIMPAC_DECLARE_CPU_OPS(portable)
#if defined(__x86_64__)
VIMPAC_DECLARE_CPU_OPS(avx2)
VIMPAC_DECLARE_CPU_OPS(avx512)
#endif

#undef VIMPAC_DECLARE_CPU_OPS

} // namespace vimpac
