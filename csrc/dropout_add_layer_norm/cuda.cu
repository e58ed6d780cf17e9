// y = LN(residual + dropout(x + linear_bias)), forward and backward in one pass each.
//
// One to sixteen warps own a row. A lane holds chunks of eight neighbouring columns from the load
// to the store, and walks over rows with the parameters of its columns in registers. The grid has
// as many blocks as the device holds at a time. Asynchronous copies bring the next rows to shared
// memory while this row is computed, so they take no registers. Statistics are fp32; the variance
// is taken around the mean. The backward draws dropout again; eight columns share one Philox call.
// Parameter gradients: a warp adds its rows in registers, a block adds its warps in order, and a
// second kernel adds the blocks in order, so results repeat bit for bit on one device. Bound by
// memory: the forward has 2 reads and 2 writes of (M, D), the backward the same and a read of each
// further gradient.
#include "cuda/column_sums.cuh"
#include "cuda/element_type.cuh"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"
#include "dropout_add_layer_norm/arguments.hpp"
#include "dropout_add_layer_norm/blocks.cuh"
#include "dropout_add_layer_norm/rows.cuh"

#include <type_traits>

namespace vimpac {
namespace {

template <class T, class R, bool kOneWarp>
__global__ void __launch_bounds__(kThreads<kOneWarp>, kBlocks<kOneWarp, kNormForward>)
    dropout_add_layer_norm_fwd_kernel(const T* __restrict__ x,               // (M, D)
                                      const R* __restrict__ residual,        // (M, D)
                                      const float* __restrict__ weight,      // (D,)
                                      const float* __restrict__ bias,        // (D,)
                                      const float* __restrict__ linear_bias, // (D,) or null
                                      const int64_t* __restrict__ seed_at,   // 0-d
                                      T* __restrict__ y,                     // (M, D)
                                      R* __restrict__ total,                 // (M, D) or null
                                      float* __restrict__ mean,              // (M,)
                                      float* __restrict__ rstd,              // (M,)
                                      Rows rows,
                                      float eps) {
  SharedArena arena;
  const Place place(rows);
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  float* const sums = arena.take<float>(3 * warps);
  constexpr int kSlot = kColumnBytes<T> + kColumnBytes<R>; // x, then residual
  unsigned char* const ring =
      arena.take<unsigned char>(warps * rows.stages * kSlot) + warp * rows.stages * kSlot;
  const uint64_t seed = rows.threshold > 0 ? static_cast<uint64_t>(*seed_at) : 0;
  float w[kNormChunks][kChunk], b[kNormChunks][kChunk], add[kNormChunks][kChunk];
#pragma unroll
  for (int c = 0; c < kNormChunks; ++c) {
    load_column(w[c], weight, c, place);
    load_column(b[c], bias, c, place);
    load_column(add[c], linear_bias, c, place);
  }

  const int stride = static_cast<int>(gridDim.x) * place.rows_at_once;
  int64_t row = static_cast<int64_t>(blockIdx.x) * place.rows_at_once + place.row;
  const auto prefetch_row = [&](int64_t which, unsigned char* slot) {
    const int64_t at = which * rows.D + place.first;
    copy_columns(slot, x + at, which < rows.M, place);
    copy_columns(slot + kColumnBytes<T>, residual + at, which < rows.M, place);
    cp_async_commit();
  };
  for (int stage = 0; stage < rows.stages; ++stage) {
    prefetch_row(row + stage * stride, ring + stage * kSlot);
  }
  // The warps of a block stay together: rows beyond the last are computed, but not stored.
  for (int stage = 0; row - place.row < rows.M; row += stride) {
    unsigned char* const slot = ring + stage * kSlot;
    const int64_t at = row * rows.D + place.first;
    float sum[kNormChunks][kChunk], statistic[1] = {0.0f};
    Decisions decisions;
    if (rows.threshold > 0) {
      decisions.draw(seed, row, place);
    }
    wait_for_row(rows);
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      float branch[kChunk];
      load_copied<T>(branch, slot, c, place);
      load_copied<R>(sum[c], slot + kColumnBytes<T>, c, place);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        branch[i] += add[c][i];
      }
      if (rows.threshold > 0) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          sum[c][i] = fmaf(branch[i], decisions.keep(c, i, rows.limit()) ? rows.keep_scale : 0.0f,
                           sum[c][i]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          sum[c][i] += branch[i];
        }
      }
      round_chunk<R>(sum[c]);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        statistic[0] += sum[c][i];
      }
      if (total != nullptr && row < rows.M && place.column(c) < place.width) {
        store_chunk(total + at + place.column(c), sum[c]);
      }
    }
    __syncwarp(); // all lanes have read
    prefetch_row(row + rows.stages * stride, slot);
    stage = stage + 1 == rows.stages ? 0 : stage + 1;

    sum_row<kOneWarp>(statistic, sums, place, rows.warps_per_row);
    // Of nearly equal elements only the mean's rounding would be left, so it is corrected by the
    // mean of the differences, which are exact then.
    const float rough_mean = rows.mean_of(statistic[0]);
    statistic[0] = 0.0f;
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      float differences = 0.0f;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        sum[c][i] -= rough_mean;
        differences += sum[c][i];
      }
      statistic[0] += place.column(c) < place.width ? differences : 0.0f;
    }
    sum_row<kOneWarp>(statistic, sums + warps, place, rows.warps_per_row);
    const float correction = rows.mean_of(statistic[0]);
    statistic[0] = 0.0f;
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        sum[c][i] -= correction;
        squares = fmaf(sum[c][i], sum[c][i], squares);
      }
      statistic[0] += place.column(c) < place.width ? squares : 0.0f;
    }
    sum_row<kOneWarp>(statistic, sums + 2 * warps, place, rows.warps_per_row);
    const float inverse = __frsqrt_rn(fmaf(statistic[0], rows.inverse_D, eps));
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        sum[c][i] = fmaf(sum[c][i] * inverse, w[c][i], b[c][i]);
      }
      if (row < rows.M && place.column(c) < place.width) {
        store_chunk(y + at + place.column(c), sum[c]);
      }
    }
    if (total != nullptr && row < rows.M && place.first == 0 && place.lane == 0) {
      mean[row] = rough_mean + correction;
      rstd[row] = inverse;
    }
  }
}

