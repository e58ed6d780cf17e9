// How the lanes of a warp share a tubelet: chunks of its pixels, the statistics of its channels,
// and the differences from pred.
//
// A chunk is 8 neighbouring bytes where P is a multiple of 8, as rows of tubelets then start at
// multiples of 8 bytes, and one byte elsewhere. Lane i has chunks i, i + 32, ... in the order of
// pred. Channels alternate with a period of three bytes: the channels of a lane are numbered from
// that of its first byte on, so that the channel of every byte of an unrolled loop is a constant.
#pragma once
#include "cuda/vector.cuh"
#include "tubelet_mse/cuda_tuning.cuh"
#include "tubelet_mse/sizes.cuh"

namespace vimpac {

constexpr unsigned kAllLanes = 0xffffffffu;

template <int kBytes>
struct Pixels;
template <>
struct Pixels<8> {
  uint2 words;

  __device__ __forceinline__ void load(const uint8_t* p) {
    words = __ldg(reinterpret_cast<const uint2*>(p));
  }
  __device__ __forceinline__ unsigned operator[](int i) const {
    return (i < 4 ? words.x : words.y) >> 8 * (i % 4) & 0xffu;
  }
};
template <>
struct Pixels<1> {
  unsigned byte;

  __device__ __forceinline__ void load(const uint8_t* p) { byte = __ldg(p); }
  __device__ __forceinline__ unsigned operator[](int /*i*/) const { return byte; }
};

// An integer below 2^23 in two instructions of full rate; a conversion has a quarter of it.
__device__ __forceinline__ float small_float(unsigned x) {
  return __uint_as_float(0x4b000000u | x) - 8388608.0f;
}

template <int kElements, class T>
__device__ __forceinline__ void load_elements(float (&x)[kElements], const T* p) {
  if constexpr (kElements == kChunk) {
    load_chunk(x, p);
  } else {
    x[0] = to_float(*p);
  }
}

// x[i] = x[(i + by) % 3], 0 <= by < 3
template <class T>
__device__ __forceinline__ void rotate(T (&x)[3], int by) {
  const T a = x[0], b = x[1], c = x[2];
  x[0] = by == 0 ? a : by == 1 ? b : c;
  x[1] = by == 0 ? b : by == 1 ? c : a;
  x[2] = by == 0 ? c : by == 1 ? a : b;
}

// Makes the lanes' sums of v and v^2, by the lane's channels, the (n * mean, scale) of
// (n * v - n * mean) * scale. The scale of a flat channel is 0, of what is outside the grid NaN.
__device__ __forceinline__ void finish_statistics(const Tubelets& s,
                                                  int phase, // channel of the lane's first byte
                                                  bool inside,
                                                  unsigned (&sums)[3],
                                                  unsigned (&squares)[3],
                                                  float (&total)[3],
                                                  float (&scale)[3]) {
  rotate(sums, phase == 0 ? 0 : 3 - phase);
  rotate(squares, phase == 0 ? 0 : 3 - phase);
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const int64_t sum = __reduce_add_sync(kAllLanes, sums[c]);
    const int64_t square = __reduce_add_sync(kAllLanes, squares[c]);
    const int64_t spread = s.K / 3 * square - sum * sum;
    const float std = __fsqrt_rn(static_cast<float>(spread) * s.inverse);
    total[c] = static_cast<float>(sum);
    scale[c] = spread == 0 ? 0.0f : __frcp_rn(s.n * (std + s.eps));
    scale[c] = inside ? scale[c] : NAN;
  }
  rotate(total, phase);
  rotate(scale, phase);
}

// The chunks of a lane in one tubelet, the first kMseHeld of them in registers.
template <int kElements>
struct LaneChunks {
  static_assert(kMseHeld % 3 == 0);            // after which the channels of a lane repeat
  static constexpr int kStep = 32 * kElements; // elements from a chunk of a lane to its next
  static constexpr int kRound = kMseHeld * kStep;
  Pixels<kElements> held[kMseHeld];

  __device__ __forceinline__ void
  load(const uint8_t* tubelet, const int (&offsets)[kMseHeld], int left) {
#pragma unroll
    for (int j = 0; j < kMseHeld; ++j) {
      if (j * kStep < left) {
        held[j].load(tubelet + offsets[j]);
      }
    }
  }
  // use(pixels, begin, j) for all chunks: at element begin + j * kStep from the lane's first one
  // on, of which `left` are left. Those that are not held are read again.
  template <class Use>
  __device__ __forceinline__ void
  each(const Tubelets& s, const uint8_t* tubelet, int lane, int left, const Use& use) const {
#pragma unroll
    for (int j = 0; j < kMseHeld; ++j) {
      if (j * kStep < left) {
        use(held[j], 0, j);
      }
    }
#pragma unroll 1
    for (int begin = kRound; begin < left; begin += kRound) {
#pragma unroll
      for (int j = 0; j < kMseHeld; ++j) {
        if (begin + j * kStep < left) {
          Pixels<kElements> pixels;
          pixels.load(tubelet + s.offset(lane * kElements + begin + j * kStep));
          use(pixels, begin, j);
        }
      }
    }
  }
};

// Calls what(at, e) for each chunk of the lane in every tubelet of its warp: e = pred - target of
// kElements elements from `at` on, over all tubelets. NaN of an index outside the grid.
template <int kElements, class T, class What>
__device__ __forceinline__ void each_difference(const T* __restrict__ pred,           // (rows, K)
                                                const uint8_t* __restrict__ video,    // (B, clip)
                                                const int32_t* __restrict__ tubelets, // (rows,)
                                                const Tubelets& s,
                                                const What& what) {
  using Chunk = Pixels<kElements>;
  constexpr int kStep = LaneChunks<kElements>::kStep;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int left = s.K - lane * kElements, phase = lane * kElements % 3;
  int offsets[kMseHeld]; // the same in every tubelet
#pragma unroll
  for (int j = 0; j < kMseHeld; ++j) {
    offsets[j] = s.offset(lane * kElements + j * kStep);
  }
  for (unsigned row = blockIdx.x * kMseWarps + warp; row < s.rows; row += gridDim.x * kMseWarps) {
    const int index = __ldg(tubelets + row);
    const bool inside = index >= 0 && index < s.N;
    const uint8_t* const tubelet = video + s.first(row, inside ? index : 0);
    LaneChunks<kElements> chunks;
    chunks.load(tubelet, offsets, left);
    unsigned sums[3] = {}, squares[3] = {};
    chunks.each(s, tubelet, lane, left, [&](const Chunk& pixels, int, int j) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const unsigned v = pixels[i];
        sums[(i + j * kStep) % 3] += v;
        squares[(i + j * kStep) % 3] += v * v;
      }
    });
    float total[3], scale[3];
    finish_statistics(s, phase, inside, sums, squares, total, scale);
    const int64_t start = int64_t{row} * s.K + lane * kElements;
    chunks.each(s, tubelet, lane, left, [&](const Chunk& pixels, int begin, int j) {
      const int64_t at = start + begin + j * kStep;
      float e[kElements];
      load_elements(e, pred + at);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const int c = (i + j * kStep) % 3;
        const float centred = fmaf(small_float(pixels[i]), s.n, -total[c]); // exact
        e[i] = fmaf(centred, -scale[c], e[i]);
      }
      what(at, e);
    });
  }
}

} // namespace vimpac
