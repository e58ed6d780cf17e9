// Host entry points of the CUDA kernels: device pointers, sizes, strides in elements, and the
// stream as void*. Each op's are defined in <op>.cu and bound in bindings.cpp; none of them
// synchronizes.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

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

struct AxialArguments {
  const void* qkv;        // (B, S, 3, N, Dh) of dtype, unit last stride, rows aligned to 16 bytes
  const void* dout;       // (B, S, N, Dh) of dtype, contiguous; backward only
  void* result;           // out (B, S, N, Dh), or dqkv (B, S, 3, N, Dh), contiguous
  float* dbias;           // (3, N, Dh), or null: not wanted; backward only
  float* workspace;       // of axial_attention_workspace elements
  const uint8_t* padding; // (B, T, H, W), 1 = never a key; null if there is none
  const int64_t* seed;    // 0-d, on the device; null without dropout
  ElementType dtype;
  int batch;
  std::array<int, 3> grid; // T, H, W
  int heads, head_dim;
  std::array<int64_t, 4> strides; // of qkv
  bool has_cls;                   // S = has_cls + T*H*W
  std::vector<int> axes;          // of each group of heads: 0 T, 1 H, 2 W
  float scale;
  unsigned threshold; // a 16-bit decision below it drops; 0: no dropout
};

void axial_attention_fwd(const AxialArguments& call, void* stream);
void axial_attention_bwd(const AxialArguments& call, void* stream);
// fp32 elements of scratch memory that a call needs: a backward if it has a dout.
int64_t axial_attention_workspace(const AxialArguments& call);

} // namespace vimpac
