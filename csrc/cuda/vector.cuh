// 16-byte loads and stores of short rows, and conversions that need no implicit operators.
#pragma once
#include "cuda/platform.cuh"

#include <cstring>

namespace vimpac {

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T)); // elements in one 16-byte access

// Loads kVector<T> elements; p is 16-byte aligned.
template <class T>
__device__ __forceinline__ void load16(T (&out)[kVector<T>], const T* p) {
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  memcpy(static_cast<void*>(out), &bits, sizeof(bits));
}

// The same through the read-only cache: for memory that no thread of the launch writes.
template <class T>
__device__ __forceinline__ void load16_readonly(T (&out)[kVector<T>], const T* p) {
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(p));
  memcpy(static_cast<void*>(out), &bits, sizeof(bits));
}

// Stores kVector<T> elements to global memory; p is 16-byte aligned. It is an intrinsic because
// nvcc splits a plain store into four if it can see how the words were computed. kPolicy: 0 write
// back, 1 past L1, 2 evict first.
template <int kPolicy = 1, class T>
__device__ __forceinline__ void store16(T* p, const T (&values)[kVector<T>]) {
  static_assert(kPolicy >= 0 && kPolicy <= 2);
  uint4 bits;
  memcpy(&bits, values, sizeof(bits));
  uint4* const to = reinterpret_cast<uint4*>(p);
  if constexpr (kPolicy == 0) {
    __stwb(to, bits);
  } else if constexpr (kPolicy == 1) {
    __stcg(to, bits);
  } else {
    __stcs(to, bits);
  }
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

constexpr int kChunk = 8; // neighbouring elements: one 16-byte access of a 16-bit type, two of fp32

// Chunks to and from fp32; p is 16-byte aligned.
template <class T>
__device__ __forceinline__ void load_chunk(float (&out)[kChunk], const T* p) {
#pragma unroll
  for (int part = 0; part < kChunk / kVector<T>; ++part) {
    T values[kVector<T>];
    load16(values, p + part * kVector<T>);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      out[part * kVector<T> + i] = to_float(values[i]);
    }
  }
}

// To global memory.
template <class T>
__device__ __forceinline__ void store_chunk(T* p, const float (&in)[kChunk]) {
#pragma unroll
  for (int part = 0; part < kChunk / kVector<T>; ++part) {
    T values[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      values[i] = from_float<T>(in[part * kVector<T> + i]);
    }
    store16(p + part * kVector<T>, values);
  }
}

// As store_chunk and load_chunk would leave it.
template <class T>
__device__ __forceinline__ void round_chunk(float (&x)[kChunk]) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    x[i] = to_float(from_float<T>(x[i]));
  }
}

// To shared memory, where store_chunk would write to a wrong address.
__device__ __forceinline__ void store_chunk_shared(float* p, const float (&in)[kChunk]) {
#pragma unroll
  for (int i = 0; i < kChunk; i += 4) {
    const uint4 bits = {__float_as_uint(in[i]), __float_as_uint(in[i + 1]),
                        __float_as_uint(in[i + 2]), __float_as_uint(in[i + 3])};
    *reinterpret_cast<uint4*>(p + i) = bits;
  }
}

} // namespace vimpac
