// y = LN(residual + dropout(x + linear_bias)), forward and backward in one pass each.
//
// One to eight warps own a row: a lane holds chunks of eight neighbouring columns, 16 bytes of a
// 16-bit type, from the load to the store, so that the row is read once. Statistics are fp32, the
// variance is taken around the mean. Dropout is drawn again in the backward; eight columns share
// one Philox call. Parameter gradients: a warp adds up its rows in registers, a block its warps in
// order, and a second kernel the blocks in order, so that results repeat bit for bit.
// Bound by memory: forward 2 reads and 2 writes of (M, D), backward the same.
#include "column_sums.cuh"
#include "element_type.cuh"
#include "ops.hpp"
#include "philox.hpp"
#include "platform.cuh"
#include "vector.cuh"

#include <type_traits>

namespace vimpac {
namespace {

constexpr int kWarps = 4;           // of a block, where a row takes no more
constexpr int kMaxBlocks = 4 * 132; // backward: four blocks on each multiprocessor of a Hopper GPU
// Threads of a block, and how many blocks registers must leave room for on a multiprocessor, by the
// chunks of a lane: a grid of four where three fit would end with a quarter of them alone.
template <int kChunks>
constexpr int kMaxThreads = kChunks == 2 ? 32 * kWarps : 256;
template <int kChunks>
constexpr int kResident = kChunks == 2 ? 4 : 1;
constexpr unsigned kAll = 0xffffffffu;
constexpr uint32_t kResidualStream = 1u << 24;

// Sets dropped elements to 0 and multiplies the others by the inverse of the kept fraction.
__device__ __forceinline__ void
apply_dropout(float (&x)[kChunk], uint64_t seed, int threshold, int64_t row, int column) {
  const Philox4<uint32_t> words = philox4x32_10<uint32_t>(
      {static_cast<uint32_t>(column / kChunk), static_cast<uint32_t>(row),
       static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), kResidualStream},
      seed);
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
  const float scale = 65536.0f / static_cast<float>(65536 - threshold);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const int decision = static_cast<int>((word[i / 2] >> (i % 2 * 16)) & 0xffffu);
    x[i] = decision >= threshold ? x[i] * scale : 0.0f;
  }
}

// Where a thread stands: which of the block's rows, and its first column.
struct Place {
  int rows;   // of the block at a time
  int row;    // this warp's
  int part;   // of the row's warps
  int column; // of chunk 0
  int step;   // from chunk to chunk

  __device__ explicit Place(int warps_per_row) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    rows = static_cast<int>(blockDim.x) / 32 / warps_per_row;
    row = warp / warps_per_row;
    part = warp % warps_per_row;
    column = (part * 32 + lane) * kChunk;
    step = warps_per_row * 32 * kChunk;
  }
};

// Adds over the lanes of a row; every thread of the block takes part and gets its row's sums.
template <int N>
__device__ __forceinline__ void
sum_row(float (&values)[N], float* shared, const Place& place, int warps_per_row) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2)
      values[n] += __shfl_xor_sync(kAll, values[n], bit);
  if (warps_per_row == 1)
    return;
  const int warp = static_cast<int>(threadIdx.x) / 32, first = place.row * warps_per_row;
  __syncthreads(); // the previous sums have been read
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int n = 0; n < N; ++n)
      shared[warp * N + n] = values[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = 0.0f;
    for (int i = 0; i < warps_per_row; ++i)
      values[n] += shared[(first + i) * N + n];
  }
}

template <class T, class R, int kChunks>
__global__ void dropout_add_layer_norm_fwd_kernel(const T* __restrict__ x,               // (M, D)
                                                  const R* __restrict__ residual,        // (M, D)
                                                  const float* __restrict__ weight,      // (D,)
                                                  const float* __restrict__ bias,        // (D,)
                                                  const float* __restrict__ linear_bias, // (D,)
                                                  const int64_t* __restrict__ seed_at,   // 0-d
                                                  T* __restrict__ y,                     // (M, D)
                                                  R* __restrict__ total,    // (M, D) or null
                                                  float* __restrict__ mean, // (M,)
                                                  float* __restrict__ rstd, // (M,)
                                                  int64_t M,
                                                  int D,
                                                  int threshold,
                                                  float eps,
                                                  int warps_per_row) {
  SharedArena arena;
  float* shared = arena.take<float>(blockDim.x / 32);
  const Place place(warps_per_row);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * place.rows + place.row;
  const uint64_t seed = threshold > 0 ? static_cast<uint64_t>(*seed_at) : 0;
  float sum[kChunks][kChunk] = {};
  float statistic[1] = {0.0f};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = place.column + c * place.step;
    if (row >= M || column >= D)
      continue;
    float branch[kChunk];
    load_chunk(branch, x + row * D + column);
    load_chunk(sum[c], residual + row * D + column);
    if (linear_bias != nullptr) {
      float add[kChunk];
      load_chunk(add, linear_bias + column);
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        branch[i] += add[i];
    }
    if (threshold > 0)
      apply_dropout(branch, seed, threshold, row, column);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      sum[c][i] += branch[i];
      statistic[0] += sum[c][i];
    }
    if (total != nullptr)
      store_chunk(total + row * D + column, sum[c]);
  }
  sum_row(statistic, shared, place, warps_per_row);
  const float mu = statistic[0] / static_cast<float>(D);
  statistic[0] = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
    if (place.column + c * place.step < D)
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        statistic[0] += (sum[c][i] - mu) * (sum[c][i] - mu);
  sum_row(statistic, shared, place, warps_per_row);
  const float inverse = 1.0f / sqrtf(statistic[0] / static_cast<float>(D) + eps);
  if (row >= M)
    return;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = place.column + c * place.step;
    if (column >= D)
      continue;
    float w[kChunk], b[kChunk];
    load_chunk(w, weight + column);
    load_chunk(b, bias + column);
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      w[i] = (sum[c][i] - mu) * inverse * w[i] + b[i];
    store_chunk(y + row * D + column, w);
  }
  if (total != nullptr && place.column == 0) {
    mean[row] = mu;
    rstd[row] = inverse;
  }
}

