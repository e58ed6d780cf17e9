#pragma once
#include "common/arguments.hpp"

namespace vimpac {
struct AxialAttention : Call {
  ConstStridedArray qkv;                     // (B, S, 3, N, Dh), S = [1 +] T * H * W
  const float* bias = nullptr;               // CPU: (3, N, Dh), added to qkv; or null
  const uint8_t* key_padding_mask = nullptr; // (B, T, H, W) bool, true = never a key; or null
  const int64_t* seed = nullptr;             // 0-d; null without dropout
  int64_t grid[3] = {};                      // T, H, W
  int axes[3] = {-1, -1, -1};                // of each group of heads: 0 T, 1 H, 2 W, 3 HW, 4 THW
  float scale = 1;
  int threshold = 0;      // a 16-bit decision below it drops; 0: no dropout
  Array out;              // (B, S, N, Dh); forward
  ConstArray dout;        // (B, S, N, Dh); backward, as what follows
  Array dqkv;             // (B, S, 3, N, Dh)
  float* dbias = nullptr; // (3, N, Dh), or null: not wanted
  VIMPAC_FIELDS(qkv, bias, key_padding_mask, seed, grid, axes, scale, threshold, out, dout, dqkv,
                dbias)
};

} // namespace vimpac
