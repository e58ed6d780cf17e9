// Axial attention, fp16 and bf16, backward: the packed dqkv from qkv and dout. The probabilities
// are computed again. Units, tiles and [CLS] sums are as in cuda.cu.
//
//   p = softmax(scale q k^T)   dp = keep / (1 - dropout_p) (dout v^T)   delta = rowsum(p dp)
//   ds = scale p (dp - delta)   dq = ds k   dk = ds^T q   dv = (keep p / (1 - dropout_p))^T dout
//
// A first pass over 16 query rows at a time writes dq. It stores p and ds, transposed as fragments,
// in shared memory; each lane reads back what it stored. A second pass over 16 keys at a time sums
// dk and dv over the queries. dout of row 0 counts 1 / lines in each line: the fp32 rows of p and
// ds are multiplied by that factor.
//
// If the staged tiles would leave room for only two warps, a block works on one unit: each of its
// warps has 16 rows of the tile, as queries in the first pass and as keys in the second.
#include "axial_attention/launch.cuh"
#include "axial_attention/line_dropout.cuh"
#include "axial_attention/line_operand.cuh"
#include "axial_attention/line_softmax.cuh"

namespace vimpac {
namespace {

// Where the chunks of q and dout, and of k and v, of a tile are kept.
template <int kOctets, int kBlocks>
struct Kept {
  static constexpr int kChunks = kOctets * kBlocks;
  // Whether the warps of a block are a team, which shares a tile.
  static constexpr bool kTeam = kChunks >= kAxialTeam;
  static constexpr Keep kElse = kTeam || kChunks <= kAxialStage ? Keep::kStaged : Keep::kNowhere;
  static constexpr Keep kQueries = !kTeam && kChunks <= kAxialHoldQueries ? Keep::kHeld : kElse;
  static constexpr bool kHoldKeys =
      kQueries == Keep::kHeld || (!kTeam && kOctets <= 5 && kChunks <= kAxialHoldKeys);
  static constexpr Keep kKeys = kHoldKeys ? Keep::kHeld : kElse;
  // Whether q and dout of the next tile are loaded into registers while those of this tile are
  // used.
  static constexpr bool kAhead = !kTeam && kQueries == Keep::kStaged && kChunks <= kAxialAhead;
  static constexpr unsigned kUnitWarps = kTeam ? tiles_of_16(kOctets) : 1;
  static constexpr unsigned kMostWarps = kTeam ? kUnitWarps : kAxialWarps; // of a block
  static constexpr int kResident = kTeam ? kAxialTeamBlocks : kAxialBackwardBlocks;
};

// The transposed weights of a unit, by key tile and query tile; 16 bytes of each lane.
template <int kTiles>
class WeightStore {
  uint4* own_;

public:
  static constexpr int kSize = 2 * kTiles * kTiles * 32; // of uint4
  __device__ __forceinline__ explicit WeightStore(uint4* unit) : own_(unit + threadIdx.x % 32) {}

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
  const int lane = static_cast<int>(threadIdx.x % 32);
  softmax(prob, tile, m, p.scale * kLog2e);
  const float kept_scale = keep_scale(p.threshold);
  ColumnBits<kOctets> keep[2];
  if (p.threshold > 0) {
    keep_bits(p, tile, head, m, keep);
    drop(dp, keep, kept_scale);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const LineRow at = find_row(tile, 16 * m + 8 * half + lane / 4);
    const float share =
        at.query == tile.axis->length ? 1.0f / static_cast<float>(tile.axis->lines) : 1.0f;
    float delta = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i) {
      delta += prob[i / 2][2 * half + i % 2] * dp[i / 2][2 * half + i % 2];
    }
    delta = row_sum(delta);
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i) {
      float &x = prob[i / 2][2 * half + i % 2], &y = dp[i / 2][2 * half + i % 2];
      y = x * (y - delta) * (p.scale * share);
      x *= share;
    }
  }
  if (p.threshold > 0) {
    drop(prob, keep, kept_scale);
  }
}

