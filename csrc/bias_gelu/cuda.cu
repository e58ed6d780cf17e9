// y = GELU(x + bias), forward and backward in one pass each.
//
// A thread owns a chunk of eight neighbouring columns, 16 bytes of a 16-bit type. It keeps their
// bias in registers and walks over rows, with two loads in flight at a time. The grid has as many
// blocks as the device holds at a time. For dbias a thread adds dx of its rows in registers, a
// block adds its rows in order, and a second kernel adds the blocks in order, so sums repeat bit
// for bit on one device. Bound by memory: forward one read and one write of (M, D), backward two
// reads and one write. In the time of a bf16 element's 4 bytes an H200 issues about 24
// instructions; the forward takes 23.
#include "bias_gelu/arguments.hpp"
#include "bias_gelu/cuda_tuning.cuh"
#include "cuda/column_sums.cuh"
#include "cuda/element_type.cuh"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"

namespace vimpac {
namespace {

constexpr int kLanes = 32, kRows = kGeluRows; // of a block: chunks of columns, rows
constexpr int kColumns = kLanes * kChunk;

// The standard normal distribution at u.
struct Normal {
  float below;   // P(N <= u)
  float density; // exp(-u^2 / 2) / sqrt(2 pi)
};

// P(N > a) = exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.21 a) for a >= 0, as in
// csrc/bias_gelu/cpu.cpp: tails keep their digits, and it takes half the instructions of erfcf.
__device__ __forceinline__ Normal normal(float u) {
  const float a = fabsf(u);
  const float t = approximate_reciprocal(fmaf(0.21f, a, 1.0f));
  float p = -0.0720339396f;
  p = fmaf(p, t, 0.28545321f);
  p = fmaf(p, t, -0.334189269f);
  p = fmaf(p, t, 0.354033203f);
  p = fmaf(p, t, -0.0972453925f);
  p = fmaf(p, t, 0.126355006f);
  p = fmaf(p, t, 0.0687900788f);
  p = fmaf(p, t, 0.0851294022f);
  p = fmaf(p, t, 0.0837077033f);
  const float e = approximate_exp2(-0.721347520f * a * a); // log2(e) / 2
  const float above = p * t * e;
  return {u < 0.0f ? above : 1.0f - above, 0.398942280f * e};
}

// Offsets of a thread's chunks, in elements: its column, its first row, and the step to the next
// row.
struct Place {
  int column;
  int64_t begin, step;

  __device__ explicit Place(int D)
      : column((static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x)) * kChunk),
        begin((static_cast<int64_t>(blockIdx.y) * kRows + threadIdx.y) * D + column),
        step(static_cast<int64_t>(gridDim.y) * kRows * D) {}
};

template <class T>
__global__ void __launch_bounds__(kLanes* kRows, kGeluForward)
    bias_gelu_fwd_kernel(const T* __restrict__ x,        // (M, D)
                         const float* __restrict__ bias, // (D,)
                         T* __restrict__ y,              // (M, D)
                         int64_t M,
                         int D) {
  const Place place(D);
  if (place.column >= D) {
    return;
  }
  const int64_t end = M * D;
  float b[kChunk];
  load_chunk(b, bias + place.column);
  for (int64_t first = place.begin; first < end; first += kGeluForwardLoads * place.step) {
    float u[kGeluForwardLoads][kChunk];
#pragma unroll
    for (int r = 0; r < kGeluForwardLoads; ++r) {
      if (const int64_t at = first + r * place.step; at < end) {
        load_chunk(u[r], x + at);
      }
    }
#pragma unroll
    for (int r = 0; r < kGeluForwardLoads; ++r) {
      const int64_t at = first + r * place.step;
      if (at >= end) {
        break;
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        u[r][i] += b[i];
        u[r][i] *= normal(u[r][i]).below;
      }
      store_chunk(y + at, u[r]);
    }
  }
}

// dx = dy (P(N <= u) + u density(u)) with u = x + bias. partial: sums of dx over the block's rows.
template <class T>
__global__ void __launch_bounds__(kLanes* kRows, kGeluBackward)
    bias_gelu_bwd_kernel(const T* __restrict__ dy,       // (M, D)
                         const T* __restrict__ x,        // (M, D)
                         const float* __restrict__ bias, // (D,)
                         T* __restrict__ dx,             // (M, D)
                         float* __restrict__ partial,    // (gridDim.y, D) or null
                         int64_t M,
                         int D) {
  SharedArena arena;
  float* shared = arena.take<float>(kRows * kColumns);
  const Place place(D);
  const bool live = place.column < D;
  const int64_t end = live ? M * D : 0;
  float b[kChunk] = {}, sums[kChunk] = {};
  if (live) {
    load_chunk(b, bias + place.column);
  }
  for (int64_t first = place.begin; first < end; first += kGeluBackwardLoads * place.step) {
    float u[kGeluBackwardLoads][kChunk], d[kGeluBackwardLoads][kChunk];
#pragma unroll
    for (int r = 0; r < kGeluBackwardLoads; ++r) {
      if (const int64_t at = first + r * place.step; at < end) {
        load_chunk(u[r], x + at);
        load_chunk(d[r], dy + at);
      }
    }
#pragma unroll
    for (int r = 0; r < kGeluBackwardLoads; ++r) {
      const int64_t at = first + r * place.step;
      if (at >= end) {
        break;
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        u[r][i] += b[i];
        const Normal at_u = normal(u[r][i]);
        d[r][i] *= fmaf(u[r][i], at_u.density, at_u.below);
        sums[i] += d[r][i];
      }
      store_chunk(dx + at, d[r]);
    }
  }
  if (partial == nullptr) {
    return;
  }
  const int thread = static_cast<int>(threadIdx.y * kLanes + threadIdx.x);
  store_chunk_shared(shared + thread * kChunk, sums);
  __syncthreads();
#pragma unroll
  for (int in_block = thread; in_block < kColumns; in_block += kLanes * kRows) {
    const int column = static_cast<int>(blockIdx.x) * kColumns + in_block;
    if (column >= D) {
      return;
    }
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum += shared[r * kColumns + in_block];
    }
    partial[static_cast<int64_t>(blockIdx.y) * D + column] = sum;
  }
}

