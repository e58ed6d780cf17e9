// Rows of (M, D) in the warps of a block, for kernels that normalise them: the columns of a thread,
// copies to shared memory, sums over a row, dropout.
#pragma once
#include "common/philox.hpp"
#include "cuda/mma.cuh"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"
#include "dropout_add_layer_norm/cuda_tuning.cuh"

namespace vimpac {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarpColumns = kNormChunks * 32 * kChunk; // of a row, that a warp holds
constexpr int kMaxWarps = (8192 + kWarpColumns - 1) / kWarpColumns;
static_assert(kNormWarps <= kMaxWarps && kMaxWarps <= 32, "a block holds the widest row");

// The rows of a launch, computed on the host, so that kernels read constants.
struct Rows {
  int64_t M;
  int D, warps_per_row;
  int stages;    // rows of a warp in shared memory or on their way to it: 1 or kNormStages
  int threshold; // 16-bit decisions below it drop
  float inverse_D, keep_scale; // keep_scale: the inverse of the fraction that dropout keeps

  // The mean of D elements from their sum, rounded once.
  __device__ float mean_of(float sum) const {
    const float quotient = sum * inverse_D;
    return fmaf(fmaf(-quotient, static_cast<float>(D), sum), inverse_D, quotient);
  }
  // The threshold, shifted to the upper decision of a word.
  __device__ uint32_t limit() const { return static_cast<uint32_t>(threshold) << 16; }
};

// The position of a thread: its row in the block, its columns.
struct Place {
  int rows_at_once; // of the block
  int row;          // this warp's among them
  int first;        // column of the warp
  int width;        // columns from there on
  int lane;

  // one_warp: whether warps_per_row is 1, as a compile-time constant.
  __device__ explicit Place(const Rows& rows, bool one_warp = false) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps_per_row = one_warp ? 1 : rows.warps_per_row;
    rows_at_once = static_cast<int>(blockDim.x) / 32 / warps_per_row;
    row = warp / warps_per_row;
    first = warp % warps_per_row * kWarpColumns;
    width = rows.D - first;
    lane = static_cast<int>(threadIdx.x) % 32;
  }
  // Of chunk c, within the warp's columns.
  __device__ int column(int c) const { return (c * 32 + lane) * kChunk; }
};

// The dropout decisions of a lane's chunks of a row.
struct Decisions {
  Philox4<uint32_t> words[kNormChunks];

  // Draws all of them at once: they share the keys of the rounds.
  __device__ __forceinline__ void draw(uint64_t seed, int64_t row, const Place& place) {
    const uint32_t first = opaque(static_cast<uint32_t>(place.first / kChunk + place.lane));
    const uint64_t key = static_cast<uint64_t>(opaque(static_cast<uint32_t>(seed >> 32))) << 32 |
                         opaque(static_cast<uint32_t>(seed));
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      words[c] = philox4x32_10<uint32_t>({first + 32 * c, static_cast<uint32_t>(row),
                                          static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32),
                                          kStreamResidual},
                                         key);
    }
  }
  // Whether element i of chunk c is kept. limit: as of Rows.
  __device__ __forceinline__ bool keep(int c, int i, uint32_t limit) const {
    const uint32_t word[4] = {words[c].x, words[c].y, words[c].z, words[c].w};
    return (i % 2 == 0 ? word[i / 2] << 16 : word[i / 2]) >= limit;
  }
};

// A chunk of a vector of D; zeros beyond its end, and for a null pointer.
__device__ __forceinline__ void load_column(float (&out)[kChunk],
                                            const float* vector, // (D,) or null
                                            int c,
                                            const Place& place) {
  if (vector != nullptr && place.column(c) < place.width) {
    load_chunk(out, vector + place.first + place.column(c));
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      out[i] = 0.0f;
    }
  }
}

// Bytes of a warp's columns of T in shared memory.
template <class T>
constexpr int kColumnBytes = kWarpColumns * static_cast<int>(sizeof(T));

// Starts the copy of a warp's columns to shared memory, 16 bytes a lane and neighbouring lanes side
// by side; zeros beyond the row's end, and for one that is not live.
template <class T>
__device__ __forceinline__ void copy_columns(unsigned char* to, // (kColumnBytes<T>,)
                                             const T* from,     // from the warp's first column on
                                             bool live,
                                             const Place& place) {
  to += place.lane * 16;
  from += place.lane * kVector<T>;
  const int width = live ? place.width - place.lane * kVector<T> : 0;
#pragma unroll
  for (int piece = 0; piece < kColumnBytes<T> / 512; ++piece) {
    const int column = piece * 32 * kVector<T>;
    cp_async<16>(to + piece * 512, from + column, column < width);
  }
}

// A chunk that copy_columns has copied.
template <class T>
__device__ __forceinline__ void
load_copied(float (&out)[kChunk], const unsigned char* from, int c, const Place& place) {
  load_chunk(out, reinterpret_cast<const T*>(from) + place.column(c));
}

// Waits until the oldest stage has arrived, for all lanes.
__device__ __forceinline__ void wait_for_row(const Rows& rows) {
  if (rows.stages == 1) {
    cp_async_wait<0>();
  } else {
    cp_async_wait<kNormStages - 1>();
  }
  __syncwarp();
}

// Adds over the lanes of a row and gives each lane the sums. If a row takes several warps, every
// thread of the block takes part, and two consecutive uses need different memory: then one barrier
// is enough to separate them.
template <bool kOneWarp, int N>
__device__ __forceinline__ void sum_row(float (&values)[N],
                                        float* shared, // (warps, N)
                                        const Place& place,
                                        int warps_per_row) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) {
      values[n] += __shfl_xor_sync(kAll, values[n], bit);
    }
  }
  if constexpr (!kOneWarp) {
    if (place.lane == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        shared[threadIdx.x / 32 * N + n] = values[n];
      }
    }
    __syncthreads();
    shared += place.row * warps_per_row * N;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = shared[n];
    }
    for (int i = 1; i < warps_per_row; ++i) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        values[n] += shared[i * N + n];
      }
    }
  }
}

} // namespace
} // namespace vimpac