template <class T, int kOctets, int kBlocks>
__global__ void __launch_bounds__(32 * Kept<kOctets, kBlocks>::kMostWarps,
                                  Kept<kOctets, kBlocks>::kResident)
    axial_attention_bwd_kernel(AxialProblem p,
                               const T* __restrict__ dout, // (B, S, N, Dh)
                               const T* __restrict__ qkv,  // (B, S, 3, N, Dh), strided
                               T* __restrict__ dqkv        // (B, S, 3, N, Dh)
    ) {
  constexpr int kTiles = tiles_of_16(kOctets), kDim = 32 * kBlocks;
  using Plan = Kept<kOctets, kBlocks>;
  constexpr Keep kQueries = Plan::kQueries, kKeys = Plan::kKeys;
  // Loops over arrays in registers are unrolled, others are not.
  constexpr bool kHeld = kQueries == Keep::kHeld;
  [[maybe_unused]] constexpr bool kKeysHeld = kKeys == Keep::kHeld; // used in pragmas only
  constexpr bool kTeam = Plan::kTeam;
  using Queries = Operand<T, kOctets, kBlocks, kQueries, kTeam>;
  using Keys = Operand<T, kOctets, kBlocks, kKeys, kTeam>;
  SharedArena arena;
  const unsigned units = kTeam ? 1 : blockDim.x / 32;  // of the block
  const unsigned place = kTeam ? 0 : threadIdx.x / 32; // of this warp's
  const unsigned unit = blockIdx.x * units + place;
  // Which tiles of 16 rows this warp works on.
  const int first = kTeam ? static_cast<int>(threadIdx.x / 32) : 0,
            last = kTeam ? first + 1 : kTiles;
  const auto own = [&](int count) { return arena.take<uint4>(units * count) + place * count; };
  uint4* const weight_store = own(WeightStore<kTiles>::kSize);
  const WeightStore<kTiles> weights(weight_store);
  uint4 *const q_stage = own(Queries::kStage), *const dy_stage = own(Queries::kStage);
  uint4 *const k_stage = own(Keys::kStage), *const v_stage = own(Keys::kStage);
  int* list = arena.take<int>(units * 2 * 16 * kTiles) + place * 2 * 16 * kTiles; // of two tiles
  if (unit >= p.units) {
    return;
  }
  const AxialUnit u = find_unit(p, unit);
  const AxialAxis& axis = p.axes[u.axis];

  const T* q_base = qkv + p.qkv_offset(u.clip, u.head);
  const int64_t width = int64_t{p.heads} * kDim;
  Queries q(q_base, p.row_stride, q_stage);
  Queries dy(dout + p.offset(u.clip, u.head, 1), width, dy_stage);
  Keys k(q_base + p.part_stride, p.row_stride, k_stage);
  Keys v(q_base + 2 * p.part_stride, p.row_stride, v_stage);
  T* dq_base = dqkv + p.offset(u.clip, u.head, 3);
  const RowSink<T> dq(dq_base, 3 * width, p.has_cls);
  const RowSink<T> dk(dq_base + width, 3 * width, p.has_cls);
  const RowSink<T> dv(dq_base + 2 * width, 3 * width, p.has_cls);
  UnitSums<3, kBlocks> cls_sums;
  UnitSums<2, kBlocks> bias_sums; // of dq and dv

  const int end = p.end_tile(axis, u.chunk);
  int t = u.chunk * p.tiles_per_chunk;
  LineTile<kOctets> tile;
  const int* rows; // of this lane
  const auto start_tile = [&] {
    int* const to = list + t % 2 * 16 * kTiles;
    tile = index_tile<kOctets, kTeam>(p, axis, u.clip, t, to);
    rows = to + threadIdx.x % 32 / 4;
    k.copy(rows);
    v.copy(rows);
    if constexpr (Plan::kAhead) {
      q.prefetch(rows);
      dy.prefetch(rows);
    }
  };
  if constexpr (!kHeld) {
    start_tile();
  }
  for (;;) {
    if constexpr (kHeld) {
      start_tile();
    }
    if constexpr (Plan::kAhead) {
      q.stage();
      dy.stage();
    } else {
      q.copy(rows);
      dy.copy(rows);
    }
    if constexpr (kQueries == Keep::kStaged || kKeys == Keep::kStaged) {
      cp_async_commit();
      cp_async_wait();
    }
    if constexpr (kTeam) {
      __syncthreads(); // k and v have arrived
    }
#pragma unroll(kHeld ? kTiles : 1)
    for (int m = first; m < last; ++m) {
      if constexpr (!kHeld) {
        __syncwarp(); // no load of k and v moves before the loop
      }
      float s[kOctets][4] = {}, dp[kOctets][4] = {};
#pragma unroll(kKeysHeld ? kBlocks : 1)
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
      const ClsRows cls = dq.cls(rows, m);
#pragma unroll(kKeysHeld ? kBlocks : 1)
      for (int b = 0; b < kBlocks; ++b) {
        float d[4][4] = {};
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          multiply_columns<T>(d, ds[j], k.columns(2 * j, b), k.columns(2 * j + 1, b));
        }
        dq.store(d, rows, m, b);
        if (cls.any) {
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
    q.transpose_in_place();
    dy.transpose_in_place();
    if constexpr (kTeam) {
      __syncthreads(); // weights and transposed chunks are written, k and v were read
    }
    const int* const now = rows;
    const bool more = ++t < end;
    if constexpr (!kHeld) { // k and v are no longer needed
      if (more) {
        start_tile();
      }
    }
#pragma unroll(kHeld ? kBlocks : 1)
    for (int b = 0; b < kBlocks; ++b) {
      RowSums dk_cls, dv_cls, dv_all;
#pragma unroll(kHeld ? kTiles : 1)
      for (int j = first; j < last; ++j) {
        float dk_sum[4][4] = {}, dv_sum[4][4] = {};
#pragma unroll(kHeld ? kTiles : 1)
        for (int m = 0; m < kTiles; ++m) {
          if constexpr (!kHeld) {
            __syncwarp();
          }
          multiply_columns<T>(dv_sum, weights.get(0, m, j), dy.transposed(2 * m, b),
                              dy.transposed(2 * m + 1, b));
          multiply_columns<T>(dk_sum, weights.get(1, m, j), q.transposed(2 * m, b),
                              q.transposed(2 * m + 1, b));
        }
        dk.store(dk_sum, now, j, b);
        dv.store(dv_sum, now, j, b);
        if (const ClsRows cls = dv.cls(now, j); cls.any) {
          dk_cls.add(dk_sum, cls);
          dv_cls.add(dv_sum, cls);
        }
        if (p.bias_sums != nullptr) {
          dv_all.add(dv_sum);
        }
      }
      if (p.has_cls) {
        cls_sums.add(1, b, dk_cls.total());
        cls_sums.add(2, b, dv_cls.total());
      }
      if (p.bias_sums != nullptr) {
        bias_sums.add(1, b, dv_all.total());
      }
    }
    if (!more) {
      break;
    }
    if constexpr (kTeam) {
      __syncthreads(); // weights, q and dout are no longer needed
    }
  }
  const auto write = [&](const auto& sums, float* to) {
    static_assert(!kTeam || kTiles * decltype(cls_sums)::kSize <= 4 * WeightStore<kTiles>::kSize);
    if constexpr (kTeam) {
      sums.write_team(to, unit, reinterpret_cast<float*>(weight_store));
    } else {
      sums.write(to, unit);
    }
  };
  if (p.has_cls) {
    write(cls_sums, p.cls_sums);
  }
  if (p.bias_sums != nullptr) {
    write(bias_sums, p.bias_sums);
  }
}

} // namespace

int64_t axial_attention_run_bwd(const AxialCall& call, const Stream* stream) {
  if (call.qkv.type == ElementType::kFloat32) {
    return axial_attention_run_bwd_fp32(call, stream);
  }
  return dispatch_tile(call, [&](auto type, auto octets, auto blocks) {
    using T = decltype(type);
    constexpr int kTiles = tiles_of_16(octets);
    using Plan = Kept<octets, blocks>;
    using Queries = Operand<T, octets, blocks, Plan::kQueries>;
    using Keys = Operand<T, octets, blocks, Plan::kKeys>;
    constexpr int kStages = 2 * Queries::kStage + 2 * Keys::kStage;
    const size_t shared =
        (WeightStore<kTiles>::kSize + kStages) * sizeof(uint4) + 2 * 16 * kTiles * sizeof(int);
    return run_units<T, Plan::kUnitWarps>(
        axial_attention_bwd_kernel<T, octets, blocks>, call, octets, shared, stream,
        static_cast<const T*>(call.dout.data), static_cast<const T*>(call.qkv.data),
        static_cast<T*>(call.result()));
  });
}

void axial_attention_bwd(const AxialAttention& args) {
  const auto stream = static_cast<Stream>(args.stream);
  axial_attention_run_bwd(AxialCall(args), &stream);
}

int64_t axial_attention_bwd_workspace(const AxialAttention& args) {
  return axial_attention_run_bwd(AxialCall(args), nullptr);
}

} // namespace vimpac
