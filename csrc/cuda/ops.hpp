// Host entry points of the CUDA kernels: device pointers, sizes, strides in elements, and the
// stream as void*. Each op's are defined in <op>/cuda.cu and bound in module_cuda.cpp; none of them
// synchronizes.
#pragma once
#include <cstdint>

#include "axial_attention/arguments.hpp"
#include "bias_gelu/arguments.hpp"
#include "common/arguments.hpp"
#include "dropout_add_layer_norm/arguments.hpp"
#include "embed_tokens/arguments.hpp"
#include "linear_cross_entropy/arguments.hpp"
#include "mask_tokens/arguments.hpp"

namespace vimpac {

void mask_tokens_fwd(const MaskTokens& args);
int64_t mask_tokens_fwd_workspace(const MaskTokens& args);

void dropout_add_layer_norm_fwd(const DropoutAddLayerNorm& args);
void dropout_add_layer_norm_bwd(const DropoutAddLayerNorm& args);
int64_t dropout_add_layer_norm_bwd_workspace(const DropoutAddLayerNorm& args);

void bias_gelu_fwd(const BiasGelu& args);
void bias_gelu_bwd(const BiasGelu& args);
int64_t bias_gelu_bwd_workspace(const BiasGelu& args);

void embed_tokens_fwd(const EmbedTokens& args);
void embed_tokens_bwd(const EmbedTokens& args);
int64_t embed_tokens_bwd_workspace(const EmbedTokens& args);

void linear_cross_entropy_fwd(const LinearCrossEntropy& args);
int64_t linear_cross_entropy_fwd_workspace(const LinearCrossEntropy& args);

void axial_attention_fwd(const AxialAttention& args);
int64_t axial_attention_fwd_workspace(const AxialAttention& args);
void axial_attention_bwd(const AxialAttention& args);
int64_t axial_attention_bwd_workspace(const AxialAttention& args);

} // namespace vimpac
