// Entry points of the CPU kernels, one namespace per instruction set (csrc/<op>/cpu.cpp is compiled
// once for each). Arguments travel as one plain struct per op: raw pointers, sizes, strides in
// elements and the number of threads. Shapes and values were checked in Python.
// A kernel returns false if scratch memory ran out, with its outputs undefined.
#pragma once

#include "axial_attention/arguments.hpp"
#include "bias_gelu/arguments.hpp"
#include "common/arguments.hpp"
#include "dropout_add_layer_norm/arguments.hpp"
#include "embed_tokens/arguments.hpp"
#include "linear_cross_entropy/arguments.hpp"
#include "mask_tokens/arguments.hpp"

namespace vimpac {

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