// With xhat = (total - mean) * rstd, dy the sum of both gradients of y, and g = dy * weight:
//   dtotal' = rstd * (g - mean(g) - xhat * mean(g * xhat)) + dtotal
// is dresidual; dx is the same after dropout, and null if there is none. partial: sums over the
// block's rows of dy * xhat, dy and dx, the gradients of weight, bias and linear_bias.
template <class T, class R, bool kOneWarp>
__global__ void __launch_bounds__(kThreads<kOneWarp>, kBlocks<kOneWarp, kNormBackward>)
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
                                      Rows rows) {
  SharedArena arena;
  const Place place(rows, kOneWarp);
  const bool has_other = dy_other != nullptr, has_dtotal = dtotal != nullptr;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  using At = Slot<T, R>;
  const At layout(has_other, has_dtotal);
  const int ring_bytes = warps * rows.stages * layout.size;
  const int sums_bytes = place.rows_at_once * 3 * rows.D * static_cast<int>(sizeof(float));
  float* const sums = arena.take<float>(4 * warps);
  unsigned char* const weights = arena.take<unsigned char>(kWeightBytes<kOneWarp>);
  unsigned char* const bytes =
      arena.take<unsigned char>(ring_bytes > sums_bytes ? ring_bytes : sums_bytes);
  const uint64_t seed = rows.threshold > 0 ? static_cast<uint64_t>(*seed_at) : 0;
  float dweight[kNormChunks][kChunk] = {}, dbias[kNormChunks][kChunk] = {};
  float dlinear[kNormChunks][kChunk] = {};

  const int stride = static_cast<int>(gridDim.x) * place.rows_at_once;
  int64_t row = static_cast<int64_t>(blockIdx.x) * place.rows_at_once + place.row;
  unsigned char* const ring = bytes + warp * rows.stages * layout.size;
  const auto prefetch_row = [&](int64_t which, unsigned char* slot) {
    const bool live = which < rows.M;
    const int64_t at = which * rows.D + place.first;
    if (place.lane < 2) {
      cp_async<4>(slot + place.lane * 4, (place.lane == 0 ? mean : rstd) + which, live);
    }
    copy_columns(slot + At::kTotal, total + at, live, place);
    copy_columns(slot + At::kDy, dy + at, live, place);
    if (has_other) {
      copy_columns(slot + At::kOther, dy_other + at, live, place);
    }
    if (has_dtotal) {
      copy_columns(slot + layout.dtotal, dtotal + at, live, place);
    }
    cp_async_commit();
  };
  if (kOneWarp && place.row == 0) {
    copy_columns(weights, weight, true, place); // copied with the first row
  }
  for (int stage = 0; stage < rows.stages; ++stage) {
    prefetch_row(row + stage * stride, ring + stage * layout.size);
  }
  if constexpr (kOneWarp) {
    wait_for_row(rows);
    __syncthreads(); // the weight has arrived
  }
  for (int stage = 0, buffer = 0; row - place.row < rows.M; row += stride) {
    unsigned char* const slot = ring + stage * layout.size;
    wait_for_row(rows);
    const float mu = reinterpret_cast<const float*>(slot)[0];
    const float inverse = reinterpret_cast<const float*>(slot)[1];
    float g[kNormChunks][kChunk], means[2] = {0.0f, 0.0f};
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      float xhat[kChunk];
      load_copied<R>(xhat, slot + At::kTotal, c, place);
      load_copied<T>(g[c], slot + At::kDy, c, place);
      if (has_other) {
        float more[kChunk];
        load_copied<T>(more, slot + At::kOther, c, place);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          g[c][i] += more[i];
        }
      }
      float w[kChunk];
      if constexpr (kOneWarp) {
        load_copied<float>(w, weights, c, place);
      } else {
        load_column(w, weight, c, place);
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        xhat[i] = (xhat[i] - mu) * inverse;
        dweight[c][i] = fmaf(g[c][i], xhat[i], dweight[c][i]);
        dbias[c][i] += g[c][i];
        g[c][i] *= w[i];
        means[0] += g[c][i];
        means[1] = fmaf(g[c][i], xhat[i], means[1]);
      }
    }
    sum_row<kOneWarp>(means, sums + buffer, place, rows.warps_per_row);
    buffer = 2 * warps - buffer;
    const float g_mean = inverse * (means[0] * rows.inverse_D);
    const float gx_mean = inverse * inverse * (means[1] * rows.inverse_D);
    const int64_t at = row * rows.D + place.first;
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      float centred[kChunk];
      load_copied<R>(centred, slot + At::kTotal, c, place);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        g[c][i] = fmaf(-gx_mean, centred[i] - mu, fmaf(inverse, g[c][i], -g_mean));
      }
      if (has_dtotal) {
        float more[kChunk];
        load_copied<R>(more, slot + layout.dtotal, c, place);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          g[c][i] += more[i];
        }
      }
      if (row < rows.M && place.column(c) < place.width) {
        store_chunk(dresidual + at + place.column(c), g[c]);
      }
    }
    if (rows.threshold > 0) {
      Decisions decisions;
      decisions.draw(seed, row, place);
#pragma unroll
      for (int c = 0; c < kNormChunks; ++c) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          g[c][i] *= decisions.keep(c, i, rows.limit()) ? rows.keep_scale : 0.0f;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kNormChunks; ++c) {
      if (dx != nullptr && row < rows.M && place.column(c) < place.width) {
        store_chunk(dx + at + place.column(c), g[c]);
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        dlinear[c][i] += g[c][i];
      }
    }
    __syncwarp(); // all lanes have read
    prefetch_row(row + rows.stages * stride, slot);
    stage = stage + 1 == rows.stages ? 0 : stage + 1;
  }
  cp_async_wait();
  __syncthreads(); // no copy into the memory of the sums is in flight
  float* const columns = reinterpret_cast<float*>(bytes); // (rows, 3, D)