// With xhat = (total - mean) * rstd, dy the sum of both gradients of y, and g = dy * weight:
//   dtotal' = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dtotal
// is dresidual; dx is the same after dropout, and null if there is none. partial: sums over the
// block's rows of dy * xhat, dy and dx, the gradients of weight, bias and linear_bias.
template <class T, class R, int kChunks>
__global__ void __launch_bounds__(kMaxThreads<kChunks>, kResident<kChunks>)
    dropout_add_layer_norm_bwd_kernel(const T* __restrict__ dy,            // (M, D)
                                      const T* __restrict__ dy_other,      // (M, D) or null
                                      const R* __restrict__ dtotal,        // (M, D) or null
                                      const R* __restrict__ total,         // (M, D)
                                      const float* __restrict__ mean,      // (M,)
                                      const float* __restrict__ rstd,      // (M,)
                                      const float* __restrict__ weight,    // (D,)
                                      const int64_t* __restrict__ seed_at, // 0-d
                                      T* __restrict__ dx,                  // (M, D) or null
                                      R* __restrict__ dresidual,           // (M, D)
                                      float* __restrict__ partial,         // (blocks, 3, D)
                                      int64_t M,
                                      int D,
                                      int threshold,
                                      int warps_per_row) {
  SharedArena arena;
  const Place place(warps_per_row);
  float* shared = arena.take<float>(blockDim.x / 32 * 2);
  float* columns = arena.take<float>(static_cast<size_t>(place.rows) * 3 * D); // (rows, 3, D)
  const uint64_t seed = threshold > 0 ? static_cast<uint64_t>(*seed_at) : 0;
  float dweight[kChunks][kChunk] = {}, dbias[kChunks][kChunk] = {}, dlinear[kChunks][kChunk] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * place.rows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * place.rows; first < M; first += stride) {
    const int64_t row = first + place.row;
    const bool live = row < M;
    const float mu = live ? mean[row] : 0.0f, inverse = live ? rstd[row] : 0.0f;
    float xhat[kChunks][kChunk] = {}, g[kChunks][kChunk] = {}, sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = place.column + c * place.step;
      if (!live || column >= D)
        continue;
      float w[kChunk];
      load_chunk(xhat[c], total + row * D + column);
      load_chunk(g[c], dy + row * D + column);
      if (dy_other != nullptr) {
        float add[kChunk];
        load_chunk(add, dy_other + row * D + column);
#pragma unroll
        for (int i = 0; i < kChunk; ++i)
          g[c][i] += add[i];
      }
      load_chunk(w, weight + column);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        xhat[c][i] = (xhat[c][i] - mu) * inverse;
        dweight[c][i] += g[c][i] * xhat[c][i];
        dbias[c][i] += g[c][i];
        g[c][i] *= w[i];
        sums[0] += g[c][i];
        sums[1] += g[c][i] * xhat[c][i];
      }
    }
    sum_row(sums, shared, place, warps_per_row);
    const float g_mean = sums[0] / static_cast<float>(D), gx_mean = sums[1] / static_cast<float>(D);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = place.column + c * place.step;
      if (!live || column >= D)
        continue;
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        g[c][i] = inverse * (g[c][i] - g_mean - xhat[c][i] * gx_mean);
      if (dtotal != nullptr) {
        float add[kChunk];
        load_chunk(add, dtotal + row * D + column);
#pragma unroll
        for (int i = 0; i < kChunk; ++i)
          g[c][i] += add[i];
      }
      store_chunk(dresidual + row * D + column, g[c]);
      if (threshold > 0)
        apply_dropout(g[c], seed, threshold, row, column);
      if (dx != nullptr)
        store_chunk(dx + row * D + column, g[c]);
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        dlinear[c][i] += g[c][i];
    }
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = place.column + c * place.step;
    if (column >= D)
      continue;
    float* at = columns + static_cast<size_t>(place.row) * 3 * D + column;
    store_chunk_shared(at, dweight[c]);
    store_chunk_shared(at + D, dbias[c]);
    store_chunk_shared(at + 2 * D, dlinear[c]);
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < 3 * D; j += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int r = 0; r < place.rows; ++r)
      sum += columns[static_cast<size_t>(r) * 3 * D + j];
    partial[static_cast<int64_t>(blockIdx.x) * 3 * D + j] = sum;
  }
}

