// Loads and stores between fp32 registers and fp32, bf16 or fp16 memory, at any alignment.
//   load(p), store(p, x)            kWidth elements of float, Bf16 or Half; load: bytes, too
//   load_n(p, n), store_n(p, x, n)  the first n only, 0 <= n <= kWidth; other lanes read as 0
//   rounded(x, T{})                 x as it comes back from memory of T
//   store_rounded_n(p, x, n)        the same as store_n, faster: x has been rounded
//   for_each_vector(size, f)        f(i, n) for the vectors of a row: n = kWidth but at its end
// Narrowing rounds to nearest even; NaN stays NaN.
#pragma once

#include "cpu/vec.hpp"

namespace vimpac {
namespace {

// 16-bit floats as they lie in memory.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
using VecBits = uint16_t __attribute__((vector_size(2 * kWidth)));

VIMPAC_INLINE VecF widen(VecBits bits, Bf16) {
  return as_float(__builtin_convertvector(bits, VecU) << 16);
}

VIMPAC_INLINE VecU narrow_lanes(VecF x, Bf16) {
  const VecU u = as_uint(x);
  const VecU rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  return x != x ? (u >> 16) | 0x40u : rounded;
}

VIMPAC_INLINE VecBits narrow(VecF x, Bf16) {
  return __builtin_convertvector(narrow_lanes(x, Bf16{}), VecBits);
}

VIMPAC_INLINE VecF rounded(VecF x, Bf16) {
  return as_float(narrow_lanes(x, Bf16{}) << 16);
}

VIMPAC_INLINE VecBits narrow_rounded(VecF x, Bf16) {
  return __builtin_convertvector(as_uint(x) >> 16, VecBits);
}

VIMPAC_INLINE VecF widen(VecBits bits, Half) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(bits));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(bits));
#else
  // Multiplying by 2^112 re-biases the exponent and normalises subnormals, exactly.
  const VecU u = __builtin_convertvector(bits, VecU);
  const VecU magnitude = as_uint(as_float((u & 0x7FFFu) << 13) * 0x1p112f);
  const VecU special = (u & 0x7C00u) == 0x7C00u ? broadcast(0x7F800000u) : VecU{};
  return as_float(magnitude | special | ((u & 0x8000u) << 16));
#endif
}

VIMPAC_INLINE VecBits narrow(VecF x, Half) {
#if defined(__AVX512F__)
  return (VecBits)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (VecBits)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  // Normal numbers round in integer arithmetic; subnormals by adding 0.5, whose ulp is theirs.
  const VecU u = as_uint(x), sign = (u >> 16) & 0x8000u, a = u & 0x7FFFFFFFu;
  const VecU normal = (a + 0xC8000FFFu + ((a >> 13) & 1u)) >> 13;
  const VecU tiny = as_uint(as_float(a) + 0.5f) - 0x3F000000u;
  VecU bits = a < 0x38800000u ? tiny : normal;
  bits = a >= 0x477FF000u ? broadcast(0x7C00u) : bits;
  bits = a > 0x7F800000u ? broadcast(0x7E00u) : bits;
  return __builtin_convertvector(bits | sign, VecBits);
#endif
}

VIMPAC_INLINE VecF rounded(VecF x, Half) {
  return widen(narrow(x, Half{}), Half{});
}

VIMPAC_INLINE VecBits narrow_rounded(VecF x, Half) {
  return narrow(x, Half{});
}

VIMPAC_INLINE VecF rounded(VecF x, float) {
  return x;
}

VIMPAC_INLINE VecF load(const float* p) {
  VecF x;
  memcpy(&x, p, sizeof x);
  return x;
}

// 0 to 255; GCC takes a conversion of bytes by the language apart.
VIMPAC_INLINE VecF load(const uint8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  VecF x;
  for (int i = 0; i < kWidth; ++i) {
    x[i] = p[i];
  }
  return x;
#endif
}

template <class T>
VIMPAC_INLINE VecF load(const T* p) {
  VecBits bits;
  memcpy(&bits, p, sizeof bits);
  return widen(bits, T{});
}

VIMPAC_INLINE void store(float* p, VecF x) {
  memcpy(p, &x, sizeof x);
}

template <class T>
VIMPAC_INLINE void store(T* p, VecF x) {
  const VecBits bits = narrow(x, T{});
  memcpy(p, &bits, sizeof bits);
}

VIMPAC_INLINE void store_rounded(float* p, VecF x) {
  store(p, x);
}

template <class T>
VIMPAC_INLINE void store_rounded(T* p, VecF x) {
  const VecBits bits = narrow_rounded(x, T{});
  memcpy(p, &bits, sizeof bits);
}

template <class T>
VIMPAC_INLINE VecF load_n(const T* p, int n) {
  if (n == kWidth) {
    return load(p);
  }
  T lanes[kWidth] = {};
  memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

template <class T>
VIMPAC_INLINE void store_n(T* p, VecF x, int n) {
  if (n == kWidth) {
    return store(p, x);
  }
  T lanes[kWidth];
  store(lanes, x);
  memcpy(p, lanes, n * sizeof(T));
}

template <class T>
VIMPAC_INLINE void store_rounded_n(T* p, VecF x, int n) {
  n == kWidth ? store_rounded(p, x) : store_n(p, x, n);
}

template <class F>
VIMPAC_INLINE void for_each_vector(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    f(i, kWidth);
  }
  if (i < size) {
    f(i, static_cast<int>(size - i));
  }
}

} // namespace
} // namespace vimpac