#pragma unroll
  for (int c = 0; c < kNormChunks; ++c) {
    if (place.column(c) >= place.width) {
      continue;
    }
    float* const at = columns + place.row * 3 * rows.D + place.first + place.column(c);
    store_chunk_shared(at, dweight[c]);
    store_chunk_shared(at + rows.D, dbias[c]);
    store_chunk_shared(at + 2 * rows.D, dlinear[c]);
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < 3 * rows.D; j += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int r = 0; r < place.rows_at_once; ++r) {
      sum += columns[r * 3 * rows.D + j];
    }
    partial[static_cast<int64_t>(blockIdx.x) * 3 * rows.D + j] = sum;
  }
}

template <class T, class R, bool kOneWarp>
void launch_fwd(const DropoutAddLayerNorm& a, const Split& split) {
  const int64_t M = a.x.rows;
  const int D = static_cast<int>(a.x.columns);
  const int slot = kColumnBytes<T> + kColumnBytes<R>, warps = split.warps();
  const Rows rows = split.rows_of(M, D, a.threshold, slot);
  const size_t shared = sums_bytes(warps, 3) + static_cast<size_t>(warps * rows.stages * slot);
  const int64_t blocks = split.blocks(M, kNormForward, shared);
  launch(dropout_add_layer_norm_fwd_kernel<T, R, kOneWarp>, dim3(static_cast<unsigned>(blocks)),
         dim3(static_cast<unsigned>(warps) * 32), shared, static_cast<Stream>(a.stream),
         static_cast<const T*>(a.x.data), static_cast<const R*>(a.residual.data), a.weight, a.bias,
         a.linear_bias, a.seed, static_cast<T*>(a.y.data), static_cast<R*>(a.total.data), a.mean,
         a.rstd, rows, a.eps);
}

