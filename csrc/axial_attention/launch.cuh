// The launches that all kernels of axial_attention share: the units of a call, then their sums.
#pragma once
#include "axial_attention/line_fragments.cuh"
#include "axial_attention/lines.cuh"
#include "axial_attention/unit_sums.cuh"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace vimpac {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

__host__ __device__ constexpr int tiles_of_16(int octets) {
  return (octets + 1) / 2;
}

// Plans kUnitWarps warps per unit and, given a stream, launches the kernel and the second stage of
// the sums. A team of warps takes a whole block. Otherwise the shared memory of a unit, `shared`
// bytes, decides how many units share a block: the number that lets the most units be resident.
// Returns the elements of scratch memory that the call needs.
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

// Without a stream these functions only plan. All return the elements of scratch memory.
int64_t axial_attention_run_fwd(const AxialCall& call, const Stream* stream);
int64_t axial_attention_run_bwd(const AxialCall& call, const Stream* stream);
int64_t axial_attention_run_fwd_fp32(const AxialCall& call, const Stream* stream);
int64_t axial_attention_run_bwd_fp32(const AxialCall& call, const Stream* stream);

} // namespace vimpac
