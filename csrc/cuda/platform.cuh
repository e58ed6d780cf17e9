// Included by every kernel: the CUDA toolkit under nvcc, the CPU emulator of the tests under g++.
// Kernel sources are plain CUDA C++; the differences between the two are here and in mma.cuh.
#pragma once
#ifdef __CUDACC__

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace vimpac {

// Carves typed arrays out of dynamic shared memory, in the order in which they are taken.
class SharedArena {
  size_t used_ = 0;

public:
  template <class T>
  __device__ __forceinline__ T* take(size_t count, size_t align = 16) {
    extern __shared__ __align__(1024) unsigned char raw[];
    used_ = (used_ + align - 1) / align * align;
    T* p = reinterpret_cast<T*>(raw + used_);
    used_ += count * sizeof(T);
    return p;
  }
};

// 1 / x and 2^x in one instruction each, to 1 and 2 ulp. Subnormal numbers count as 0: scaling them
// would take three more instructions.
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Fetches the cache line at p, in global memory, as far as the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
}

// Returns x, hidden from the optimiser: values that follow from it are computed where they are
// used, and hold no registers throughout a loop.
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

} // namespace vimpac

#else

#include "emulator.hpp"

namespace vimpac {

using emulator::SharedArena;

inline float approximate_reciprocal(float x) {
  return emulator::approximate(1.0f / emulator::flush(x), 1);
}
inline float approximate_exp2(float x) {
  return emulator::approximate(std::exp2(x), 2);
}

inline void prefetch_l2(const void* /*p*/) {}

inline uint32_t opaque(uint32_t x) {
  return x;
}

} // namespace vimpac

#endif

#include "cuda/launch.cuh"
