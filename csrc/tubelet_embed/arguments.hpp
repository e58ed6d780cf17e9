#pragma once
#include "common/arguments.hpp"

namespace vimpac {
//   pixels = scale * byte + shift of the tubelets, rows = positions[tubelet] + bias
// A tubelet is t frames of P rows of 3 P bytes, so K = t * P * 3 P. N tubelets make a clip.
struct TubeletEmbed : Call {
  const uint8_t* video = nullptr;    // (B, t * grid[0], P * grid[1], P * grid[2], 3)
  int64_t strides[3] = {};           // from clip to clip, frame to frame, row to row
  int grid[3] = {};                  // tubelets along T, H, W
  int t = 1, P = 1;                  // frames, and pixels of a side, of a tubelet
  const int32_t* tubelets = nullptr; // (B, V)
  int64_t V = 1;
  float scales[3] = {}, shifts[3] = {}; // of the channels
  const float* positions = nullptr;     // (N, D), read for rows only, as bias
  const float* bias = nullptr;          // (D,)
  Array pixels;                         // (B * V, K)
  Array rows;                           // (B, V, D) of the type of pixels, or null: not wanted
  uint8_t* patches = nullptr;           // (B * V, K), the bytes themselves, or null: not wanted
  VIMPAC_FIELDS(video, strides, grid, t, P, tubelets, V, scales, shifts, positions, bias, pixels, rows,
                patches)
};

} // namespace vimpac
