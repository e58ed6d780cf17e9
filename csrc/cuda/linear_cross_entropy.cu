// Softmax cross-entropy between the matrix products: logits z (m, stride) become dz in place.
//
// A block owns one row at a time and holds it in registers: bias, maximum, arg-max, sum, loss, then
// dz written where z was read, so that z is read once and written once. The grid is persistent:
// each thread keeps the same columns for all of its rows, with their bias and the sums of their dz
// in registers, and loads its next row before it works on this one, as few blocks fit at a time.
// The blocks' sums are added in order by a second kernel, so that results repeat bit for bit. Hits
// and targets are integers and may be counted by atomics. One read and one write of z, and near the
// bound of both memory and instructions: in the time of a bf16 logit's 4 bytes an H200 issues about
// 24 instructions; the loop takes 35.
#include "column_sums.cuh"
#include "element_type.cuh"
#include "ops.hpp"
#include "platform.cuh"
#include "vector.cuh"

namespace vimpac {
namespace {

constexpr int kChunks = 2;       // of a thread: 16 logits, their bias and their column sums
constexpr int kMaxThreads = 640; // so a row has at most 10,240 columns
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr int kMaxBlocks = 2 * 132; // two for each multiprocessor of a Hopper GPU
constexpr unsigned kAll = 0xffffffffu;
constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAll, x, bit));
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2)
    x += __shfl_xor_sync(kAll, x, bit);
  return x;
}

// What a row's softmax needs once its maximum is known.
struct Part {
  float sum;   // of exp(z - top)
  float plain; // of z, for label smoothing
  int index;   // of the first maximum
};

__device__ __forceinline__ Part merge_warp(const Part& p) {
  return {warp_sum(p.sum), warp_sum(p.plain), __reduce_min_sync(kAll, p.index)};
}