// Blocks over columns and over rows, as many as the device holds at a time.
dim3 grid(int64_t M, int D, int on_a_multiprocessor, size_t shared) {
  const int groups = (D + kColumns - 1) / kColumns;
  const int resident = wave_blocks(on_a_multiprocessor, shared);
  const int64_t wanted = (M + kRows - 1) / kRows, most = groups < resident ? resident / groups : 1;
  return dim3(static_cast<unsigned>(groups), static_cast<unsigned>(wanted < most ? wanted : most));
}

constexpr size_t kBackwardShared = kRows * kColumns * sizeof(float);

dim3 backward_grid(const BiasGelu& a) {
  return grid(a.x.rows, static_cast<int>(a.x.columns), kGeluBackward, kBackwardShared);
}

template <class T>
void launch_fwd(const BiasGelu& a, Stream stream) {
  const int D = static_cast<int>(a.x.columns);
  launch(bias_gelu_fwd_kernel<T>, grid(a.x.rows, D, kGeluForward, 0), dim3(kLanes, kRows), 0,
         stream, static_cast<const T*>(a.x.data), a.bias, static_cast<T*>(a.y.data), a.x.rows, D);
}

template <class T>
void launch_bwd(const BiasGelu& a, Stream stream) {
  const int D = static_cast<int>(a.x.columns);
  const dim3 blocks = backward_grid(a);
  launch(bias_gelu_bwd_kernel<T>, blocks, dim3(kLanes, kRows), kBackwardShared, stream,
         static_cast<const T*>(a.dy.data), static_cast<const T*>(a.x.data), a.bias,
         static_cast<T*>(a.dx.data), a.workspace, a.x.rows, D);
  if (a.dbias != nullptr) {
    add_blocks<false>(a.workspace, {a.dbias}, static_cast<int>(blocks.y), D, D, stream);
  }
}

} // namespace

int64_t bias_gelu_bwd_workspace(const BiasGelu& args) {
  return args.dbias == nullptr ? 0 : backward_grid(args).y * args.x.columns;
}

int64_t bias_gelu_fwd_workspace(const BiasGelu&) {
  return 0;
}

void bias_gelu_fwd(const BiasGelu& args) {
  with_type(args.x.type,
            [&](auto zero) { launch_fwd<decltype(zero)>(args, static_cast<Stream>(args.stream)); });
}

void bias_gelu_bwd(const BiasGelu& args) {
  with_type(args.x.type,
            [&](auto zero) { launch_bwd<decltype(zero)>(args, static_cast<Stream>(args.stream)); });
}

} // namespace vimpac
