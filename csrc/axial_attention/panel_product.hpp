// The product of two panels in cache, register tile by register tile:
//   multiply_panels<Terms, kPanelVectors>(a, rows, terms, b, columns, c, add)
//       c[i][:] = [c[i][:] +] sum_t a(i, t) b[t][:] with a(i, t) = a[i*row_step + t*term_step]
// `Terms` (panel_terms.hpp) says what the words of a and b hold; c is fp32. A word of a is
// broadcast; the columns of b and c are whole vectors. A tile is as wide as the registers allow,
// since a row of b is read once for all rows of a tile. With AVX-512, 24 of the 32 registers hold
// sums, so that fused multiply-adds, not loads, are the bound.
#pragma once

#include "axial_attention/panel_terms.hpp"
#include "axial_attention/small_matrix.hpp"

namespace vimpac {
namespace {

// Vectors of a tile at most, and its rows for so many vectors.
#if defined(__AVX512F__)
constexpr int kPanelVectors = 4;
constexpr int kPanelRows[] = {0, 12, 12, 8, 6};
#else
constexpr int kPanelVectors = 2;
constexpr int kPanelRows[] = {0, 8, 6};
#endif

// The left operand: read word by word, in either direction.
struct Left {
  const float* data;
  int64_t row_step, term_step;

  Left row(int64_t i) const { return {data + i * row_step, row_step, term_step}; }
};

// Rows of whole vectors, `step` floats apart.
template <class Float>
struct Panel {
  Float* data;
  int64_t step;

  Float* row(int64_t i) const { return data + i * step; }
  Panel from(int64_t i, int64_t column = 0) const { return {row(i) + column, step}; }
};

template <class Terms, int kVectors, int kRows>
VIMPAC_INLINE void multiply_panel_tile(Rows<kRows>,
                                       Left a,
                                       int64_t terms,
                                       Panel<const float> b, // (terms, kVectors * kWidth)
                                       Panel<float> c,       // (kRows, kVectors * kWidth)
                                       bool add) {
  VecF sum[kRows][kVectors] = {};
  for (int64_t t = 0; t < terms; ++t) {
    VecF right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      right[v] = load(b.row(t) + v * kWidth);
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const VecF left = broadcast_word(a.data + i * a.row_step + t * a.term_step);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[i][v] = Terms::multiply_add(left, right[v], sum[i][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const to = c.row(i) + v * kWidth;
      store(to, add ? load(to) + sum[i][v] : sum[i][v]);
    }
  }
}

// Tiles of kVectors vectors from `column` on while they fit, then narrower ones.
template <class Terms, int kVectors>
inline void multiply_panels(Left a,
                            int64_t rows,
                            int64_t terms,
                            Panel<const float> b, // (terms, columns)
                            int64_t columns,      // a multiple of kWidth
                            Panel<float> c,       // (rows, columns)
                            bool add,
                            int64_t column = 0) {
  for (; column + kVectors * kWidth <= columns; column += kVectors * kWidth) {
    each_tile<kPanelRows[kVectors]>(rows, [&](auto count, int64_t i) {
      multiply_panel_tile<Terms, kVectors>(count, a.row(i), terms, b.from(0, column),
                                           c.from(i, column), add);
    });
  }
  if constexpr (kVectors > 1) {
    if (column < columns) {
      multiply_panels<Terms, kVectors - 1>(a, rows, terms, b, columns, c, add, column);
    }
  }
}

} // namespace
} // namespace vimpac
