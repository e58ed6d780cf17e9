// The CUDA device functions that kernels call, under CUDA's own names.
#pragma once
#include "shared_arena.hpp"
#include "sync.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace emulator {

template <class T>
struct Exchange {
  T in;
  int source;
  T out;
};

template <class T>
T shuffle(const char* operation, unsigned mask, T value, int source, const Location& location) {
  Exchange<T> mine{value, source, {}};
  const auto combine = [&](Exchange<T>** lanes) {
    for (unsigned i = 0; i < kWarp; ++i) {
      if (lanes[i] == nullptr) {
        continue;
      }
      if (lanes[lanes[i]->source] == nullptr) {
        fail("the source lane is outside the mask", operation, location);
      }
      lanes[i]->out = lanes[lanes[i]->source]->in;
    }
  };
  collective(operation, mask, mine, combine, location);
  return mine.out;
}

template <class T, class Reduce>
T reduce(const char* operation, unsigned mask, T value, Reduce f, const Location& location) {
  Exchange<T> mine{value, 0, {}};
  const auto combine = [&](Exchange<T>** lanes) {
    const unsigned first = static_cast<unsigned>(std::countr_zero(mask));
    T total = lanes[first]->in;
    for (unsigned i = first + 1; i < kWarp; ++i) {
      if (lanes[i] != nullptr) {
        total = f(total, lanes[i]->in);
      }
    }
    for (unsigned i = first; i < kWarp; ++i) {
      if (lanes[i] != nullptr) {
        lanes[i]->out = total;
      }
    }
  };
  collective(operation, mask, mine, combine, location);
  return mine.out;
}

inline int lane() {
  return static_cast<int>(current->lane);
}
inline int segment(int width) {
  return lane() & ~(width - 1);
}

template <class T, class F>
T atomic_update(T* p, F f) {
  std::atomic_ref<T> cell(*p);
  T old = cell.load(std::memory_order_relaxed);
  while (!cell.compare_exchange_weak(old, f(old), std::memory_order_relaxed)) {
  }
  return old;
}

// A subnormal number as instructions with .ftz take and return it.
inline float flush(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// What an approximate instruction with .ftz may return for the exact result: as many units in the
// last place off as its documentation allows, up or down by a hash of the bits, so that it repeats.
// 1, which 2^0 is on every GPU, stays.
inline float approximate(float exact, unsigned ulps) {
  if (!std::isnormal(exact) || exact == 1.0f) {
    return flush(exact);
  }
  const unsigned bits = std::bit_cast<unsigned>(exact);
  return flush(std::bit_cast<float>(bits * 2654435761u >> 31 != 0 ? bits + ulps : bits - ulps));
}

} // namespace emulator

#define EMULATOR_HERE const ::emulator::Location& here = ::emulator::Location::current()

// --- barriers, shuffles, votes ---

inline void __syncthreads(EMULATOR_HERE) {
  emulator::barrier("__syncthreads", 0, here);
}
inline int __syncthreads_or(int p, EMULATOR_HERE) {
  return emulator::barrier("__syncthreads_or", p != 0, here) != 0;
}
inline int __syncthreads_and(int p, EMULATOR_HERE) {
  return emulator::barrier("__syncthreads_and", p == 0, here) == 0;
}
inline int __syncthreads_count(int p, EMULATOR_HERE) {
  return emulator::barrier("__syncthreads_count", p != 0, here);
}
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_HERE) {
  emulator::Thread& t = *emulator::current;
  unsigned& phase = t.block->phase[t.warp];
  [[maybe_unused]] char* tag = &t.block->tags[2 * t.warp + phase % 2];
  EMULATOR_TSAN(__tsan_release(tag);)
  int none = 0;
  emulator::collective("__syncwarp", mask, none, [&](int**) { ++phase; }, here);
  EMULATOR_TSAN(__tsan_acquire(tag);)
}

