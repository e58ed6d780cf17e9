// The sums over lines, of [CLS] and of the bias's gradient: those of a unit, and those of all units
// by a second kernel.
#pragma once
#include "axial_attention/line_fragments.cuh"
#include "axial_attention/lines.cuh"
#include "cuda/vector.cuh"

namespace vimpac {
namespace {

// Sums of a unit over rows, by part and block: a lane's are those of element sum_element().
template <int kParts, int kBlocks>
class UnitSums {
  float sum_[kParts][kBlocks] = {};

public:
  __device__ __forceinline__ void add(int part, int block, float x) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) { // registers cannot be indexed by a variable
      sum_[part][b] += b == block ? x : 0.0f;
    }
  }
  static constexpr int kSize = kParts * 32 * kBlocks; // of a unit
  // To the unit's (parts, Dh) of scratch memory.
  __device__ __forceinline__ void write(float* sums, unsigned unit) const {
    float* to = sums + int64_t{unit} * kSize + sum_element();
#pragma unroll
    for (int i = 0; i < kParts * kBlocks; ++i) {
      to[32 * i] = sum_[i / kBlocks][i % kBlocks];
    }
  }
  // The same if the warps of a block share the unit: the sums of all warps are added. `shared` has
  // room for kSize floats of each warp and is unused from the first barrier on.
  __device__ __forceinline__ void write_team(float* sums, unsigned unit, float* shared) const {
    __syncthreads();
    write(shared, threadIdx.x / 32);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSize; i += static_cast<int>(blockDim.x)) {
      float sum = 0.0f;
      for (int warp = 0; warp < static_cast<int>(blockDim.x / 32); ++warp) {
        sum += shared[warp * kSize + i];
      }
      sums[int64_t{unit} * kSize + i] = sum;
    }
  }
};

constexpr int kSumColumns = 8, kSumRows = 32; // of a block that sums the bias's gradient

// result row 0 of (B, S, parts, N, Dh) = the sums of a clip and head over the chunks in order,
// times a factor per axis.
template <class T>
__device__ __forceinline__ void add_cls(const AxialProblem& p, int clip, int head, T* result) {
  const int a = head / p.group_heads, width = p.parts * p.head_dim;
  const float factor =
      p.parts == 1 ? 1.0f / static_cast<float>(p.axes[a].lines) : 1.0f; // out is their mean
  const float* from = p.cls_sums + int64_t{first_unit(p, a, clip, head)} * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < p.axes[a].chunks; ++chunk) {
      sum += from[int64_t{chunk} * p.group_heads * width + i];
    }
    const int part = i / p.head_dim;
    result[p.offset(clip, head, p.parts) + int64_t{part} * p.heads * p.head_dim + i % p.head_dim] =
        from_float<T>(sum * factor);
  }
}

// dbias (3, N, Dh): kSumColumns columns of the (N, 2, Dh) sums of dq and dv. Each of kSumRows rows
// of threads adds every kSumRows-th unit, then the rows are added. The bias of k shifts all scores
// of a query by the same number, which does not change the softmax: its gradient is zero.
__device__ __forceinline__ void add_bias(const AxialProblem& p, int group, float* dbias) {
  SharedArena arena;
  float* shared = arena.take<float>(kSumColumns * kSumRows);
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns, width = 2 * p.head_dim;
  const int head = group * kSumColumns / width, column = group * kSumColumns % width + lane;
  const int a = head / p.group_heads, units = p.clips * p.axes[a].chunks;
  const float* from = p.bias_sums + int64_t{first_unit(p, a, 0, head)} * width + column;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) / kSumColumns; i < units; i += kSumRows) {
    sum += from[int64_t{i} * p.group_heads * width];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kSumColumns) {
    return;
  }
  sum = 0.0f;
  for (int i = 0; i < kSumRows; ++i) {
    sum += shared[i * kSumColumns + lane];
  }
  const int64_t part = int64_t{p.heads} * p.head_dim; // elements of a part of dbias
  float* to = dbias + int64_t{head} * p.head_dim + column % p.head_dim;
  if (column < p.head_dim) {
    to[0] = sum;
    to[part] = 0.0f;
  } else {
    to[2 * part] = sum;
  }
}

// A block per clip and head with [CLS], then one per kSumColumns columns of dbias.
template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    axial_attention_sums_kernel(AxialProblem p,
                                T* __restrict__ result,   // (B, S, parts, N, Dh)
                                float* __restrict__ dbias // (3, N, Dh) or null
    ) {
  const int block = static_cast<int>(blockIdx.x),
            rows = p.cls_sums == nullptr ? 0 : p.clips * p.heads;
  if (block < rows) {
    add_cls(p, block / p.heads, block % p.heads, result);
  } else {
    add_bias(p, block - rows, dbias);
  }
}

} // namespace
} // namespace vimpac
