// Warp-level matrix products and asynchronous copies (sm_80 and later), one thin wrapper each.
//
// Fragments of mma_m16n8k16, for lane = 4 g + t:
//   a[i]  rows g + 8 (i % 2), columns 2 t + 8 (i / 2) + {0, 1}     16 x 16, row-major
//   b[i]  rows 2 t + 8 i + {0, 1}, column g                        16 x 8
//   d[i]  row g + 8 (i / 2), column 2 t + i % 2                    16 x 8, fp32
// The emulated counterparts are in tests/emulator/matrix.hpp.
#pragma once
#include "cuda/platform.cuh"

#include <cstring>

#ifdef __CUDACC__
namespace vimpac {

// d = a b + c, 16-bit operands of type T, fp32 accumulation. All 32 lanes take part.
template <class T>
__device__ __forceinline__ void
mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]);

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4],
                                                            const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2],
                                                            const float (&c)[4]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                 "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4],
                                                     const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2],
                                                     const float (&c)[4]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                 "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Loads N = 1, 2 or 4 matrices of 8 x 8 16-bit elements from shared memory. Lane 8 i + r passes the
// 16-byte aligned address of row r of matrix i; lane 4 g + t receives row g, columns 2 t and 2 t +
// 1 of matrix i in out[i] (of its transpose with Transpose).
template <bool Transpose = false, int N>
__device__ __forceinline__ void ldmatrix(uint32_t (&out)[N], const void* row) {
  static_assert(N == 1 || N == 2 || N == 4);
  const auto p = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (N == 1 && Transpose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(p)
                 : "memory");
  } else if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(p)
                 : "memory");
  } else if constexpr (N == 2 && Transpose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(p)
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(p)
                 : "memory");
  } else if constexpr (Transpose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(p)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(p)
                 : "memory");
  }
}

// Transposes a matrix of 8 x 8 16-bit elements held by a warp: lane 4 g + t passes row g, columns 2
// t and 2 t + 1, and receives rows 2 t and 2 t + 1 of column g.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Starts a copy of Bytes = 4, 8 or 16 aligned bytes from global to shared memory; zeros when
// invalid (src is then not read). Part of the open group until cp_async_commit.
template <int Bytes>
__device__ __forceinline__ void cp_async(void* dst, const void* src, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  const auto p = static_cast<uint32_t>(__cvta_generic_to_shared(dst));
  const int filled = valid ? Bytes : 0;
  if constexpr (Bytes == 16) { // past L1: the line is used once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(p), "l"(src), "r"(filled)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(p), "l"(src), "n"(Bytes),
                 "r"(filled)
                 : "memory");
  }
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most Pending of this thread's groups are in flight. Other threads see the copied
// bytes only after a barrier that follows.
template <int Pending = 0>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

} // namespace vimpac
#endif

namespace vimpac {

// Two fp32 values rounded to T (to nearest even) in one register, `low` in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

} // namespace vimpac
