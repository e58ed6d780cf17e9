#pragma once
#include "common/arguments.hpp"

namespace vimpac {
// Shapes and values were checked in Python.
struct MaskTokens : Call {
  enum Strategy { kBlock, kIid, kTube };
  enum Noise { kNone, kPerToken, kPerBlock };

  ConstIntegerArray tokens;             // (B, T, H, W)
  const int64_t* seed = nullptr;        // 0-d
  const int64_t* clip_offset = nullptr; // 0-d, modulo 2^32
  IntegerArray inputs;                  // (B, T, H, W) of the type of tokens
  uint8_t* mask = nullptr;              // (B, T, H, W) bool
  int32_t* positions = nullptr;         // (B*T*H*W,)
  int32_t* count = nullptr;             // 0-d
  int64_t B = 0;
  int T = 0, H = 0, W = 0;
  Strategy strategy = kBlock;
  int num_blocks = 0;
  int max_block[3] = {}; // along T, H, W
  uint64_t amount = 0;   // iid: a word below it masks its token; tube: cells masked in every frame
  int64_t mask_token = 0;
  bool has_pad = false;
  int64_t pad_token = 0;
  Noise noise = kNone;
  uint64_t noise_below[2] = {}; // decisions below the first: mask token; the second: random id
  uint32_t vocab_size = 1;
  int row_offset = 0;
  VIMPAC_FIELDS(tokens, seed, clip_offset, inputs, mask, positions, count, B, T, H, W, strategy,
                num_blocks, max_block, amount, mask_token, has_pad, pad_token, noise, noise_below,
                vocab_size, row_offset)
};

} // namespace vimpac
