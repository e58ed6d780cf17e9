// Parts of the row pass of linear_cross_entropy: how the threads of a block share a row, chunks of
// logits, reductions of a warp.
#pragma once
#include "cuda/vector.cuh"
#include "linear_cross_entropy/cuda_tuning.cuh"

#include <type_traits>

namespace vimpac {

constexpr int kStep = 32 * kChunk; // columns from a chunk of a thread to its next
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// A thread's columns: kChunks chunks, kPiece of them in registers at a time, the bias of kBias and
// the column sums of kSums of them in shared memory.
template <bool kWide>
struct RowLayout;
template <>
struct RowLayout<false> {
  static constexpr int kThreads = kLossThreads, kChunks = kLossChunks, kPiece = kLossChunks;
  static constexpr int kSums = kLossChunks, kBias = kLossChunks;
};
template <>
struct RowLayout<true> {
  static constexpr int kThreads = kLossWideThreads, kChunks = kLossWideChunks;
  static constexpr int kPiece = kLossWidePiece, kSums = kLossWideSums, kBias = 0;
  static_assert(kChunks % kPiece == 0 && kSums <= kChunks);
};

// The fewest threads that hold a row: more would only wait at the barriers.
constexpr int threads_of(int chunks, int stride) {
  return ((stride + kChunk - 1) / kChunk + 32 * chunks - 1) / (32 * chunks) * 32;
}

constexpr bool is_wide(int stride) {
  return threads_of(kLossChunks, stride) > kLossThreads;
}

__device__ __forceinline__ float max_of_warp(float x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, bit));
  }
  return x;
}

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, bit);
  }
  return x;
}

// A chunk as it is in memory. It is unpacked only where it is used: reading a register earlier
// would wait for its load.
template <class T>
struct LogitChunk {
  uint4 bits[kChunk / kVector<T>];

  __device__ __forceinline__ void load(const T* at) {
#pragma unroll
    for (int v = 0; v < kChunk / kVector<T>; ++v) {
      bits[v] = reinterpret_cast<const uint4*>(at)[v];
    }
  }
  __device__ __forceinline__ void unpack(float (&out)[kChunk]) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) { // the upper halves of fp32
      const unsigned words[] = {bits[0].x, bits[0].y, bits[0].z, bits[0].w};
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        out[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
      }
      return;
    }
    T values[kChunk];
    memcpy(static_cast<void*>(values), bits, sizeof(values));
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      out[i] = to_float(values[i]);
    }
  }
};

// A thread's own chunks of fp32 in shared memory, without bank conflicts.
template <int kOwn>
struct OwnChunks {
  float4* at; // (warps, kOwn, 2, 32), from the thread's first on

  __device__ explicit OwnChunks(float4* all)
      : at(all + threadIdx.x / 32 * (kOwn * 64) + threadIdx.x % 32) {}
  __device__ __forceinline__ float4& half(int c, int h) const { return at[64 * c + 32 * h]; }
};

// Four columns of bias: 0 without one, -inf behind the last class.
__device__ __forceinline__ float4 bias_of(const float* bias, int column, int V) {
  if (bias != nullptr && column + 4 <= V && reinterpret_cast<uintptr_t>(bias) % 16 == 0) {
    return __ldg(reinterpret_cast<const float4*>(bias + column));
  }
  float x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = column + i >= V ? -INFINITY : bias == nullptr ? 0.0f : bias[column + i];
  }
  return {x[0], x[1], x[2], x[3]};
}

// The logarithm of a sum of exp2(x * log2(e) - anchor * log2(e)), corrected for the rounding error
// of anchor * log2(e), which is the same in all exponents.
__device__ __forceinline__ float log_of(float sum, float anchor) {
  return logf(sum) - fmaf(anchor, kLog2e, -(anchor * kLog2e)) * kLn2;
}

} // namespace vimpac
