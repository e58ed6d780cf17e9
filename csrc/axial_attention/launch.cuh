// The sums over lines, of [CLS] and of the bias's gradient: those of a unit, those of all units,
// and the launches that all kernels of the op share.
#pragma once
#include "axial_attention/line_fragments.cuh"
#include "axial_attention/lines.cuh"
#include "cuda/vector.cuh"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace vimpac {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

// Sums of a unit over rows, by part and block: a lane's are those of element sum_element().
template <int kParts, int kBlocks>
class UnitSums {
  float sum_[kParts][kBlocks] = {};

public:
  __device__ __forceinline__ void add(int part, int block, float x) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) { // `block` may be a variable, a register's number may not
      sum_[part][b] += b == block ? x : 0.0f;
    }
  }
  static constexpr int kSize = kParts * 32 * kBlocks; // of a unit
  // To the unit's (parts, Dh) of scratch memory.
  __device__ __forceinline__ void write(float* sums, unsigned unit) const {
    float* to = sums + int64_t{unit} * kSize + sum_element();
#pragma unroll
    for (int i = 0; i < kParts * kBlocks; ++i) {
      to[32 * i] = sum_[i / kBlocks][i % kBlocks];
    }
  }
  // The same where the warps of a block share the unit: each adds to all of it. `shared` has room
  // for kSize of each warp and is free at the first barrier.
  __device__ __forceinline__ void write_team(float* sums, unsigned unit, float* shared) const {
    __syncthreads();
    write(shared, threadIdx.x / 32);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSize; i += static_cast<int>(blockDim.x)) {
      float sum = 0.0f;
      for (int warp = 0; warp < static_cast<int>(blockDim.x / 32); ++warp) {
        sum += shared[warp * kSize + i];
      }
      sums[int64_t{unit} * kSize + i] = sum;
    }
  }
};

__host__ __device__ constexpr int tiles_of_16(int octets) {
  return (octets + 1) / 2;
}

constexpr int kSumColumns = 8, kSumRows = 32; // of a block that sums the bias's gradient

// result row 0 of (B, S, parts, N, Dh) = the sums of a clip and head over the chunks in order,
// times a factor per axis.
template <class T>
__device__ __forceinline__ void add_cls(const AxialProblem& p, int clip, int head, T* result) {
  const int a = head / p.group_heads, width = p.parts * p.head_dim;
  const float factor =
      p.parts == 1 ? 1.0f / static_cast<float>(p.axes[a].lines) : 1.0f; // out is their mean
  const float* from = p.cls_sums + int64_t{first_unit(p, a, clip, head)} * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < p.axes[a].chunks; ++chunk) {
      sum += from[int64_t{chunk} * p.group_heads * width + i];
    }
    const int part = i / p.head_dim;
    result[p.offset(clip, head, p.parts) + int64_t{part} * p.heads * p.head_dim + i % p.head_dim] =
        from_float<T>(sum * factor);
  }
}

// dbias (3, N, Dh), kSumColumns of the (N, 2, Dh) sums of dq and dv: each of kSumRows rows of
// threads adds every kSumRows-th unit, then they are added. The bias of k moves all scores of a
// query alike, which no softmax notices: its gradient is zero.
__device__ __forceinline__ void add_bias(const AxialProblem& p, int group, float* dbias) {
  SharedArena arena;
  float* shared = arena.take<float>(kSumColumns * kSumRows);
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns, width = 2 * p.head_dim;
  const int head = group * kSumColumns / width, column = group * kSumColumns % width + lane;
  const int a = head / p.group_heads, units = p.clips * p.axes[a].chunks;
  const float* from = p.bias_sums + int64_t{first_unit(p, a, 0, head)} * width + column;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) / kSumColumns; i < units; i += kSumRows) {
    sum += from[int64_t{i} * p.group_heads * width];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kSumColumns) {
    return;
  }
  sum = 0.0f;
  for (int i = 0; i < kSumRows; ++i) {
    sum += shared[i * kSumColumns + lane];
  }
  const int64_t part = int64_t{p.heads} * p.head_dim; // elements of a part of dbias
  float* to = dbias + int64_t{head} * p.head_dim + column % p.head_dim;
  if (column < p.head_dim) {
    to[0] = sum;
    to[part] = 0.0f;
  } else {
    to[2 * part] = sum;
  }
}