template <class T, class R, bool kOneWarp>
void launch_bwd(const DropoutAddLayerNorm& a, const Split& split) {
  const int64_t M = a.dy.rows;
  const int D = static_cast<int>(a.dy.columns);
  const auto stream = static_cast<Stream>(a.stream);
  const int slot = Slot<T, R>(a.dy_other.data != nullptr, a.dtotal.data != nullptr).size;
  const int warps = split.warps();
  const Rows rows = split.rows_of(M, D, a.threshold, slot);
  const size_t ring = static_cast<size_t>(warps * rows.stages * slot);
  const size_t columns = static_cast<size_t>(split.rows() * 3 * D) * sizeof(float);
  const size_t shared =
      sums_bytes(warps, 4) + kWeightBytes<kOneWarp> + (ring > columns ? ring : columns);
  const int blocks = static_cast<int>(split.blocks(M, kNormBackward, shared));
  launch(dropout_add_layer_norm_bwd_kernel<T, R, kOneWarp>, dim3(static_cast<unsigned>(blocks)),
         dim3(static_cast<unsigned>(warps) * 32), shared, stream, static_cast<const T*>(a.dy.data),
         static_cast<const T*>(a.dy_other.data), static_cast<const R*>(a.dtotal.data),
         static_cast<const R*>(a.total.data), a.mean, a.rstd, a.weight, a.seed,
         static_cast<T*>(a.dx.data), static_cast<R*>(a.dresidual.data), a.workspace, rows);
  add_blocks<false>(a.workspace, {a.dweight, a.dbias, a.dlinear_bias}, blocks, 3 * D, D, stream);
}

// f(T{}, R{}, one warp a row) for the types of x and of residual.
template <class F>
void dispatch(ElementType x, ElementType residual, const Split& split, const F& f) {
  with_type(x, [&](auto t) {
    const auto with_warps = [&](auto r) {
      split.warps_per_row == 1 ? f(t, r, std::true_type{}) : f(t, r, std::false_type{});
    };
    residual == ElementType::kFloat32 ? with_warps(float{}) : with_warps(t);
  });
}

} // namespace

int64_t dropout_add_layer_norm_fwd_workspace(const DropoutAddLayerNorm&) {
  return 0;
}

void dropout_add_layer_norm_fwd(const DropoutAddLayerNorm& args) {
  const Split split(static_cast<int>(args.x.columns));
  dispatch(args.x.type, args.residual.type, split, [&](auto t, auto r, auto one_warp) {
    launch_fwd<decltype(t), decltype(r), one_warp>(args, split);
  });
}

int64_t dropout_add_layer_norm_bwd_workspace(const DropoutAddLayerNorm& args) {
  const int64_t D = args.dy.columns;
  return Split(static_cast<int>(D)).blocks(args.dy.rows, kNormBackward) * 3 * D;
}

void dropout_add_layer_norm_bwd(const DropoutAddLayerNorm& args) {
  const Split split(static_cast<int>(args.dy.columns));
  dispatch(args.dy.type, args.total.type, split, [&](auto t, auto r, auto one_warp) {
    launch_bwd<decltype(t), decltype(r), one_warp>(args, split);
  });
}

} // namespace vimpac
