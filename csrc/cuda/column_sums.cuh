// The second stage of column sums in two stages, which repeat bit for bit. In the first stage each
// block writes the sums over its rows; the grid follows from the shape and the device.
#pragma once
#include "cuda/platform.cuh"

namespace vimpac {

constexpr int kSumColumns = 32, kSumRows = 16; // of a block: lanes and warps

// The outputs, (D,) each; null at the end: not wanted.
struct ColumnSums {
  float* first;
  float* second = nullptr;
  float* third = nullptr;
};

// Adds the blocks' sums in a fixed order: each of kSumRows warps every kSumRows-th block, then the
// warps. Grid: an output's columns in groups of kSumColumns, and the outputs.
template <bool kAccumulate>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    add_blocks_kernel(const float* __restrict__ partial, // (blocks, stride): output after output
                      ColumnSums sums,
                      int blocks,
                      int stride,
                      int D) {
  SharedArena arena;
  float* shared = arena.take<float>(kSumColumns * kSumRows);
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns;
  const int warp = static_cast<int>(threadIdx.x) / kSumColumns;
  const int column = static_cast<int>(blockIdx.x) * kSumColumns + lane;
  const int output = static_cast<int>(blockIdx.y);
  float sum = 0.0f;
  if (column < D) {
    for (int block = warp; block < blocks; block += kSumRows) {
      sum += partial[static_cast<int64_t>(block) * stride + output * D + column];
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || column >= D) {
    return;
  }
  sum = 0.0f;
  for (int i = 0; i < kSumRows; ++i) {
    sum += shared[i * kSumColumns + lane];
  }
  float* const out = output == 0 ? sums.first : output == 1 ? sums.second : sums.third;
  out[column] = kAccumulate ? out[column] + sum : sum;
}

// Writes the sums, or adds them to what is there.
template <bool kAccumulate>
void add_blocks(const float* partial, // (blocks, stride)
                const ColumnSums& sums,
                int blocks,
                int stride,
                int D,
                Stream stream) {
  const unsigned outputs = 1 + (sums.second != nullptr) + (sums.third != nullptr);
  const unsigned groups = static_cast<unsigned>((D + kSumColumns - 1) / kSumColumns);
  launch(add_blocks_kernel<kAccumulate>, dim3(groups, outputs), dim3(kSumColumns * kSumRows),
         kSumColumns * kSumRows * sizeof(float), stream, partial, sums, blocks, stride, D);
}

} // namespace vimpac
