// The operators of both modules, each with the struct of its arguments. csrc/<op>/cpu.cpp has
// bool <operator>(const Args&) in the namespace of each instruction set, which returns false if
// scratch memory ran out, with the results undefined. csrc/<op>/cuda.cu has
// void <operator>(const Args&), which does not wait for its kernels, and
// int64_t <operator>_workspace(const Args&), the fp32 elements of scratch memory that it needs.
#pragma once

#include "axial_attention/arguments.hpp"
#include "bias_gelu/arguments.hpp"
#include "dropout_add_layer_norm/arguments.hpp"
#include "embed_tokens/arguments.hpp"
#include "linear_cross_entropy/arguments.hpp"
#include "mask_tokens/arguments.hpp"
#include "tubelet_embed/arguments.hpp"
#include "tubelet_mse/arguments.hpp"

#define VIMPAC_EACH_OPERATOR(F)                                                                    \
  F(axial_attention_fwd, AxialAttention)                                                           \
  F(axial_attention_bwd, AxialAttention)                                                           \
  F(bias_gelu_fwd, BiasGelu)                                                                       \
  F(bias_gelu_bwd, BiasGelu)                                                                       \
  F(dropout_add_layer_norm_fwd, DropoutAddLayerNorm)                                               \
  F(dropout_add_layer_norm_bwd, DropoutAddLayerNorm)                                               \
  F(embed_tokens_fwd, EmbedTokens)                                                                 \
  F(embed_tokens_bwd, EmbedTokens)                                                                 \
  F(linear_cross_entropy_fwd, LinearCrossEntropy)                                                  \
  F(mask_tokens_fwd, MaskTokens)                                                                   \
  F(tubelet_embed_fwd, TubeletEmbed)                                                               \
  F(tubelet_mse_fwd, TubeletMse)                                                                   \
  F(tubelet_mse_bwd, TubeletMse)
