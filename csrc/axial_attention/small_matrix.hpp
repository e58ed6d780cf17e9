// Products of small fp32 matrices in cache. Rows of a, b and c lie `width` floats apart, a multiple
// of kWidth, and are zero beyond their true length, so whole vectors are the only case.
//   multiply_transposed(a, rows, b, columns, width, transposed, c, ldc)
//       c[i][j] = sum_d a[i][d] b[j][d]
//   multiply(p, row_step, sum_step, rows, terms, b, width, c)
//       c[i][:] = sum_j p(i, j) b[j][:] with p(i, j) = p[i*row_step + j*sum_step]
// The first reads a's rows in fours: allocate (and zero) round_up(rows, 4) of them.
#pragma once

#include "cpu/lanes.hpp"

namespace vimpac {
namespace {

// Rows of the register tile, 4 being its other side: six are a line of five frames and [CLS].
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif
// Rows of a tile whose other side is one vector: twice nine are a line of 16 tokens and [CLS].
constexpr int kPretransposedRows = 9;

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

// body(Rows<n>, i) for every tile of n <= kRows rows from row i on.
template <int kRows, class Body>
VIMPAC_INLINE void each_tile(int64_t rows, const Body& body) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    body(Rows<kRows>{}, i);
  }
  last_tile<kRows - 1>(i, rows, body);
}

template <int kRows>
VIMPAC_INLINE void multiply_transposed_tile(Rows<kRows>,
                                            const float* a, // (kRows, width)
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
VIMPAC_INLINE void multiply_pretransposed_tile(Rows<kRows>,
                                               const float* a, // (kRows, width)
                                               const float* b, // (width, kWidth)
                                               int64_t width,
                                               float* c, // (kRows, kWidth)
                                               int64_t ldc) {
  VecF sum[kRows] = {};
  for (int64_t d = 0; d < width; ++d) {
    const VecF right = load(b + d * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sum[i] = fmadd(broadcast(a[i * width + d]), right, sum[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    store(c + i * ldc, sum[i]);
  }
}

// Columns by the vector have a lane each; the sums of the others are taken over lanes, four at
// once.
inline void multiply_transposed(const float* a, // (rows, width)
                                int64_t rows,
                                const float* b, // (columns, width)
                                int64_t columns,
                                int64_t width,
                                float* transposed, // (width, kWidth) scratch
                                float* c,          // (rows, columns)
                                int64_t ldc) {
  int64_t j = 0;
  for (; j + kWidth <= columns; j += kWidth) {
    transpose_rows(b + j * width, width, transposed, kWidth);
    each_tile<kPretransposedRows>(rows, [&](auto count, int64_t i) {
      multiply_pretransposed_tile(count, a + i * width, transposed, width, c + i * ldc + j, ldc);
    });
  }
  for (; j + 4 <= columns; j += 4) {
    each_tile<kTileRows>(rows, [&](auto count, int64_t i) {
      multiply_transposed_tile(count, a + i * width, b + j * width, width, c + i * ldc + j, ldc);
    });
  }
  for (; j < columns; ++j) {
    for (int64_t i = 0; i < rows; i += 4) {
      float column[4];
      multiply_transposed_tile(Rows<1>{}, b + j * width, a + i * width, width, column, 4);
      for (int64_t k = i; k < i + 4 && k < rows; ++k) {
        c[k * ldc + j] = column[k - i];
      }
    }
  }
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
  each_tile<kTileRows>(rows, [&](auto count, int64_t i) {
    multiply_rows(count, p + i * row_step, row_step, sum_step, terms, b, width, c + i * width);
  });
}

} // namespace
} // namespace vimpac
