// Softmax cross-entropy between the matrix products: logits z (m, stride) become dz in place.
//
// A block owns one row at a time and holds it in registers: bias, maximum, arg-max, sum, loss, then
// dz written where z was read, so that z is read once and written once. The grid is persistent:
// each thread keeps the same columns for all of its rows and adds up their dz in registers; the
// blocks' sums are added in order by a second kernel, so that results repeat bit for bit. Hits and
// targets are integers and may be counted by atomics. Bound by memory: one read and one write of z.
#include "column_sums.cuh"
#include "element_type.cuh"
#include "ops.hpp"
#include "platform.cuh"
#include "vector.cuh"

namespace vimpac {
namespace {

constexpr int kChunks = 2;          // of a thread: 16 logits and their column sums
constexpr int kMaxThreads = 640;    // so a row has at most 10,240 columns
constexpr int kMaxBlocks = 2 * 132; // two for each multiprocessor of a Hopper GPU
constexpr unsigned kAll = 0xffffffffu;

// What a row's softmax needs; merging two parts is associative up to rounding, done in fixed order.
struct Part {
  float top;   // maximum
  float sum;   // of exp(z - top)
  float plain; // sum of z, for label smoothing
  int index;   // of the first maximum
};

__device__ __forceinline__ Part merge(const Part& a, const Part& b) {
  const bool first = a.top > b.top || (a.top == b.top && a.index < b.index);
  const float top = fmaxf(a.top, b.top);
  const auto share = [top](const Part& p) {
    return p.top == -INFINITY ? 0.0f : p.sum * __expf(p.top - top);
  };
  return {top, share(a) + share(b), a.plain + b.plain, first ? a.index : b.index};
}

__device__ __forceinline__ Part shuffle(const Part& p, int bit) {
  return {__shfl_xor_sync(kAll, p.top, bit), __shfl_xor_sync(kAll, p.sum, bit),
          __shfl_xor_sync(kAll, p.plain, bit), __shfl_xor_sync(kAll, p.index, bit)};
}

// Merges the parts of all threads; every thread gets the row's.
__device__ __forceinline__ Part merge_block(Part part, Part* shared) {
  // Both partners of a shuffle must merge in one order to get the same bits.
#pragma unroll
  for (int bit = 1; bit < 32; bit *= 2) {
    const Part other = shuffle(part, bit);
    part =
        (threadIdx.x & static_cast<unsigned>(bit)) == 0 ? merge(part, other) : merge(other, part);
  }
  __syncthreads(); // the previous row's parts have been read
  if (threadIdx.x % 32 == 0)
    shared[threadIdx.x / 32] = part;
  __syncthreads();
  part = shared[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp)
    part = merge(part, shared[warp]);
  return part;
}

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
  Part* shared = arena.take<Part>(kMaxThreads / 32);
  const int V = options.V, stride = options.stride;
  const int step = static_cast<int>(blockDim.x) * kChunk;
  const int begin = static_cast<int>(threadIdx.x) * kChunk;
  const int64_t predicted = count == nullptr ? INT64_MAX : *count;
  float columns[kChunks][kChunk] = {};
  int hits = 0, targets = 0;
  for (int64_t row = blockIdx.x; row < options.rows; row += gridDim.x) {
    const int64_t number = options.first + row;
    T* const at = z + row * stride;
    int64_t label = options.ignore_index;
    if (number < predicted) {
      const int64_t source = positions == nullptr ? number : positions[number];
      label = options.wide_targets ? static_cast<const int64_t*>(target)[source]
                                   : static_cast<const int32_t*>(target)[source];
    }
    const bool counts_here = label != options.ignore_index;
    const bool inside = label >= 0 && label < V;
    const int hot = static_cast<int>(label);
    if (!counts_here || !inside) { // the same branch for the whole block
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
    float x[kChunks][kChunk];
    Part part{-INFINITY, 0.0f, 0.0f, V};
    float label_logit = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = begin + c * step;
      if (column < stride)
        load_chunk(x[c], at + column);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const bool real = column + i < V;
        x[c][i] = !real             ? -INFINITY
                  : bias == nullptr ? x[c][i]
                                    : x[c][i] + __ldg(bias + column + i);
        if (x[c][i] > part.top) {
          part.top = x[c][i];
          part.index = column + i;
        }
        part.plain += real ? x[c][i] : 0.0f;
      }
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        part.sum += x[c][i] == -INFINITY ? 0.0f : __expf(x[c][i] - part.top);
    const Part whole = merge_block(part, shared);
    const float lse = whole.top + logf(whole.sum);
    const float smoothing = options.label_smoothing, mean = whole.plain / static_cast<float>(V);
    // One thread holds the label's logit and writes the loss.
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        if (begin + c * step + i == hot) {
          label_logit = x[c][i];
          losses[number] = lse - (1.0f - smoothing) * label_logit - smoothing * mean +
                           options.z_loss * lse * lse;
        }
    if (threadIdx.x == 0) {
      hits += whole.index == hot;
      ++targets;
    }
    if (!options.gradient)
      continue;
    const float factor = row_scale == nullptr ? 1.0f : row_scale[number];
    const float inverse = (1.0f + 2.0f * options.z_loss * lse) / whole.sum;
    const float even = smoothing / static_cast<float>(V);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = begin + c * step;
      if (column >= stride)
        continue;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float p = __expf(x[c][i] - whole.top) * inverse;
        const float one = column + i == hot ? 1.0f - smoothing : 0.0f;
        x[c][i] = column + i < V ? (p - one - even) * factor : 0.0f;
        columns[c][i] += x[c][i];
      }
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
         dim3(static_cast<unsigned>(threads)), kMaxThreads / 32 * sizeof(Part), stream,
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
