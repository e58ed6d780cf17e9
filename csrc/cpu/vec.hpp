// SIMD vectors of kWidth 32-bit lanes for the CPU kernels: 16 (AVX-512, with products of bf16 or
// without), 8 (AVX2), 8 (portable).
//
// VecF, VecI and VecU are GCC/Clang vector types, so + - * / & | ^ ~ << >> and comparisons work
// lane by lane with C's meaning, and a scalar operand is broadcast. A comparison yields a VecI of
// 0 / -1, and `mask ? a : b` selects (both sides are evaluated). v[i] reads one lane (slow).
// This header adds what the language lacks:
//   broadcast(x), iota()               all lanes x; lanes 0, 1, 2, ...
//   as_float(v), as_uint(v)            the same bits as another type
//   fmadd(a, b, c)                     a * b + c, one rounding where the instruction set has FMA
//   max(a, b), min(a, b)               b where either is NaN
//   reduce_add(v), reduce_max(v)       over the lanes, always in the same order
//   exp(x)                             2 ulp on [-87.3, 88.3]; 0 below (-inf too), clamped above;
//                                      NaN of NaN
// Loads and stores (fp32, bf16, fp16) are in vec_io.hpp.
//
// Everything here has internal linkage: an AVX-512 body can never replace a portable one at link
// time. For the same reason a CPU kernel uses no std:: templates and no static initialisers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define VIMPAC_INLINE inline __attribute__((always_inline))

namespace vimpac {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#else
constexpr int kWidth = 8;
#endif

using VecF = float __attribute__((vector_size(4 * kWidth)));
using VecI = int32_t __attribute__((vector_size(4 * kWidth)));
using VecU = uint32_t __attribute__((vector_size(4 * kWidth)));

VIMPAC_INLINE VecF broadcast(float x) {
  return x - VecF{};
}
VIMPAC_INLINE VecI broadcast(int32_t x) {
  return x + VecI{};
}
VIMPAC_INLINE VecU broadcast(uint32_t x) {
  return x + VecU{};
}

VIMPAC_INLINE VecI iota() {
  VecI lanes{};
  for (int i = 0; i < kWidth; ++i) {
    lanes[i] = i;
  }
  return lanes;
}

VIMPAC_INLINE VecF as_float(VecU bits) {
  return reinterpret_cast<VecF>(bits);
}
VIMPAC_INLINE VecU as_uint(VecF x) {
  return reinterpret_cast<VecU>(x);
}
VIMPAC_INLINE VecU as_uint(VecI x) {
  return reinterpret_cast<VecU>(x);
}

VIMPAC_INLINE VecF fmadd(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

VIMPAC_INLINE VecF max(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

VIMPAC_INLINE VecF min(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// Reduces in halves: lane i with lane i + n/2, then with i + n/4, ...
VIMPAC_INLINE float reduce_add(VecF x) {
  float lanes[kWidth];
  memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 4
  for (int n = kWidth / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      lanes[i] += lanes[i + n];
    }
  }
  return lanes[0];
}

VIMPAC_INLINE float reduce_max(VecF x) {
  float lanes[kWidth];
  memcpy(lanes, &x, sizeof x);
#pragma GCC unroll 4
  for (int n = kWidth / 2; n > 0; n /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
    }
  }
  return lanes[0];
}

// exp(x) = 2^n * exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2, exp(r) by the polynomial
// 1 + r + r^2 * (...) of degree 6 whose largest relative error is least, 3e-9. ln 2 is split in two
// so that r is exact.
VIMPAC_INLINE VecF exp(VecF x) {
  constexpr float kLowest = -87.3f, kHighest = 88.3f;
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f; // 1.5 * 2^23: adding it leaves an integer in the mantissa
  const VecF clamped = min(broadcast(kHighest), x); // NaN stays
  const VecF shifted = fmadd(clamped, broadcast(kLog2E), broadcast(kRound));
  const VecF n = shifted - kRound;
  VecF r = fmadd(n, broadcast(-kLn2High), clamped);
  r = fmadd(n, broadcast(-kLn2Low), r);
  VecF p = broadcast(1.381454e-3f);
  p = fmadd(p, r, broadcast(8.368745e-3f));
  p = fmadd(p, r, broadcast(4.166839e-2f));
  p = fmadd(p, r, broadcast(1.6666521e-1f));
  p = fmadd(p, r, broadcast(4.9999994e-1f));
  p = fmadd(p, r, broadcast(1.0f));
  p = fmadd(p, r, broadcast(1.0f));
  const VecU scaled = as_uint(p) + (as_uint(shifted) << 23);
  return as_float(x < kLowest ? VecU{} : scaled); // NaN is not less
}

} // namespace
} // namespace vimpac