// A block per clip and head with [CLS], then one per kSumColumns columns of dbias.
template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    axial_attention_sums_kernel(AxialProblem p,
                                T* __restrict__ result,   // (B, S, parts, N, Dh)
                                float* __restrict__ dbias // (3, N, Dh) or null
    ) {
  const int block = static_cast<int>(blockIdx.x),
            rows = p.cls_sums == nullptr ? 0 : p.clips * p.heads;
  if (block < rows) {
    add_cls(p, block / p.heads, block % p.heads, result);
  } else {
    add_bias(p, block - rows, dbias);
  }
}

// Plans kUnitWarps warps per unit and, given a stream, launches the kernel and the second stage of
// the sums. A team is a block. Of warps that have a unit each, `shared` bytes of a unit decide how
// many share a block: as many as let most be resident. Returns the elements of scratch memory that
// the call needs.
template <class T, unsigned kUnitWarps = 1, class... Params, class... Args>
int64_t run_units(void (*kernel)(AxialProblem, Params...),
                  const AxialCall& call,
                  int octets,
                  size_t shared,
                  const Stream* stream,
                  Args... args) {
  constexpr size_t kMostShared = 99 * 1024; // of a block on sm_86, sm_89 and sm_120
  unsigned units = 1, resident = 0;         // of a block; of the device
  for (unsigned n = kUnitWarps > 1 ? 1 : kAxialWarps; n > 0; --n) {
    if (n * (shared + 64) > kMostShared) {
      continue;
    }
    const unsigned blocks = resident_blocks(reinterpret_cast<const void*>(kernel),
                                            static_cast<int>(32 * n * kUnitWarps), n * shared);
    if (n * blocks > resident) {
      units = n;
      resident = n * blocks;
    }
  }
  const AxialProblem p = plan_axes(call, 8 * octets, std::max(resident, 1u));
  if (stream != nullptr) {
    launch(kernel, dim3((p.units + units - 1) / units), dim3(32 * units * kUnitWarps),
           units * shared, *stream, p, args...);
    unsigned blocks = 0;
    if (p.cls_sums != nullptr) {
      blocks += static_cast<unsigned>(p.clips) * static_cast<unsigned>(p.heads);
    }
    if (p.bias_sums != nullptr) {
      blocks +=
          static_cast<unsigned>(p.heads) * 2 * static_cast<unsigned>(p.head_dim) / kSumColumns;
    }
    if (blocks > 0) {
      launch(axial_attention_sums_kernel<T>, dim3(blocks), dim3(kSumColumns * kSumRows),
             kSumColumns * kSumRows * sizeof(float), *stream, p, static_cast<T*>(call.result()),
             call.dbias);
    }
  }
  return workspace_elements(p, call);
}

// Rows of the longest lines.
inline int longest_line(const AxialCall& call) {
  int longest = 0;
  for (int a = 0; a < call.num_axes; ++a) {
    longest = std::max(longest, static_cast<int>(call.grid[call.axes[a]]) + call.has_cls);
  }
  return longest;
}

// Octets of a tile: that of the longest lines.
inline int tile_octets(const AxialCall& call) {
  for (const int octets : {3, 5, 9}) {
    if (longest_line(call) <= 8 * octets) {
      return octets;
    }
  }
  throw std::invalid_argument("axial_attention: lines of at most 72 rows, [CLS] included");
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls f(blocks of 32 of a head).
template <class F>
auto dispatch_head_dim(const AxialCall& call, F f) {
  switch (call.head_dim) {
  case 32:
    return f(Constant<1>{});
  case 64:
    return f(Constant<2>{});
  case 128:
    return f(Constant<4>{});
  }
  throw std::invalid_argument("axial_attention: head dims are 32, 64 and 128");
}

// Calls f(T{}, octets of a tile, blocks of 32 of a head).
template <class F>
auto dispatch_tile(const AxialCall& call, F f) {
  return dispatch_head_dim(call, [&](auto blocks) {
    const auto octets = [&](auto type) {
      const int n = tile_octets(call);
      return n == 3   ? f(type, Constant<3>{}, blocks)
             : n == 5 ? f(type, Constant<5>{}, blocks)
                      : f(type, Constant<9>{}, blocks);
    };
    return call.qkv.type == ElementType::kBfloat16 ? octets(__nv_bfloat16{}) : octets(__half{});
  });
}

} // namespace

// Without a stream these plan only; all return the elements of scratch memory.
int64_t axial_attention_run_fwd(const AxialCall& call, const Stream* stream);
int64_t axial_attention_run_bwd(const AxialCall& call, const Stream* stream);
int64_t axial_attention_run_fwd_fp32(const AxialCall& call, const Stream* stream);
int64_t axial_attention_run_bwd_fp32(const AxialCall& call, const Stream* stream);

} // namespace vimpac
