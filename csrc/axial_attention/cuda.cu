// Axial attention, fp16 and bf16, forward.
//
// One warp owns a unit (lines.cuh) and works through it tile by tile; a tile is a few whole lines
// of one head. q, k and v are read once from memory and out is written once, 16 bytes at a time.
// Products run on mma.m16n8k16 over the whole tile; the softmax keeps the lines separate. Bound by
// memory bandwidth: 4 units of (B, S, N, Dh) forward, 7 in the backward (cuda_bwd.cu).
//
// [CLS] is a row of every line. The contributions to its row 0 (out; dq, dk, dv) are summed over a
// warp's lines in registers and written as one fp32 row per unit. A second kernel adds the units in
// order; it adds the gradient of the bias over all rows, too. So results repeat bit for bit.
#include "axial_attention/launch.cuh"
#include "axial_attention/line_dropout.cuh"
#include "axial_attention/line_operand.cuh"
#include "axial_attention/line_softmax.cuh"

namespace vimpac {
namespace {

template <int kOctets, int kBlocks>
constexpr bool kHoldForward = kOctets * kBlocks <= kAxialForwardHold;

template <int kOctets, int kBlocks>
constexpr int kForwardBlocks =
    kOctets * kBlocks <= kAxialFewChunks ? kAxialForwardBlocksFew : kAxialForwardBlocks;

template <class T, int kOctets, int kBlocks>
__global__ void __launch_bounds__(32 * kAxialWarps, kForwardBlocks<kOctets, kBlocks>)
    axial_attention_fwd_kernel(AxialProblem p,
                               const T* __restrict__ qkv, // (B, S, 3, N, Dh), strided
                               T* __restrict__ out        // (B, S, N, Dh)
    ) {
  constexpr int kTiles = tiles_of_16(kOctets), kDim = 32 * kBlocks;
  constexpr bool kHeld = kHoldForward<kOctets, kBlocks>;
  SharedArena arena;
  const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const unsigned unit = blockIdx.x * warps + warp;
  int* list = arena.take<int>(warps * 16 * kTiles) + warp * 16 * kTiles;
  if (unit >= p.units) {
    return;
  }
  const AxialUnit u = find_unit(p, unit);
  const AxialAxis& axis = p.axes[u.axis];

  const T* q_base = qkv + p.qkv_offset(u.clip, u.head);
  using Keys = Operand<T, kOctets, kBlocks, kHeld ? Keep::kHeld : Keep::kNowhere>;
  Operand<T, kOctets, kBlocks, Keep::kNowhere> q(q_base, p.row_stride, nullptr);
  Keys k(q_base + p.part_stride, p.row_stride, nullptr);
  Keys v(q_base + 2 * p.part_stride, p.row_stride, nullptr);
  const RowSink<T> sink(out + p.offset(u.clip, u.head, 1), int64_t{p.heads} * kDim, p.has_cls);
  UnitSums<1, kBlocks> cls_sums;
  const int* const rows = list + threadIdx.x % 32 / 4; // of this lane
  const float kept_scale = keep_scale(p.threshold);

  const int end = p.end_tile(axis, u.chunk);
  for (int t = u.chunk * p.tiles_per_chunk; t < end; ++t) {
    const LineTile<kOctets> tile = index_tile<kOctets>(p, axis, u.clip, t, list);
    q.prefetch(rows);
    k.prefetch(rows);
    v.prefetch(rows);
#pragma unroll(kHeld ? kTiles : 1)
    for (int m = 0; m < kTiles; ++m) {
      if constexpr (!kHeld) {
        __syncwarp(); // `rows` is read again, so no load of k and v moves before the loop
      }
      float s[kOctets][4] = {};
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const Chunk low = q(2 * m, b), high = q(2 * m + 1, b);
#pragma unroll
        for (int n = 0; n < kOctets; ++n) {
          multiply_rows<T>(s[n], low, high, k(n, b));
        }
      }
      softmax(s, tile, m, p.scale * kLog2e);
      if (p.threshold > 0) {
        ColumnBits<kOctets> keep[2];
        keep_bits(p, tile, u.head, m, keep);
        drop(s, keep, kept_scale);
      }
      if (m == 0) { // late, so that the scores hide the loads of v
        v.transpose_in_place();
      }
      Fragment weights[kTiles];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        weights[j] = round_weights<T>(s, j);
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        float o[4][4] = {};
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          multiply_columns<T>(o, weights[j], v.transposed(2 * j, b), v.transposed(2 * j + 1, b));
        }
        sink.store(o, rows, m, b);
        if (const ClsRows cls = sink.cls(rows, m); cls.any) {
          RowSums sum;
          sum.add(o, cls);
          cls_sums.add(0, b, sum.total());
        }
      }
    }
  }
  if (p.has_cls) {
    cls_sums.write(p.cls_sums, unit);
  }
}

} // namespace

int64_t axial_attention_run_fwd(const AxialCall& call, const Stream* stream) {
  if (call.qkv.type == ElementType::kFloat32) {
    return axial_attention_run_fwd_fp32(call, stream);
  }
  return dispatch_tile(call, [&](auto type, auto octets, auto blocks) {
    using T = decltype(type);
    const size_t shared = 16 * tiles_of_16(octets) * sizeof(int);
    return run_units<T>(axial_attention_fwd_kernel<T, octets, blocks>, call, octets, shared, stream,
                        static_cast<const T*>(call.qkv.data), static_cast<T*>(call.result()));
  });
}

void axial_attention_fwd(const AxialAttention& args) {
  const auto stream = static_cast<Stream>(args.stream);
  axial_attention_run_fwd(AxialCall(args), &stream);
}

int64_t axial_attention_fwd_workspace(const AxialAttention& args) {
  return axial_attention_run_fwd(AxialCall(args), nullptr);
}

} // namespace vimpac
