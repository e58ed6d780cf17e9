// Moves rows into lanes.
//   transpose_rows(rows, width, to, step)   makes kWidth rows the lanes of `width` vectors, which
//   are
//                                           `step` floats apart
//   sum_lanes(x)                            the sums over the lanes of four vectors
// Both transpose 4 x 4 matrices within quarters of a vector, without shuffles across quarters.
#pragma once

#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

using Vec4 = float __attribute__((vector_size(16)));

// The four vectors as a 4 x 4 matrix in every quarter (128 bits), transposed.
VIMPAC_INLINE void transpose_quarters(VecF (&x)[4]) {
#if defined(__AVX512F__)
  const __m512d a = reinterpret_cast<__m512d>(_mm512_unpacklo_ps(x[0], x[1]));
  const __m512d b = reinterpret_cast<__m512d>(_mm512_unpackhi_ps(x[0], x[1]));
  const __m512d c = reinterpret_cast<__m512d>(_mm512_unpacklo_ps(x[2], x[3]));
  const __m512d d = reinterpret_cast<__m512d>(_mm512_unpackhi_ps(x[2], x[3]));
  x[0] = reinterpret_cast<VecF>(_mm512_unpacklo_pd(a, c));
  x[1] = reinterpret_cast<VecF>(_mm512_unpackhi_pd(a, c));
  x[2] = reinterpret_cast<VecF>(_mm512_unpacklo_pd(b, d));
  x[3] = reinterpret_cast<VecF>(_mm512_unpackhi_pd(b, d));
#elif defined(__AVX2__)
  const __m256d a = reinterpret_cast<__m256d>(_mm256_unpacklo_ps(x[0], x[1]));
  const __m256d b = reinterpret_cast<__m256d>(_mm256_unpackhi_ps(x[0], x[1]));
  const __m256d c = reinterpret_cast<__m256d>(_mm256_unpacklo_ps(x[2], x[3]));
  const __m256d d = reinterpret_cast<__m256d>(_mm256_unpackhi_ps(x[2], x[3]));
  x[0] = reinterpret_cast<VecF>(_mm256_unpacklo_pd(a, c));
  x[1] = reinterpret_cast<VecF>(_mm256_unpackhi_pd(a, c));
  x[2] = reinterpret_cast<VecF>(_mm256_unpacklo_pd(b, d));
  x[3] = reinterpret_cast<VecF>(_mm256_unpackhi_pd(b, d));
#else
  for (int q = 0; q < kWidth; q += 4) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const float upper = x[j][q + i];
        x[j][q + i] = x[i][q + j];
        x[i][q + j] = upper;
      }
    }
  }
#endif
}

// Four floats from each of kWidth / 4 places `step` apart.
VIMPAC_INLINE VecF load_quarters(const float* p, int64_t step) {
#if defined(__AVX512F__)
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + step), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * step), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * step), 3);
#elif defined(__AVX2__)
  return _mm256_loadu2_m128(p + step, p);
#else
  VecF x;
  memcpy(&x, p, sizeof(Vec4));
  memcpy(reinterpret_cast<Vec4*>(&x) + 1, p + step, sizeof(Vec4));
  return x;
#endif
}

// Four horizontal sums at once: element j is the sum over the lanes of x[j].
VIMPAC_INLINE Vec4 sum_lanes(VecF (&x)[4]) {
  transpose_quarters(x);
  const VecF sum = (x[0] + x[1]) + (x[2] + x[3]);
#if defined(__AVX512F__)
  const __m256 half = _mm512_castps512_ps256(sum) + _mm512_extractf32x8_ps(sum, 1);
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#else
  Vec4 low, high;
  memcpy(&low, &sum, sizeof low);
  memcpy(&high, reinterpret_cast<const Vec4*>(&sum) + 1, sizeof high);
  return low + high;
#endif
}

// to[d][j] = rows[j][d]
inline void transpose_rows(const float* rows, // (kWidth, width)
                           int64_t width,     // a multiple of 4
                           float* to,         // (width, kWidth)
                           int64_t step) {
  for (int64_t d = 0; d < width; d += 4) {
    VecF quarter[4]; // of rows k, k + 4, k + 8, ...
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      quarter[k] = load_quarters(rows + k * width + d, 4 * width);
    }
    transpose_quarters(quarter);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      store(to + (d + k) * step, quarter[k]);
    }
  }
}

} // namespace
} // namespace vimpac
