// The loss of predicted pixels, mean (pred - target)^2, and its gradient, one pass each.
//
// A warp owns one tubelet at a time and walks over tubelets with the whole grid, of which there are
// as many blocks as the device holds. It reads the pixels into registers, adds them up in integers,
// and then reads pred; how its lanes share them is in tubelets.cuh. A lane adds up the squares of
// all its tubelets; from there on sums are fp64: of a warp, of a block, and, in a second kernel, of
// the blocks, all in order, so that the loss repeats bit for bit on one device. Bound by memory:
// forward one read of pred and of the chosen pixels, backward one write as well. In the time of an
// element's 3 bytes, of bf16 and a byte, an H200 issues about 18 instructions.
#include "cuda/element_type.cuh"
#include "cuda/platform.cuh"
#include "tubelet_mse/tubelets.cuh"

namespace vimpac {
namespace {

constexpr int kThreads = 32 * kMseWarps;

__device__ __forceinline__ double sum_of_lanes(double x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, bit);
  }
  return x;
}

template <class T, int kElements>
__global__ void __launch_bounds__(kThreads, kMseForward)
    tubelet_mse_fwd_kernel(const T* __restrict__ pred,           // (rows, K)
                           const uint8_t* __restrict__ video,    // (B, T, H, W, 3)
                           const int32_t* __restrict__ tubelets, // (rows,)
                           float* __restrict__ partial,          // (gridDim.x,) sums of squares
                           Tubelets sizes) {
  SharedArena arena;
  double* const warps = arena.take<double>(kMseWarps);
  float sum = 0.0f;
  each_difference<kElements>(pred, video, tubelets, sizes,
                             [&](int64_t, const float (&e)[kElements]) {
#pragma unroll
                               for (int i = 0; i < kElements; ++i) {
                                 sum = fmaf(e[i], e[i], sum);
                               }
                             });
  const double of_warp = sum_of_lanes(sum);
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = of_warp;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double of_block = 0.0;
#pragma unroll
    for (int w = 0; w < kMseWarps; ++w) {
      of_block += warps[w];
    }
    partial[blockIdx.x] = static_cast<float>(of_block);
  }
}

// One warp: the mean, from the blocks' sums in order.
__global__ void __launch_bounds__(32)
    tubelet_mse_sum_kernel(const float* __restrict__ partial, // (blocks,)
                           float* __restrict__ loss,          // 0-d
                           int blocks,
                           double count) {
  double sum = 0.0;
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += 32) {
    sum += partial[block];
  }
  sum = sum_of_lanes(sum);
  if (threadIdx.x == 0) {
    *loss = static_cast<float>(sum / count);
  }
}

template <class T, int kElements>
__global__ void __launch_bounds__(kThreads, kMseBackward)
    tubelet_mse_bwd_kernel(const T* __restrict__ pred,           // (rows, K)
                           const uint8_t* __restrict__ video,    // (B, T, H, W, 3)
                           const int32_t* __restrict__ tubelets, // (rows,)
                           const float* __restrict__ dloss,      // 0-d
                           T* __restrict__ dpred,                // (rows, K)
                           Tubelets sizes,
                           float twice) { // 2 / count
  const float factor = twice * *dloss;
  each_difference<kElements>(pred, video, tubelets, sizes,
                             [&](int64_t at, const float (&e)[kElements]) {
                               float d[kElements];
#pragma unroll
                               for (int i = 0; i < kElements; ++i) {
                                 d[i] = e[i] * factor;
                               }
                               if constexpr (kElements == kChunk) {
                                 store_chunk(dpred + at, d);
                               } else {
                                 dpred[at] = from_float<T>(d[0]);
                               }
                             });
}

constexpr size_t kForwardShared = kMseWarps * sizeof(double);

unsigned blocks_of(const TubeletMse& a, int on_a_multiprocessor, size_t shared) {
  const int64_t wanted = (a.pred.rows + kMseWarps - 1) / kMseWarps;
  const int most = wave_blocks(on_a_multiprocessor, shared);
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

unsigned forward_blocks(const TubeletMse& a) {
  return blocks_of(a, kMseForward, kForwardShared);
}

double count_of(const TubeletMse& a) {
  return static_cast<double>(a.pred.rows) * static_cast<double>(a.pred.columns);
}

template <class T, int kElements>
void launch_fwd(const TubeletMse& a) {
  const auto stream = static_cast<Stream>(a.stream);
  const unsigned blocks = forward_blocks(a);
  launch(tubelet_mse_fwd_kernel<T, kElements>, dim3(blocks), dim3(kThreads), kForwardShared, stream,
         static_cast<const T*>(a.pred.data), static_cast<const uint8_t*>(a.video.data), a.tubelets,
         a.workspace, Tubelets(a));
  launch(tubelet_mse_sum_kernel, dim3(1), dim3(32), 0, stream, a.workspace, a.loss,
         static_cast<int>(blocks), count_of(a));
}

template <class T, int kElements>
void launch_bwd(const TubeletMse& a) {
  launch(tubelet_mse_bwd_kernel<T, kElements>, dim3(blocks_of(a, kMseBackward, 0)), dim3(kThreads),
         0, static_cast<Stream>(a.stream), static_cast<const T*>(a.pred.data),
         static_cast<const uint8_t*>(a.video.data), a.tubelets, a.dloss,
         static_cast<T*>(a.dpred.data), Tubelets(a), static_cast<float>(2.0 / count_of(a)));
}

} // namespace

int64_t tubelet_mse_fwd_workspace(const TubeletMse& args) {
  return forward_blocks(args);
}

int64_t tubelet_mse_bwd_workspace(const TubeletMse&) {
  return 0;
}

void tubelet_mse_fwd(const TubeletMse& args) {
  with_type(args.pred.type, [&](auto zero) {
    using T = decltype(zero);
    args.P % kChunk == 0 ? launch_fwd<T, kChunk>(args) : launch_fwd<T, 1>(args);
  });
}

void tubelet_mse_bwd(const TubeletMse& args) {
  with_type(args.pred.type, [&](auto zero) {
    using T = decltype(zero);
    args.P % kChunk == 0 ? launch_bwd<T, kChunk>(args) : launch_bwd<T, 1>(args);
  });
}

} // namespace vimpac
