// Parts of the kernel of mask_tokens: division, groups of consecutive tokens, and sums and
// selections by a whole block.
#pragma once
#include "cuda/platform.cuh"
#include "mask_tokens/cuda_tuning.cuh"

namespace vimpac {
namespace {

constexpr int kThreads = kMaskThreads, kWarps = kThreads / 32;
constexpr int kGroup = 4; // consecutive tokens of one thread: one Philox call of iid
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kThreads % 32 == 0 && kThreads <= 1024, "a block is whole warps");

// Division of n < 2^31 by a constant of the launch, by multiply-high.
class Divider {
  uint32_t multiplier_, shift_ = 0;

public:
  explicit Divider(uint32_t divisor) {
    while (shift_ < 32 && (uint64_t{1} << shift_) < divisor) {
      ++shift_;
    }
    multiplier_ = static_cast<uint32_t>(
                      ((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor)) / divisor) +
                  1;
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return (__umulhi(n, multiplier_) + n) >> shift_;
  }
};

template <class T>
struct alignas(kGroup * sizeof(T)) Group {
  T x[kGroup];
};

// Element i of p[0, 4), or of its first `count` elements where the group is cut or not aligned.
template <class T>
__device__ __forceinline__ Group<T> load_group(const T* p, uint32_t count, bool vectors) {
  Group<T> group{};
  if (vectors) {
    return *reinterpret_cast<const Group<T>*>(p);
  }
#pragma unroll
  for (uint32_t i = 0; i < kGroup; ++i) {
    if (i < count) {
      group.x[i] = p[i];
    }
  }
  return group;
}

template <class T>
__device__ __forceinline__ void
store_group(T* p, const Group<T>& group, uint32_t count, bool vectors) {
  if (vectors) {
    *reinterpret_cast<Group<T>*>(p) = group;
    return;
  }
#pragma unroll
  for (uint32_t i = 0; i < kGroup; ++i) {
    if (i < count) {
      p[i] = group.x[i];
    }
  }
}

// Sum of `value` over the threads before this one, and over the block. scratch: (kWarps,).
__device__ __forceinline__ uint32_t exclusive_sum(uint32_t value,
                                                  uint32_t* scratch,
                                                  uint32_t& total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t inclusive = value;
#pragma unroll
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, inclusive, delta);
    inclusive += lane >= delta ? before : 0;
  }
  if (lane == 31) {
    scratch[warp] = inclusive;
  }
  __syncthreads();
  uint32_t sum = inclusive - value;
  total = 0;
#pragma unroll
  for (unsigned w = 0; w < kWarps; ++w) {
    sum += w < warp ? scratch[w] : 0;
    total += scratch[w];
  }
  __syncthreads(); // the next call overwrites scratch
  return sum;
}

// The `wanted`-th smallest key << index_bits | index, from the highest bit down. All threads call.
__device__ uint64_t select_smallest(const uint32_t* keys, uint32_t count, uint32_t wanted) {
  const int index_bits = 32 - __clz(static_cast<int>(count));
  uint64_t smallest = 0;
  for (int bit = 31 + index_bits; bit >= 0; --bit) {
    const uint64_t candidate = smallest | uint64_t{1} << bit;
    uint32_t below = 0;
    for (uint32_t first = 0; first < count; first += kThreads) {
      const uint32_t i = first + threadIdx.x;
      const uint64_t key = i < count ? uint64_t{keys[i]} << index_bits | i : ~uint64_t{0};
      below += static_cast<uint32_t>(__syncthreads_count(key < candidate));
    }
    smallest = below < wanted ? candidate : smallest;
  }
  return smallest;
}

} // namespace
} // namespace vimpac