// Chunks of a lane and warps of a row: two chunks keep 16-bit rows of 512 in one warp; wider rows
// take four and as many warps as that leaves.
struct Split {
  int chunks, warps_per_row;

  explicit Split(int D) : chunks(D <= 512 ? 2 : 4) {
    warps_per_row = (D + chunks * 32 * kChunk - 1) / (chunks * 32 * kChunk);
  }
  int warps() const {
    return warps_per_row > kWarps ? warps_per_row : kWarps / warps_per_row * warps_per_row;
  }
  int rows() const { return warps() / warps_per_row; }
};

template <class T, class R, int kChunks>
void launch_fwd(const DropoutAddLayerNormFwd& a, const Split& split, Stream stream) {
  const int64_t blocks = (a.M + split.rows() - 1) / split.rows();
  const unsigned threads = static_cast<unsigned>(split.warps()) * 32;
  launch(dropout_add_layer_norm_fwd_kernel<T, R, kChunks>, dim3(static_cast<unsigned>(blocks)),
         dim3(threads), split.warps() * sizeof(float), stream, static_cast<const T*>(a.x),
         static_cast<const R*>(a.residual), a.weight, a.bias, a.linear_bias, a.seed,
         static_cast<T*>(a.y), static_cast<R*>(a.total), a.mean, a.rstd, a.M, a.D, a.threshold,
         a.eps, split.warps_per_row);
}

template <class T, class R, int kChunks>
void launch_bwd(const DropoutAddLayerNormBwd& a, const Split& split, Stream stream) {
  const int blocks = dropout_add_layer_norm_blocks(a.M, a.D);
  const unsigned threads = static_cast<unsigned>(split.warps()) * 32;
  const size_t shared = (static_cast<size_t>(split.warps()) * 2 + 3) / 4 * 4 * sizeof(float) +
                        static_cast<size_t>(split.rows()) * 3 * a.D * sizeof(float);
  launch(dropout_add_layer_norm_bwd_kernel<T, R, kChunks>, dim3(static_cast<unsigned>(blocks)),
         dim3(threads), shared, stream, static_cast<const T*>(a.dy),
         static_cast<const T*>(a.dy_other), static_cast<const R*>(a.dtotal),
         static_cast<const R*>(a.total), a.mean, a.rstd, a.weight, a.seed, static_cast<T*>(a.dx),
         static_cast<R*>(a.dresidual), a.partial, a.M, a.D, a.threshold, split.warps_per_row);
  add_blocks<false>(a.partial, {a.dweight, a.dbias, a.dlinear_bias}, blocks, 3 * a.D, a.D, stream);
}

// f(T{}, R{}, chunks) for the types of x and of residual.
template <class F>
void dispatch(ElementType x, ElementType residual, int chunks, const F& f) {
  with_type(x, [&](auto t) {
    const auto with_chunks = [&](auto r) {
      chunks == 2 ? f(t, r, std::integral_constant<int, 2>{})
                  : f(t, r, std::integral_constant<int, 4>{});
    };
    residual == ElementType::kFloat ? with_chunks(float{}) : with_chunks(t);
  });
}

} // namespace

int dropout_add_layer_norm_blocks(int64_t M, int D) {
  const int64_t rows = Split(D).rows(), blocks = (M + rows - 1) / rows;
  return static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

void dropout_add_layer_norm_fwd(const DropoutAddLayerNormFwd& args, void* stream) {
  const Split split(args.D);
  dispatch(args.x_type, args.residual_type, split.chunks, [&](auto t, auto r, auto chunks) {
    launch_fwd<decltype(t), decltype(r), chunks>(args, split, static_cast<Stream>(stream));
  });
}

void dropout_add_layer_norm_bwd(const DropoutAddLayerNormBwd& args, void* stream) {
  const Split split(args.D);
  dispatch(args.x_type, args.residual_type, split.chunks, [&](auto t, auto r, auto chunks) {
    launch_bwd<decltype(t), decltype(r), chunks>(args, split, static_cast<Stream>(stream));
  });
}

} // namespace vimpac
