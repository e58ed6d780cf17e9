// Axial attention, fp32, forward and backward on CUDA cores: exact products, for tests and small
// models. One warp owns a unit (lines.cuh) and works line by line and query by query. For the
// scores a lane owns every 32nd key, for the results every 32nd element of a row. Keys and values
// are read again for every query, from the L1 cache. Sums over lines are as in cuda.cu.
#include "axial_attention/launch.cuh"
#include "axial_attention/line_dropout.cuh"
#include "axial_attention/line_softmax.cuh"

namespace vimpac {
namespace {

constexpr int kMaxKeys = 72, kPerLane = (kMaxKeys + 31) / 32;

// Elements of a (queries, keys) array in shared memory, in whole 16 bytes.
__host__ __device__ constexpr int score_elements(int longest) {
  return (longest * longest + 3) / 4 * 4;
}

// One line as a warp sees it. Lane l owns keys l, l + 32, ...
struct Line {
  const AxialAxis* axis;
  int number;             // of the clip
  unsigned global;        // over all clips: part of the dropout counter
  const int* rows;        // (keys,) in shared memory: row of the sequence
  bool allowed[kPerLane]; // not padding
};

__device__ __forceinline__ int lane_id() {
  return static_cast<int>(threadIdx.x % 32);
}

__device__ __forceinline__ Line
find_line(const AxialProblem& p, const AxialAxis& axis, int clip, int number, int* rows) {
  Line line{&axis,
            number,
            static_cast<unsigned>(clip) * static_cast<unsigned>(axis.lines) +
                static_cast<unsigned>(number),
            rows,
            {}};
  __syncwarp(); // the previous line no longer reads `rows`
  for (int i = 0; i < kPerLane; ++i) {
    const int j = lane_id() + 32 * i;
    if (j >= axis.keys) {
      continue;
    }
    const int token = j < axis.length ? axis.token(number, j) : 0;
    rows[j] = j < axis.length ? token + p.has_cls : 0;
    line.allowed[i] = j == axis.length || p.padding == nullptr ||
                      p.padding[int64_t{clip} * p.tokens + token] == 0;
  }
  __syncwarp();
  return line;
}

// s[i] = query . row of key lane + 32 i.
template <int kDim>
__device__ __forceinline__ void dot_rows(
    const float* query, const float* base, int64_t stride, const Line& line, float (&s)[kPerLane]) {
  for (int i = 0; i < kPerLane; ++i) {
    const int j = lane_id() + 32 * i;
    s[i] = 0.0f;
    if (j >= line.axis->keys) {
      continue;
    }
    const float* row = base + line.rows[j] * stride;
#pragma unroll 4
    for (int d = 0; d < kDim; d += 4) {
      float a[4], b[4];
      load16_readonly(a, query + d);
      load16_readonly(b, row + d);
      for (int e = 0; e < 4; ++e) {
        s[i] += a[e] * b[e];
      }
    }
  }
}

// y[b] = sum over j of weights[j * step] times element lane + 32 b of row j.
template <int kBlocks>
__device__ __forceinline__ void sum_rows(const float* weights,
                                         int step,
                                         const float* base,
                                         int64_t stride,
                                         const Line& line,
                                         float (&y)[kBlocks]) {
  for (int b = 0; b < kBlocks; ++b) {
    y[b] = 0.0f;
  }
  for (int j = 0; j < line.axis->keys; ++j) {
    const float weight = weights[j * step];
    const float* row = base + line.rows[j] * stride + lane_id();
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      y[b] += weight * __ldg(row + 32 * b);
    }
  }
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) {
    x += __shfl_xor_sync(~0u, x, step);
  }
  return x;
}

// Scores become probabilities: zero where a line has no key, NaN where they are not finite.
__device__ __forceinline__ void softmax(float (&s)[kPerLane], const Line& line, float scale_log2) {
  float largest = -INFINITY, sum = 0.0f;
  for (int i = 0; i < kPerLane; ++i) {
    const bool key = lane_id() + 32 * i < line.axis->keys && line.allowed[i];
    s[i] = key ? s[i] * scale_log2 : -INFINITY;
    largest = fmaxf(largest, s[i]);
  }
  for (int step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  }
  largest = largest == -INFINITY ? 0.0f : largest;
  for (int i = 0; i < kPerLane; ++i) {
    s[i] = approximate_exp2(s[i] - largest);
    sum += s[i];
  }
  sum = warp_sum(sum);
  for (int i = 0; i < kPerLane; ++i) {
    const bool key = lane_id() + 32 * i < line.axis->keys && line.allowed[i];
    s[i] = sum > 0.0f ? s[i] * (1.0f / sum) : key ? NAN : 0.0f;
  }
}

