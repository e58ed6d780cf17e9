// Sums over lines for row 0, [CLS]: within a warp, over the warps of a clip and head, and the
// launches that all kernels of the op share.
#pragma once
#include <algorithm>
#include <type_traits>
#include <utility>

#include "axial_lines.cuh"
#include "vector.cuh"

namespace vimpac {
namespace {

constexpr int kWarps = 4;
constexpr float kLog2e = 1.4426950408889634f;

// The sums of a warp: (parts, 8, Dh) in shared memory, a row for each group of four lanes.
template <int kParts, int kDim>
__device__ __forceinline__ void clear_sums(float* sums) {
  for (int i = int(threadIdx.x % 32); i < kParts * 8 * kDim; i += 32)
    sums[i] = 0.0f;
  __syncwarp();
}

// Adds the eight rows up and writes (parts, Dh).
template <int kParts, int kDim>
__device__ __forceinline__ void write_sums(const float* sums, float* partial) {
  __syncwarp();
  for (int i = int(threadIdx.x % 32); i < kParts * kDim; i += 32) {
    const float* from = sums + i / kDim * 8 * kDim + i % kDim;
    float sum = 0.0f;
    for (int g = 0; g < 8; ++g)
      sum += from[g * kDim];
    partial[i] = sum;
  }
}

__host__ __device__ constexpr int tiles_of_16(int octets) {
  return (octets + 1) / 2;
}

// result row 0 of (B, S, parts, N, Dh) = the sum of the partials of a clip and head over the chunks
// in order, times a factor per axis. One block per clip and head, one thread per element.
template <class T>
__global__ void axial_attention_cls_kernel(AxialProblem p,
                                           const float* __restrict__ partials, // (units, parts, Dh)
                                           T* __restrict__ result,
                                           int parts,
                                           bool mean) {
  const int clip = int(blockIdx.x) / p.heads, head = int(blockIdx.x) % p.heads;
  const int a = head / p.group_heads, width = parts * p.head_dim;
  const float factor = mean ? 1.0f / float(p.axes[a].lines) : 1.0f;
  const float* from = partials + int64_t{first_unit(p, a, clip, head)} * width;
  for (int i = int(threadIdx.x); i < width; i += int(blockDim.x)) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < p.axes[a].chunks; ++chunk)
      sum += from[int64_t{chunk} * p.group_heads * width + i];
    const int part = i / p.head_dim;
    result[p.offset(clip, head, parts) + int64_t{part} * p.heads * p.head_dim + i % p.head_dim] =
        from_float<T>(sum * factor);
  }
}

// The second stage of the sums over lines: row 0 of the result.
template <class T>
void launch_cls(const AxialProblem& p, const AxialArguments& call, int parts, Stream stream) {
  if (p.has_cls)
    launch(axial_attention_cls_kernel<T>, dim3(unsigned(p.clips) * unsigned(p.heads)), dim3(128), 0,
           stream, p, static_cast<const float*>(call.workspace), static_cast<T*>(call.result),
           parts, parts == 1);
}

// One warp per unit. `shared` bytes of each warp decide how many share a block.
template <class... Params, class... Args>
void launch_units(void (*kernel)(Params...),
                  const AxialProblem& p,
                  size_t shared,
                  Stream stream,
                  Args&&... args) {
  constexpr size_t kMostShared = 99 * 1024; // of a block on sm_86, sm_89 and sm_120
  const unsigned warps = unsigned(std::min<size_t>(kWarps, kMostShared / (shared + 64)));
  launch(kernel, dim3((p.units + warps - 1) / warps), dim3(32 * warps), warps * shared, stream,
         std::forward<Args>(args)...);
}

// Octets of a tile: that of the longest lines.
inline int tile_octets(const AxialArguments& call) {
  int longest = 0;
  for (const int id : call.axes)
    longest = std::max(longest, call.grid[size_t(id)] + call.has_cls);
  for (const int octets : {3, 5, 9})
    if (longest <= 8 * octets)
      return octets;
  throw std::invalid_argument("axial_attention: lines of at most 72 rows, [CLS] included");
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls f(blocks of 32 of a head).
template <class F>
void dispatch_head_dim(const AxialArguments& call, F f) {
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
void dispatch_tile(const AxialArguments& call, F f) {
  dispatch_head_dim(call, [&](auto blocks) {
    const auto octets = [&](auto type) {
      const int n = tile_octets(call);
      return n == 3   ? f(type, Constant<3>{}, blocks)
             : n == 5 ? f(type, Constant<5>{}, blocks)
                      : f(type, Constant<9>{}, blocks);
    };
    call.dtype == ElementType::kBFloat16 ? octets(__nv_bfloat16{}) : octets(__half{});
  });
}

} // namespace

// In axial_attention_fp32.cu.
void axial_attention_fwd_fp32(const AxialArguments& call, Stream stream);
void axial_attention_bwd_fp32(const AxialArguments& call, Stream stream);

} // namespace vimpac
