// Rows that one or more warps own. A lane holds chunks of eight neighbouring columns, 16 bytes of a
// 16-bit type; a row is read once and stays in registers.
#pragma once
#include "common/philox.hpp"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"

namespace vimpac {

// The chunks of a lane, and the warps of a row and of a block.
struct RowSplit {
  int chunks, warps_per_row, warps;

  // Rows of up to `narrow` columns take two chunks per lane, wider ones four. A block has `usual`
  // warps, or more if a row needs them.
  RowSplit(int D, int narrow, int usual) : chunks(D <= narrow ? 2 : 4) {
    warps_per_row = (D + chunks * 32 * kChunk - 1) / (chunks * 32 * kChunk);
    warps = warps_per_row > usual ? warps_per_row : usual / warps_per_row * warps_per_row;
  }
  int rows() const { return warps / warps_per_row; } // of a block at a time
  dim3 threads() const { return dim3(static_cast<unsigned>(warps) * 32); }
};

// The position of a thread: its row in the block and its first column.
struct RowPlace {
  int rows;   // of the block at a time
  int row;    // this warp's
  int column; // of chunk 0
  int step;   // from chunk to chunk
  int warps_per_row;

  __device__ explicit RowPlace(int warps_per_row) : warps_per_row(warps_per_row) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    rows = static_cast<int>(blockDim.x) / 32 / warps_per_row;
    row = warp / warps_per_row;
    column = (warp % warps_per_row * 32 + lane) * kChunk;
    step = warps_per_row * 32 * kChunk;
  }
};

// Adds over the lanes of a row; every thread of the block takes part and gets its row's sums.
// shared: N floats for each warp of the block.
template <int N>
__device__ __forceinline__ void sum_row(float (&values)[N], float* shared, const RowPlace& place) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) {
      values[n] += __shfl_xor_sync(0xffffffffu, values[n], bit);
    }
  }
  if (place.warps_per_row == 1) {
    return;
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, first = place.row * place.warps_per_row;
  __syncthreads(); // the previous sums have been read
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      shared[warp * N + n] = values[n];
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = 0.0f;
    for (int i = 0; i < place.warps_per_row; ++i) {
      values[n] += shared[(first + i) * N + n];
    }
  }
}

// Subtracts the mean from a row, zeros beyond its end staying zeros, and returns it. Of nearly
// equal elements the rounding of their mean would be all that is left, so the mean of the
// differences, which are exact then, is subtracted as well. As of sum_row: every thread takes part.
template <int kChunks>
__device__ __forceinline__ float
centre_row(float (&x)[kChunks][kChunk], int D, float* shared, const RowPlace& place) {
  float mean = 0.0f;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    float sum[1] = {0.0f};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        sum[0] += x[c][i];
      }
    }
    sum_row(sum, shared, place);
    const float part = sum[0] / static_cast<float>(D);
    mean += part;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        x[c][i] -= place.column + c * place.step < D ? part : 0.0f;
      }
    }
  }
  return mean;
}

// Multiplies dropped elements by 0, which leaves NaN, and the others by the inverse of the kept
// fraction. The stream is in the top byte of the last counter.
__device__ __forceinline__ void drop_chunk(
    float (&x)[kChunk], uint64_t seed, int threshold, int64_t row, int column, uint32_t stream) {
  const Philox4<uint32_t> words =
      philox4x32_10<uint32_t>({static_cast<uint32_t>(column / kChunk), static_cast<uint32_t>(row),
                               static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), stream},
                              seed);
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
  const float scale = keep_scale(threshold);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const int decision = static_cast<int>((word[i / 2] >> (i % 2 * 16)) & 0xffffu);
    x[i] *= decision >= threshold ? scale : 0.0f;
  }
}

} // namespace vimpac
