// Products of small fp32 matrices in cache. Rows of a, b and c lie `width` floats apart, a multiple
// of kWidth, and are zero beyond their true length, so whole vectors are the only case.
//   multiply_transposed(a, rows, b, columns, width, c, ldc)      c[i][j] = sum_d a[i][d] b[j][d]
//   multiply(p, row_step, sum_step, rows, terms, b, width, c)    c[i][:] = sum_j p(i, j) b[j][:]
//                                                                with p(i, j) = p[i*row_step +
//                                                                j*sum_step]
// The first reads b's rows in fours: allocate (and zero) round_up(columns, 4) of them.
#pragma once

#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

// Rows of the register tile; its other side is 4. AVX-512 has twice the registers, and six rows are
// a whole line of five frames and [CLS].
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif

using Vec4 = float __attribute__((vector_size(16)));

// Four horizontal sums at once: element j is the sum over the lanes of x[j].
VIMPAC_INLINE Vec4 sum_lanes(const VecF (&x)[4]) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
  const __m512 cd = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
  const __m512 s = (__m512)_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd) +
                   (__m512)_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
  const __m256 half = _mm512_castps512_ps256(s) + _mm512_extractf32x8_ps(s, 1);
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#elif defined(__AVX2__)
  const __m256 ab = _mm256_unpacklo_ps(x[0], x[1]) + _mm256_unpackhi_ps(x[0], x[1]);
  const __m256 cd = _mm256_unpacklo_ps(x[2], x[3]) + _mm256_unpackhi_ps(x[2], x[3]);
  const __m256 s = (__m256)_mm256_unpacklo_pd((__m256d)ab, (__m256d)cd) +
                   (__m256)_mm256_unpackhi_pd((__m256d)ab, (__m256d)cd);
  return _mm256_castps256_ps128(s) + _mm256_extractf128_ps(s, 1);
#else
  return Vec4{reduce_add(x[0]), reduce_add(x[1]), reduce_add(x[2]), reduce_add(x[3])};
#endif
}

template <int kRows>
VIMPAC_INLINE void multiply_transposed_tile(const float* a, // (kRows, width)
                                            const float* b, // (4, width)
                                            int64_t width,
                                            float* c, // (kRows, 4)
                                            int64_t ldc) {
  VecF sum[kRows][4] = {};
  for (int64_t d = 0; d < width; d += kWidth) {
    VecF right[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      right[j] = load(b + j * width + d);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const VecF left = load(a + i * width + d);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        sum[i][j] = fmadd(left, right[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const Vec4 four = sum_lanes(sum[i]);
    memcpy(c + i * ldc, &four, sizeof four);
  }
}

template <int kRows>
struct Rows {};

// body(Rows<n>, i) for the last rows - i rows, if they are n <= kRows.
template <int kRows, class Body>
VIMPAC_INLINE void last_tile(int64_t i, int64_t rows, const Body& body) {
  if (i + kRows == rows) {
    body(Rows<kRows>{}, i);
  } else if constexpr (kRows > 1) {
    last_tile<kRows - 1>(i, rows, body);
  }
}

// body(Rows<n>, i) for every tile of n rows from row i on.
template <class Body>
VIMPAC_INLINE void each_tile(int64_t rows, const Body& body) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    body(Rows<kTileRows>{}, i);
  }
  last_tile<kTileRows - 1>(i, rows, body);
}

template <int kRows>
VIMPAC_INLINE void multiply_transposed_rows(Rows<kRows>,
                                            const float* a, // (kRows, width)
                                            const float* b, // (columns, width)
                                            int64_t columns,
                                            int64_t width,
                                            float* c, // (kRows, round_up(columns, 4))
                                            int64_t ldc) {
  for (int64_t j = 0; j < columns; j += 4) {
    multiply_transposed_tile<kRows>(a, b + j * width, width, c + j, ldc);
  }
}

inline void multiply_transposed(const float* a, // (rows, width)
                                int64_t rows,
                                const float* b, // (columns, width)
                                int64_t columns,
                                int64_t width,
                                float* c, // (rows, round_up(columns, 4))
                                int64_t ldc) {
  each_tile(rows, [&](auto count, int64_t i) {
    multiply_transposed_rows(count, a + i * width, b, columns, width, c + i * ldc, ldc);
  });
}

template <int kRows, int kVectors>
VIMPAC_INLINE void multiply_tile(const float* p,
                                 int64_t row_step,
                                 int64_t sum_step,
                                 int64_t terms,
                                 const float* b, // (terms, kVectors * kWidth)
                                 int64_t width,
                                 float* c) { // (kRows, kVectors * kWidth)
  VecF sum[kRows][kVectors] = {};
  for (int64_t j = 0; j < terms; ++j) {
    VecF right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      right[v] = load(b + j * width + v * kWidth);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const VecF factor = broadcast(p[i * row_step + j * sum_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[i][v] = fmadd(factor, right[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store(c + i * width + v * kWidth, sum[i][v]);
    }
  }
}

template <int kRows>
VIMPAC_INLINE void multiply_rows(Rows<kRows>,
                                 const float* p,
                                 int64_t row_step,
                                 int64_t sum_step,
                                 int64_t terms,
                                 const float* b, // (terms, width)
                                 int64_t width,
                                 float* c) { // (kRows, width)
  int64_t d = 0;
  for (; d + 4 * kWidth <= width; d += 4 * kWidth) {
    multiply_tile<kRows, 4>(p, row_step, sum_step, terms, b + d, width, c + d);
  }
  if (d + 2 * kWidth <= width) {
    multiply_tile<kRows, 2>(p, row_step, sum_step, terms, b + d, width, c + d);
    d += 2 * kWidth;
  }
  if (d < width) {
    multiply_tile<kRows, 1>(p, row_step, sum_step, terms, b + d, width, c + d);
  }
}

inline void multiply(const float* p,
                     int64_t row_step,
                     int64_t sum_step,
                     int64_t rows,
                     int64_t terms,
                     const float* b, // (terms, width)
                     int64_t width,
                     float* c) { // (rows, width)
  each_tile(rows, [&](auto count, int64_t i) {
    multiply_rows(count, p + i * row_step, row_step, sum_step, terms, b, width, c + i * width);
  });
}

} // namespace
} // namespace vimpac