// Factors of a query's probabilities: 0 where dropout drops, else 1 / (1 - p).
__device__ __forceinline__ void
keep_factors(const AxialProblem& p, const Line& line, int head, int query, float (&f)[kPerLane]) {
  const unsigned last = static_cast<unsigned>(head) | static_cast<unsigned>(line.axis->id) << 16;
  for (int i = 0; i < kPerLane; ++i) {
    f[i] = 1.0f;
    if (p.threshold == 0) {
      continue;
    }
    const unsigned j = static_cast<unsigned>(lane_id() + 32 * i);
    const uint32_t bits = keep_octet(j / 8, static_cast<unsigned>(query), line.global, last,
                                     static_cast<uint64_t>(*p.seed), p.threshold);
    f[i] = (bits >> j % 8 & 1) != 0 ? keep_scale(p.threshold) : 0.0f;
  }
}

// Writes a row of a result, or, for [CLS], adds it to this lane's sums.
template <int kBlocks>
__device__ __forceinline__ void
store_row(const float (&y)[kBlocks], bool is_cls, float* row, float (&sums)[kBlocks]) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    if (is_cls) {
      sums[b] += y[b];
    } else {
      row[lane_id() + 32 * b] = y[b];
    }
  }
}

template <int kBlocks>
__global__ void __launch_bounds__(32 * kAxialWarps, kAxialFp32Blocks)
    axial_attention_fwd_fp32_kernel(AxialProblem p,
                                    const float* __restrict__ qkv, // (B, S, 3, N, Dh), strided
                                    float* __restrict__ out        // (B, S, N, Dh)
    ) {
  constexpr int kDim = 32 * kBlocks;
  SharedArena arena;
  const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const unsigned unit = blockIdx.x * warps + warp;
  float* weights = arena.take<float>(warps * kMaxKeys) + warp * kMaxKeys;
  int* rows = arena.take<int>(warps * kMaxKeys) + warp * kMaxKeys;
  if (unit >= p.units) {
    return;
  }
  const AxialUnit u = find_unit(p, unit);
  const AxialAxis& axis = p.axes[u.axis];
  const float *q = qkv + p.qkv_offset(u.clip, u.head), *k = q + p.part_stride,
              *v = k + p.part_stride;
  float* y = out + p.offset(u.clip, u.head, 1);
  const int64_t width = int64_t{p.heads} * kDim;
  float sums[kBlocks] = {};

  for (int n = p.first_line(axis, u.chunk); n < p.first_line(axis, u.chunk + 1); ++n) {
    const Line line = find_line(p, axis, u.clip, n, rows);
    for (int i = 0; i < axis.keys; ++i) {
      float s[kPerLane], keep[kPerLane], row[kBlocks];
      dot_rows<kDim>(q + rows[i] * p.row_stride, k, p.row_stride, line, s);
      softmax(s, line, p.scale * kLog2e);
      keep_factors(p, line, u.head, i, keep);
      for (int x = 0; x < kPerLane; ++x) {
        if (lane_id() + 32 * x < axis.keys) {
          weights[lane_id() + 32 * x] = s[x] * keep[x];
        }
      }
      __syncwarp();
      sum_rows(weights, 1, v, p.row_stride, line, row);
      store_row(row, i == axis.length, y + rows[i] * width, sums);
      __syncwarp();
    }
  }
  if (p.has_cls) {
    for (int b = 0; b < kBlocks; ++b) {
      p.cls_sums[int64_t{unit} * kDim + lane_id() + 32 * b] = sums[b];
    }
  }
}

