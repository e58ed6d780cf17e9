// Entry points of the CPU kernels, one namespace per instruction set (csrc/cpu/<op>.cpp is compiled
// once for each). Arguments travel as one plain struct per op: raw pointers, sizes, strides in
// elements and the number of threads. Shapes and values were checked in Python.
// A kernel returns false if scratch memory ran out, with its outputs undefined.
#pragma once

#include <stdint.h>

namespace vimpac {

struct MaskTokensFwd {
  const void* tokens;  // (B, T, H, W) of token_type
  const int64_t* seed; // 0-d
  void* inputs;        // (B, T, H, W) of token_type
  uint8_t* mask;       // (B, T, H, W), 0 or 1
  int32_t* positions;  // (B*T*H*W,)
  int32_t* count;      // 0-d
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
  uint32_t clip_offset;
  int row_offset;
  int num_threads;
};

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
