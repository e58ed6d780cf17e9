// The sizes of a call, and where the bytes of a tubelet are in the video.
#pragma once
#include "cuda/platform.cuh"
#include "tubelet_mse/arguments.hpp"

namespace vimpac {

struct Tubelets {
  int64_t clip;  // bytes of a clip
  unsigned rows; // tubelets of all clips, fewer than 2^31
  int M, K;      // tubelets of a clip, elements of pred of a tubelet
  int t, P, H, W;
  int grid_h, grid_w, N;
  float n, inverse, eps; // n = t * P * P; 1 / (n (n - 1)); 255 * eps

  explicit Tubelets(const TubeletMse& a)
      : rows(static_cast<unsigned>(a.pred.rows)), M(static_cast<int>(a.pred.sizes[1])),
        K(static_cast<int>(a.pred.columns)), t(a.t), P(a.P), H(static_cast<int>(a.video.sizes[2])),
        W(static_cast<int>(a.video.sizes[3])), grid_h(H / P), grid_w(W / P),
        n(static_cast<float>(K / 3)), eps(255.0f * a.eps) {
    const int T = static_cast<int>(a.video.sizes[1]);
    clip = int64_t{3} * T * H * W;
    N = T / t * grid_h * grid_w;
    inverse = static_cast<float>(1.0 / (double{n} * (double{n} - 1.0)));
  }

  // Of byte `at` of a tubelet, from its first byte in the video on; it fits, see _select in Python.
  __device__ __forceinline__ int offset(int at) const {
    const int row = at / (3 * P), frame = row / P;
    return (frame * H + row % P) * W * 3 + at % (3 * P);
  }
  // Of the first byte of a tubelet of all clips.
  __device__ __forceinline__ int64_t first(unsigned row, int index) const {
    const unsigned clip_number = row / static_cast<unsigned>(M);
    const int line = index / grid_w, w = index % grid_w, frame = line / grid_h, h = line % grid_h;
    return clip_number * clip + ((int64_t{frame} * t * H + h * P) * W + w * P) * 3;
  }
};

} // namespace vimpac
