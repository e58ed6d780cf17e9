// Axial attention, fp16 and bf16, backward: the packed dqkv from qkv and dout, the probabilities
// being computed again. Units, tiles and [CLS] sums as in axial_attention.cu.
//
//   p = softmax(scale q k^T)   dp = keep / (1 - dropout_p) (dout v^T)   delta = rowsum(p dp)
//   ds = scale p (dp - delta)   dq = ds k   dk = ds^T q   dv = (keep p / (1 - dropout_p))^T dout
//
// A first pass over 16 query rows at a time writes dq and leaves p and ds, transposed as fragments,
// in shared memory that each lane reads back itself; a second pass over 16 keys at a time sums dk
// and dv over the queries. dout of row 0 counts 1 / lines in each line: the factor goes to the fp32
// rows of p and ds.
#include "axial_launch.cuh"
#include "line_fragments.cuh"
#include "line_softmax.cuh"

namespace vimpac {
namespace {

// q, k, v and dout stay in registers where they fit; else every use loads them again.
template <int kOctets, int kBlocks>
constexpr bool kHoldBackward = kOctets * kBlocks <= 6;

// The transposed weights of a warp, by key tile and query tile; a lane's own 16 bytes.
template <int kTiles>
class WeightStore {
  uint4* own_;

public:
  static constexpr int kSize = 2 * kTiles * kTiles * 32; // of uint4
  __device__ __forceinline__ explicit WeightStore(uint4* warp) : own_(warp + threadIdx.x % 32) {}

  __device__ __forceinline__ void put(int which, int m, int j, const Fragment& f) const {
    own_[((which * kTiles + j) * kTiles + m) * 32] = {f.w[0], f.w[1], f.w[2], f.w[3]};
  }
  __device__ __forceinline__ Fragment get(int which, int m, int j) const {
    const uint4 x = own_[((which * kTiles + j) * kTiles + m) * 32];
    return {x.x, x.y, x.z, x.w};
  }
};

// p (scores in, probabilities out) and dp become the weights of dout and of q, k.
template <int kOctets>
__device__ __forceinline__ void differentiate(const AxialProblem& p,
                                              const LineTile<kOctets>& tile,
                                              int head,
                                              int m,
                                              float (&prob)[kOctets][4],
                                              float (&dp)[kOctets][4]) {
  const int lane = int(threadIdx.x % 32);
  softmax(prob, tile, m, p.scale * kLog2e);
  const float keep_scale = 65536.0f / float(65536 - p.threshold);
  ColumnBits<kOctets> keep[2];
  if (p.threshold > 0) {
    keep_bits(p, tile, head, m, keep);
    drop(dp, keep, keep_scale);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const LineRow at = find_row(tile, 16 * m + 8 * half + lane / 4);
    const float share = at.query == tile.axis->length ? 1.0f / float(tile.axis->lines) : 1.0f;
    float delta = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i)
      delta += prob[i / 2][2 * half + i % 2] * dp[i / 2][2 * half + i % 2];
    delta = row_sum(delta);
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i) {
      float &x = prob[i / 2][2 * half + i % 2], &y = dp[i / 2][2 * half + i % 2];
      y = x * (y - delta) * (p.scale * share);
      x *= share;
    }
  }
  if (p.threshold > 0)
    drop(prob, keep, keep_scale);
}

