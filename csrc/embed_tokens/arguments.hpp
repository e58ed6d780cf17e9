#pragma once
#include "common/arguments.hpp"

namespace vimpac {
//   x = embedding[token] + time[t] + height[h] + width[w], or cls in row 0 of a clip
//   y = dropout((x - mean) * rstd * weight + bias), without LayerNorm dropout(x)
//   h = (x - mean) * rstd,  g = dropout(dy) * weight,  dx = rstd * (g - mean(g) - h * mean(g * h))
// S = [1 +] T * H * W.
struct EmbedTokens : Call {
  ConstIntegerArray tokens;      // (B, T, H, W) int32 or int64
  ConstArray embedding;          // (V, D), fp32 or of the type of y
  const float* time = nullptr;   // (T, D), or null: none along that axis
  const float* height = nullptr; // (H, D), or null
  const float* width = nullptr;  // (W, D)
  const float* cls = nullptr;    // (D,), or null: no such row
  const float* weight = nullptr; // (D,), or null, as bias: no LayerNorm
  float* mean = nullptr;         // (B * S,) read by the backward; null, as rstd: not wanted
  float* rstd = nullptr;         // (B * S,)
  const int64_t* seed = nullptr; // 0-d
  int threshold = 0;             // a 16-bit decision below it drops; 0: no dropout
  // Forward
  const float* bias = nullptr; // (D,)
  float eps = 0;
  Array y; // (B, S, D)
  // Backward
  ConstArray dy;                       // (B, S, D)
  const int32_t* sorted_ids = nullptr; // CUDA: (B * T * H * W,), those outside [0, V) at the ends
  const int64_t* order = nullptr;      // CUDA: number of the token of each sorted id
  float* dembedding = nullptr;         // (V, D), or null: not wanted; zeros on a CPU
  // (T + H + W + 3, D): rows of time, height, width, cls, weight, bias; or null; zeros on a CPU
  float* dvectors = nullptr;
  VIMPAC_FIELDS(tokens, embedding, time, height, width, cls, weight, mean, rstd, seed, threshold,
                bias, eps, y, dy, sorted_ids, order, dembedding, dvectors)
};

} // namespace vimpac
