// Arguments of mask_tokens' kernels on the CPU and on CUDA; shapes and values were checked in
// Python.
#pragma once

#include <stdint.h>

namespace vimpac {

struct MaskTokensFwd {
  const void* tokens;         // (B, T, H, W) of token_type
  const int64_t* seed;        // 0-d
  const int64_t* clip_offset; // 0-d, modulo 2^32
  void* inputs;               // (B, T, H, W) of token_type
  uint8_t* mask;              // (B, T, H, W), 0 or 1
  int32_t* positions;         // (B*T*H*W,)
  int32_t* count;             // 0-d
  enum TokenType { kInt16, kUInt16, kInt32, kInt64 } token_type;
  int64_t B;
  int T, H, W;
  enum Strategy { kBlock, kIid, kTube } strategy;
  int num_blocks;
  int max_block[3]; // along T, H, W
  uint64_t amount;  // iid: a word below it masks its token; tube: cells masked in every frame
  int64_t mask_token;
  bool has_pad;
  int64_t pad_token;
  enum Noise { kNone, kPerToken, kPerBlock } noise;
  uint64_t noise_low, noise_high; // decisions below low: mask token; below high: random id
  uint32_t vocab_size;
  int row_offset;
  int num_threads; // CPU
};

} // namespace vimpac