// Over all threads, for every thread. tops and parts, (kMaxWarps,), are written by turns: the
// barrier of the one follows the last read of the other.
__device__ __forceinline__ float block_max(float x, float* tops) {
  const unsigned lane = threadIdx.x % 32;
  x = warp_max(x);
  if (lane == 0)
    tops[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_max(lane < blockDim.x / 32 ? tops[lane] : -INFINITY);
}

__device__ __forceinline__ Part merge_block(Part part, Part* parts) {
  const unsigned lane = threadIdx.x % 32;
  part = merge_warp(part);
  if (lane == 0)
    parts[threadIdx.x / 32] = part;
  __syncthreads();
  return merge_warp(lane < blockDim.x / 32 ? parts[lane] : Part{0.0f, 0.0f, part.index});
}

// A row as it comes from memory: its label and a thread's columns, zero where there are none.
template <class T>
struct Row {
  int64_t label;
  T z[kChunks][kChunk / kVector<T>][kVector<T>];

  __device__ __forceinline__ float logit(int c, int i) const {
    return to_float(z[c][i / kVector<T>][i % kVector<T>]);
  }
};

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    linear_cross_entropy_fwd_kernel(T* __restrict__ z,                     // (m, stride)
                                    const float* __restrict__ bias,        // (V,) or null
                                    const void* __restrict__ target,       // (R,)
                                    const int32_t* __restrict__ positions, // (M,) or null
                                    const int32_t* __restrict__ count,     // 0-d or null
                                    const float* __restrict__ row_scale,   // (M,) or null
                                    float* __restrict__ losses,            // (M,)
                                    int32_t* __restrict__ counts,          // hits, targets
                                    float* __restrict__ partial, // (blocks, stride) or null
                                    LinearCrossEntropyOptions options) {
  SharedArena arena;
  float* tops = arena.take<float>(kMaxWarps);
  Part* parts = arena.take<Part>(kMaxWarps);
  const int V = options.V, stride = options.stride;
  const int step = static_cast<int>(blockDim.x) * kChunk;
  const int begin = static_cast<int>(threadIdx.x) * kChunk;
  const int64_t predicted = count == nullptr ? INT64_MAX : *count;
  const float smoothing = options.label_smoothing;

  const auto load_row = [&](int64_t row) {
    Row<T> loaded{options.ignore_index, {}};
    const int64_t number = options.first + row;
    if (row >= options.rows || number >= predicted)
      return loaded;
    const int64_t source = positions == nullptr ? number : positions[number];
    loaded.label = options.wide_targets ? static_cast<const int64_t*>(target)[source]
                                        : static_cast<const int32_t*>(target)[source];
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      if (const int column = begin + c * step; column < stride)
#pragma unroll
        for (int v = 0; v < kChunk / kVector<T>; ++v)
          load16(loaded.z[c][v], z + row * stride + column + v * kVector<T>);
    return loaded;
  };

  float offset[kChunks][kChunk], columns[kChunks][kChunk] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const int column = begin + c * step + i;
      offset[c][i] = column >= V ? -INFINITY : bias == nullptr ? 0.0f : bias[column];
    }
  int hits = 0, targets = 0;
  Row<T> next = load_row(blockIdx.x);
  for (int64_t row = blockIdx.x; row < options.rows; row += gridDim.x) {
    const int64_t number = options.first + row, label = next.label;
    T* const at = z + row * stride;
    float x[kChunks][kChunk], own_top = -INFINITY;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        x[c][i] = next.logit(c, i) + offset[c][i];
        own_top = fmaxf(own_top, x[c][i]);
      }
    next = load_row(row + gridDim.x);
    const bool counts_here = label != options.ignore_index;
    if (!counts_here || label < 0 || label >= V) { // the same branch for the whole block
      if (threadIdx.x == 0) {
        losses[number] = counts_here ? NAN : 0.0f;
        targets += counts_here;
      }
      const float zeros[kChunk] = {};
      if (options.gradient)
        for (int column = begin; column < stride; column += step)
          store_chunk(at + column, zeros);
      continue;
    }
    const float top = block_max(own_top, tops);
    Part part{0.0f, 0.0f, V};
    if (own_top == top) // in few threads
#pragma unroll
      for (int c = kChunks - 1; c >= 0; --c)
#pragma unroll
        for (int i = kChunk - 1; i >= 0; --i)
          part.index = x[c][i] == top ? begin + c * step + i : part.index;
    if (smoothing > 0.0f)
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
#pragma unroll
        for (int i = 0; i < kChunk; ++i)
          part.plain += begin + c * step + i < V ? x[c][i] : 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        x[c][i] = approximate_exp2((x[c][i] - top) * kLog2e);
        part.sum += x[c][i];
      }
    const Part whole = merge_block(part, parts);
    const float lse = top + logf(whole.sum), mean = whole.plain / static_cast<float>(V);
    const int hot = static_cast<int>(label);
    const bool holds_label = hot / kChunk % static_cast<int>(blockDim.x) * kChunk == begin;
    if (holds_label) { // z is not overwritten yet
      const float logit = to_float(at[hot]) + (bias == nullptr ? 0.0f : bias[hot]);
      losses[number] =
          lse - (1.0f - smoothing) * logit - smoothing * mean + options.z_loss * lse * lse;
    }
    if (threadIdx.x == 0) {
      hits += whole.index == hot;
      ++targets;
    }
    if (!options.gradient)
      continue;
    const float factor = row_scale == nullptr ? 1.0f : row_scale[number];
    const float scale = (1.0f + 2.0f * options.z_loss * lse) / whole.sum * factor;
    const float even = smoothing / static_cast<float>(V) * factor;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = begin + c * step;
      if (column >= stride)
        continue;
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        x[c][i] = x[c][i] * scale - even;
      if (holds_label || column + kChunk > V) // in few threads
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          x[c][i] -= column + i == hot ? (1.0f - smoothing) * factor : 0.0f;
          x[c][i] = column + i < V ? x[c][i] : 0.0f;
        }
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        columns[c][i] += x[c][i];
      store_chunk(at + column, x[c]);
    }
  }
  if (threadIdx.x == 0) {
    atomicAdd(&counts[0], hits);
    atomicAdd(&counts[1], targets);
  }
  if (partial == nullptr)
    return;
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
    if (const int column = begin + c * step; column < stride)
      store_chunk(partial + static_cast<int64_t>(blockIdx.x) * stride + column, columns[c]);
}

template <class T>
void launch_row_pass(const LinearCrossEntropyFwd& a, Stream stream) {
  const int blocks = linear_cross_entropy_blocks(a.options.rows);
  // The fewest threads that hold a row: idle lanes would only wait at the barriers.
  const int chunks = (a.options.stride + kChunk - 1) / kChunk;
  const int threads = ((chunks + kChunks - 1) / kChunks + 31) / 32 * 32;
  launch(linear_cross_entropy_fwd_kernel<T>, dim3(static_cast<unsigned>(blocks)),
         dim3(static_cast<unsigned>(threads)), kMaxWarps * (sizeof(float) + sizeof(Part)), stream,
         static_cast<T*>(a.z), a.bias, a.target, a.positions, a.count, a.row_scale, a.losses,
         a.counts, a.partial, a.options);
  if (a.partial != nullptr)
    add_blocks<true>(a.partial, {a.dbias}, blocks, a.options.stride, a.options.V, stream);
}

} // namespace

int linear_cross_entropy_blocks(int64_t rows) {
  return static_cast<int>(rows < kMaxBlocks ? rows : kMaxBlocks);
}

void linear_cross_entropy_fwd(const LinearCrossEntropyFwd& args, void* stream) {
  with_type(args.z_type,
            [&](auto zero) { launch_row_pass<decltype(zero)>(args, static_cast<Stream>(stream)); });
}

} // namespace vimpac