template <class T, int kOctets, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, 2)
    axial_attention_bwd_kernel(AxialProblem p,
                               const T* __restrict__ dout, // (B, S, N, Dh)
                               const T* __restrict__ qkv,  // (B, S, 3, N, Dh), strided
                               T* __restrict__ dqkv        // (B, S, 3, N, Dh)
    ) {
  constexpr int kTiles = tiles_of_16(kOctets), kDim = 32 * kBlocks;
  constexpr bool kHeld = kHoldBackward<kOctets, kBlocks>;
  using Rows = Operand<T, kOctets, kBlocks, kHeld>;
  SharedArena arena;
  const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const unsigned unit = blockIdx.x * warps + warp;
  const WeightStore<kTiles> weights(arena.take<uint4>(warps * WeightStore<kTiles>::kSize) +
                                    warp * WeightStore<kTiles>::kSize);
  int* rows = arena.take<int>(warps * 16 * kTiles) + warp * 16 * kTiles;
  if (unit >= p.units)
    return;
  const AxialUnit u = find_unit(p, unit);
  const AxialAxis& axis = p.axes[u.axis];

  const T* q_base = qkv + p.qkv_offset(u.clip, u.head);
  const int64_t width = int64_t{p.heads} * kDim;
  Rows q(q_base, p.row_stride, rows);
  Rows k(q_base + p.part_stride, p.row_stride, rows);
  Rows v(q_base + 2 * p.part_stride, p.row_stride, rows);
  Rows dy(dout + p.offset(u.clip, u.head, 1), width, rows);
  T* dq_base = dqkv + p.offset(u.clip, u.head, 3);
  const auto sink = [&](int part) {
    return RowSink<T>(dq_base + part * width, 3 * width, rows, p.has_cls);
  };
  const RowSink<T> dq = sink(0), dk = sink(1), dv = sink(2);
  UnitSums<3, kBlocks> cls_sums;
  UnitSums<2, kBlocks> bias_sums; // of dq and dv

  for (int t = u.chunk * p.tiles_per_chunk; t < (u.chunk + 1) * p.tiles_per_chunk; ++t) {
    if (t * axis.lines_per_tile >= axis.lines)
      break;
    const LineTile<kOctets> tile = index_tile<kOctets>(p, axis, u.clip, t, rows);
    q.load(), k.load(), dy.load(), v.load();
#pragma unroll(kHeld ? kTiles : 1)
    for (int m = 0; m < kTiles; ++m) {
      if constexpr (!kHeld)
        __syncwarp(); // `rows` is read again: no load of k and v moves in front of the loop
      float s[kOctets][4] = {}, dp[kOctets][4] = {};
#pragma unroll(kHeld ? kBlocks : 1)
      for (int b = 0; b < kBlocks; ++b) {
        const Chunk q_low = q(2 * m, b), q_high = q(2 * m + 1, b);
        const Chunk dy_low = dy(2 * m, b), dy_high = dy(2 * m + 1, b);
#pragma unroll
        for (int n = 0; n < kOctets; ++n) {
          multiply_rows<T>(s[n], q_low, q_high, k(n, b));
          multiply_rows<T>(dp[n], dy_low, dy_high, v(n, b));
        }
      }
      differentiate(p, tile, u.head, m, s, dp);
      Fragment ds[kTiles];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        ds[j] = round_weights<T>(dp, j);
        weights.put(0, m, j, transpose(round_weights<T>(s, j)));
        weights.put(1, m, j, transpose(ds[j]));
      }
#pragma unroll(kHeld ? kBlocks : 1)
      for (int b = 0; b < kBlocks; ++b) {
        float d[4][4] = {};
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
          multiply_columns<T>(d, ds[j], k.columns(2 * j, b), k.columns(2 * j + 1, b));
        dq.store(d, m, b);
        if (const ClsRows cls = dq.cls(m); cls.any) {
          RowSums sum;
          sum.add(d, cls);
          cls_sums.add(0, b, sum.total());
        }
        if (p.bias_sums != nullptr) {
          RowSums sum;
          sum.add(d);
          bias_sums.add(0, b, sum.total());
        }
      }
    }
    q.turn(), dy.turn();
#pragma unroll(kHeld ? kBlocks : 1)
    for (int b = 0; b < kBlocks; ++b) {
      RowSums dk_cls, dv_cls, dv_all;
#pragma unroll(kHeld ? kTiles : 1)
      for (int j = 0; j < kTiles; ++j) {
        float dk_sum[4][4] = {}, dv_sum[4][4] = {};
#pragma unroll(kHeld ? kTiles : 1)
        for (int m = 0; m < kTiles; ++m) {
          if constexpr (!kHeld)
            __syncwarp();
          multiply_columns<T>(dv_sum, weights.get(0, m, j), dy.columns(2 * m, b),
                              dy.columns(2 * m + 1, b));
          multiply_columns<T>(dk_sum, weights.get(1, m, j), q.columns(2 * m, b),
                              q.columns(2 * m + 1, b));
        }
        dk.store(dk_sum, j, b);
        dv.store(dv_sum, j, b);
        if (const ClsRows cls = dv.cls(j); cls.any)
          dk_cls.add(dk_sum, cls), dv_cls.add(dv_sum, cls);
        if (p.bias_sums != nullptr)
          dv_all.add(dv_sum);
      }
      if (p.has_cls)
        cls_sums.add(1, b, dk_cls.total()), cls_sums.add(2, b, dv_cls.total());
      if (p.bias_sums != nullptr)
        bias_sums.add(1, b, dv_all.total());
    }
  }
  if (p.has_cls)
    cls_sums.write(p.cls_sums, unit);
  if (p.bias_sums != nullptr)
    bias_sums.write(p.bias_sums, unit);
}

} // namespace

void axial_attention_bwd(const AxialArguments& call, void* stream) {
  const Stream on = static_cast<Stream>(stream);
  if (call.dtype == ElementType::kFloat)
    return axial_attention_bwd_fp32(call, on);
  dispatch_tile(call, [&](auto type, auto octets, auto blocks) {
    using T = decltype(type);
    constexpr int kTiles = tiles_of_16(octets);
    const AxialProblem p = plan_axes(call, 8 * octets);
    const size_t shared = WeightStore<kTiles>::kSize * sizeof(uint4) + 16 * kTiles * sizeof(int);
    launch_units(axial_attention_bwd_kernel<T, octets, blocks>, p, shared, on, p,
                 static_cast<const T*>(call.dout), static_cast<const T*>(call.qkv),
                 static_cast<T*>(call.result));
    launch_sums<T>(p, call, on);
  });
}

} // namespace vimpac