template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EMULATOR_HERE) {
  const int from = emulator::segment(width) + (lane & (width - 1));
  return emulator::shuffle("__shfl_sync", mask, v, from, here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMULATOR_HERE) {
  const int lane = emulator::lane(), from = lane ^ bits;
  const bool inside = from < emulator::segment(width) + width;
  return emulator::shuffle("__shfl_xor_sync", mask, v, inside ? from : lane, here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATOR_HERE) {
  const int lane = emulator::lane(), from = lane - static_cast<int>(delta);
  const bool inside = from >= emulator::segment(width);
  return emulator::shuffle("__shfl_up_sync", mask, v, inside ? from : lane, here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATOR_HERE) {
  const int lane = emulator::lane(), from = lane + static_cast<int>(delta);
  const bool inside = from < emulator::segment(width) + width;
  return emulator::shuffle("__shfl_down_sync", mask, v, inside ? from : lane, here);
}

inline unsigned __ballot_sync(unsigned mask, int p, EMULATOR_HERE) {
  const unsigned bit = p != 0 ? 1u << emulator::lane() : 0u;
  return emulator::reduce("__ballot_sync", mask, bit, std::bit_or<>(), here);
}
inline int __any_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::reduce("__any_sync", mask, int{p != 0}, std::bit_or<>(), here);
}
inline int __all_sync(unsigned mask, int p, EMULATOR_HERE) {
  return emulator::reduce("__all_sync", mask, int{p != 0}, std::bit_and<>(), here);
}
template <class T> // int or unsigned
T __reduce_add_sync(unsigned mask, T v, EMULATOR_HERE) {
  return emulator::reduce("__reduce_add_sync", mask, v, std::plus<>(), here);
}
template <class T>
T __reduce_max_sync(unsigned mask, T v, EMULATOR_HERE) {
  const auto larger = [](T a, T b) { return std::max(a, b); };
  return emulator::reduce("__reduce_max_sync", mask, v, larger, here);
}
template <class T>
T __reduce_min_sync(unsigned mask, T v, EMULATOR_HERE) {
  const auto smaller = [](T a, T b) { return std::min(a, b); };
  return emulator::reduce("__reduce_min_sync", mask, v, smaller, here);
}

// --- memory ---

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return emulator::atomic_update(p, [=](T x) { return static_cast<T>(x + v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return emulator::atomic_update(p, [=](T x) { return std::max(x, v); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return emulator::atomic_update(p, [=](T x) { return std::min(x, v); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  return emulator::atomic_update(p, [=](T x) { return x | v; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return emulator::atomic_update(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emulator::atomic_update(p, [=](T x) { return x == expected ? v : x; });
}

// The race detector knows no fences: pass data between blocks inside the atomic word itself.
inline void __threadfence_block() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence() {
  __threadfence_block();
}
inline void __nanosleep(unsigned /*ns*/, EMULATOR_HERE) {
  emulator::sleep(here);
}

// Cache hints are no part of the result, but these instructions know global memory only: given a
// shared address, a GPU would go astray.
namespace emulator {
template <class T>
T* expect_global(const char* operation, T* p, const Location& location) {
  if (in_shared(p, sizeof(T))) {
    fail("the address is in shared memory", operation, location);
  }
  return p;
}
} // namespace emulator

template <class T>
T __ldg(const T* p, EMULATOR_HERE) {
  return *emulator::expect_global("__ldg", p, here);
}
template <class T>
T __ldcs(const T* p, EMULATOR_HERE) {
  return *emulator::expect_global("__ldcs", p, here);
}
template <class T>
T __ldcg(const T* p, EMULATOR_HERE) {
  return *emulator::expect_global("__ldcg", p, here);
}
template <class T>
void __stwb(T* p, T v, EMULATOR_HERE) {
  *emulator::expect_global("__stwb", p, here) = v;
}
template <class T>
void __stcs(T* p, T v, EMULATOR_HERE) {
  *emulator::expect_global("__stcs", p, here) = v;
}
template <class T>
void __stcg(T* p, T v, EMULATOR_HERE) {
  *emulator::expect_global("__stcg", p, here) = v;
}

// --- arithmetic ---

using std::max, std::min;
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}
inline float __int2float_rn(int x) {
  return static_cast<float>(x);
}
inline float __uint2float_rn(unsigned x) {
  return static_cast<float>(x);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return 1.0f / std::sqrt(x);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __log2f(float x) {
  return std::log2(x);
}
inline float __tanhf(float x) {
  return std::tanh(x);
}
inline float __saturatef(float x) {
  return std::clamp(x, 0.0f, 1.0f);
}
