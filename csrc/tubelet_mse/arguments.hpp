#pragma once
#include "common/arguments.hpp"

namespace vimpac {
constexpr int kMostPixels = 4096; // of a tubelet

// Shapes were checked in Python. loss = mean (pred - target)^2; dpred = dloss * 2 (pred - target) /
// count. With v the n = t*P*P bytes of a channel of a tubelet, sums in integers, and std that of v,
// unbiased:
//   target = (n * v - sum(v)) / (n * (std + 255 * eps)), 0 where std is
struct TubeletMse : Call {
  ConstArray pred;                   // (B, M, t*P*P*3): frame, row, column, channel
  ConstByteArray video;              // (B, T, H, W, 3)
  const int32_t* tubelets = nullptr; // (B, M), indices into the grid (T/t, H/P, W/P)
  int t = 0, P = 0;
  float eps = 0;
  float* loss = nullptr;        // 0-d; forward only
  const float* dloss = nullptr; // 0-d; backward only
  Array dpred;                  // (B, M, t*P*P*3) of pred's type; backward only
  VIMPAC_FIELDS(pred, video, tubelets, t, P, eps, loss, dloss, dpred)
};

} // namespace vimpac
