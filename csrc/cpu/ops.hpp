// Entry points of the CPU kernels, one namespace per instruction set (csrc/cpu/<op>.cpp is compiled
// once for each). Arguments travel as one plain struct per op: raw pointers, sizes, strides in
// elements and the number of threads. Shapes and values were checked in Python.
// A kernel returns false if scratch memory ran out, with its outputs undefined.
#pragma once

#include "bias_gelu/arguments.hpp"
#include "common/arguments.hpp"
#include "dropout_add_layer_norm/arguments.hpp"
#include "embed_tokens/arguments.hpp"
#include "linear_cross_entropy/arguments.hpp"
#include "mask_tokens/arguments.hpp"

namespace vimpac {

struct AxialAttention {
  const void* qkv;        // (B, S, 3, N, Dh) of dtype, unit last stride
  const void* dout;       // (B, S, N, Dh) of dtype, contiguous; backward only
  void* result;           // out (B, S, N, Dh), or dqkv (B, S, 3, N, Dh), contiguous
  const float* bias;      // (3, N, Dh), added to qkv; null if there is none, or qkv contains it
  float* dbias;           // (3, N, Dh), or null: not wanted; backward only
  const uint8_t* padding; // (B, T, H, W), 1 = never a key; null if there is none
  const int64_t* seed;    // 0-d; null without dropout
  ElementType dtype;
  int64_t B;
  int64_t grid[3]; // T, H, W
  int64_t N, Dh;
  int64_t strides[4]; // of qkv, in elements
  bool has_cls;       // S = has_cls + T*H*W
  int num_axes;       // head groups
  int axes[3];        // of each group: 0 T, 1 H, 2 W, 3 HW, 4 THW
  float scale;
  uint32_t threshold; // a 16-bit decision below it drops; 0: no dropout
  float keep_scale;
  int num_threads;
};

#define VIMPAC_DECLARE_CPU_OPS(isa)                                                                \
  namespace isa {                                                                                  \
  bool mask_tokens_fwd(const MaskTokens& args);                                                    \
  bool axial_attention_fwd(const AxialAttention& args);                                            \
  bool axial_attention_bwd(const AxialAttention& args);                                            \
  bool axial_attention_long_fwd(const AxialAttention& args);                                       \
  bool axial_attention_long_bwd(const AxialAttention& args);                                       \
  bool linear_cross_entropy_fwd(const LinearCrossEntropy& args);                                   \
  bool dropout_add_layer_norm_fwd(const DropoutAddLayerNorm& args);                                \
  bool dropout_add_layer_norm_bwd(const DropoutAddLayerNorm& args);                                \
  bool bias_gelu_fwd(const BiasGelu& args);                                                        \
  bool bias_gelu_bwd(const BiasGelu& args);                                                        \
  bool embed_tokens_fwd(const EmbedTokens& args);                                                  \
  bool embed_tokens_bwd(const EmbedTokens& args);                                                  \
  }

VIMPAC_DECLARE_CPU_OPS(portable)
#if defined(__x86_64__)
VIMPAC_DECLARE_CPU_OPS(avx2)
VIMPAC_DECLARE_CPU_OPS(avx512)
VIMPAC_DECLARE_CPU_OPS(avx512bf16)
#endif

#undef VIMPAC_DECLARE_CPU_OPS

} // namespace vimpac