template <int kBlocks>
__global__ void __launch_bounds__(32 * kAxialWarps, kAxialFp32Blocks)
    axial_attention_bwd_fp32_kernel(AxialProblem p,
                                    const float* __restrict__ dout, // (B, S, N, Dh)
                                    const float* __restrict__ qkv,  // (B, S, 3, N, Dh), strided
                                    float* __restrict__ dqkv        // (B, S, 3, N, Dh)
    ) {
  constexpr int kDim = 32 * kBlocks;
  SharedArena arena;
  const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const unsigned unit = blockIdx.x * warps + warp;
  const int size = score_elements(p.longest);
  float* prob = arena.take<float>(warps * size) + warp * size; // (queries, keys), dropout applied
  float* ds = arena.take<float>(warps * size) + warp * size;
  int* rows = arena.take<int>(warps * kMaxKeys) + warp * kMaxKeys;
  if (unit >= p.units) {
    return;
  }
  const AxialUnit u = find_unit(p, unit);
  const AxialAxis& axis = p.axes[u.axis];
  const float *q = qkv + p.qkv_offset(u.clip, u.head), *k = q + p.part_stride,
              *v = k + p.part_stride, *dy = dout + p.offset(u.clip, u.head, 1);
  float* dq = dqkv + p.offset(u.clip, u.head, 3);
  const int64_t width = int64_t{p.heads} * kDim;
  const int keys = axis.keys;
  float sums[3][kBlocks] = {}, bias_sums[2][kBlocks] = {}; // of [CLS]; of all rows of dq and dv

  for (int n = p.first_line(axis, u.chunk); n < p.first_line(axis, u.chunk + 1); ++n) {
    const Line line = find_line(p, axis, u.clip, n, rows);
    for (int i = 0; i < keys; ++i) {
      const bool is_cls = i == axis.length;
      const float share = is_cls ? 1.0f / static_cast<float>(axis.lines) : 1.0f; // of dout of row 0
      float s[kPerLane], dp[kPerLane], keep[kPerLane], row[kBlocks], delta = 0.0f;
      dot_rows<kDim>(q + rows[i] * p.row_stride, k, p.row_stride, line, s);
      dot_rows<kDim>(dy + rows[i] * width, v, p.row_stride, line, dp);
      softmax(s, line, p.scale * kLog2e);
      keep_factors(p, line, u.head, i, keep);
      for (int x = 0; x < kPerLane; ++x) {
        delta += s[x] * keep[x] * dp[x];
      }
      delta = warp_sum(delta);
      for (int x = 0; x < kPerLane; ++x) {
        const int j = lane_id() + 32 * x;
        if (j >= keys) {
          continue;
        }
        prob[i * keys + j] = s[x] * keep[x] * share;
        ds[i * keys + j] = s[x] * (keep[x] * dp[x] - delta) * (p.scale * share);
      }
      __syncwarp();
      sum_rows(ds + i * keys, 1, k, p.row_stride, line, row);
      store_row(row, is_cls, dq + rows[i] * 3 * width, sums[0]);
      for (int b = 0; b < kBlocks; ++b) {
        bias_sums[0][b] += row[b];
      }
    }
    for (int j = 0; j < keys; ++j) {
      const bool is_cls = j == axis.length;
      float* to = dq + rows[j] * 3 * width;
      float row[kBlocks];
      sum_rows(ds + j, keys, q, p.row_stride, line, row);
      store_row(row, is_cls, to + width, sums[1]);
      sum_rows(prob + j, keys, dy, width, line, row);
      store_row(row, is_cls, to + 2 * width, sums[2]);
      for (int b = 0; b < kBlocks; ++b) {
        bias_sums[1][b] += row[b];
      }
    }
  }
  if (p.has_cls) {
    for (int i = 0; i < 3 * kBlocks; ++i) {
      p.cls_sums[int64_t{unit} * 3 * kDim + lane_id() + 32 * i] = sums[i / kBlocks][i % kBlocks];
    }
  }
  if (p.bias_sums != nullptr) {
    for (int i = 0; i < 2 * kBlocks; ++i) {
      p.bias_sums[int64_t{unit} * 2 * kDim + lane_id() + 32 * i] =
          bias_sums[i / kBlocks][i % kBlocks];
    }
  }
}

} // namespace

int64_t axial_attention_run_fwd_fp32(const AxialCall& call, const Stream* stream) {
  return dispatch_head_dim(call, [&](auto blocks) {
    return run_units<float>(axial_attention_fwd_fp32_kernel<blocks>, call, tile_octets(call),
                            2 * kMaxKeys * sizeof(float), stream,
                            static_cast<const float*>(call.qkv.data),
                            static_cast<float*>(call.result()));
  });
}

int64_t axial_attention_run_bwd_fp32(const AxialCall& call, const Stream* stream) {
  const int scores = 2 * score_elements(longest_line(call));
  const size_t shared = static_cast<size_t>(scores + kMaxKeys) * sizeof(float);
  return dispatch_head_dim(call, [&](auto blocks) {
    return run_units<float>(axial_attention_bwd_fp32_kernel<blocks>, call, tile_octets(call),
                            shared, stream, static_cast<const float*>(call.dout.data),
                            static_cast<const float*>(call.qkv.data),
                            static_cast<float*>(call.result()));
  });
}

} // namespace vimpac
