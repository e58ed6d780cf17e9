// What the 32-bit words of a panel hold. `Singles`: one fp32 number. `Pairs`: two bf16 numbers,
// whose products one instruction adds to an fp32 sum, at twice the rate; `Pairs` exists only where
// the CPU has that instruction. Words are moved as floats and never calculated with.
//   Row                              type of the numbers of a tile whose rows are left operands
//   words(n)                         the number of words of n terms
//   multiply_add(a, b, sum)          sum + the products of the words of a and b
//   along(x, rows, lanes, step, to)  fp32 rows as a left operand, its terms along each row
//   across(...)                      the same, its terms across the rows: a column is a row of it
//   rows_across(tile, ...)           rows of a tile as a right operand, whose terms are these rows
// The last three return their argument if nothing has to be moved. If a pair is half empty, the
// other half is 0 in right operands, and any number in left operands of lanes without a query.
#pragma once

#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

VIMPAC_INLINE VecF broadcast_word(const float* p) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return as_float(broadcast(word));
}

struct Singles {
  using Row = float;
  static constexpr int64_t kPerWord = 1;

  static int64_t words(int64_t terms) { return terms; }
  static VIMPAC_INLINE VecF multiply_add(VecF a, VecF b, VecF sum) { return fmadd(a, b, sum); }
  static const float* along(const float* x, int64_t, int64_t, int64_t, float*) { return x; }
  static const float* across(const float* x, int64_t, int64_t, int64_t, float*) { return x; }
  static const float* rows_across(const Row* tile, int64_t, int64_t, float*) { return tile; }
};

#if defined(__AVX512BF16__)
struct Pairs {
  using Row = Bf16;
  static constexpr int64_t kPerWord = 2;

  static int64_t words(int64_t terms) { return (terms + 1) / 2; }

  static VIMPAC_INLINE VecF multiply_add(VecF a, VecF b, VecF sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  static VIMPAC_INLINE VecBits round(const float* p) {
    return (VecBits)_mm512_cvtneps_pbh(load(p));
  }

  static VIMPAC_INLINE VecF join(VecBits low, VecBits high) {
    return as_float(__builtin_convertvector(low, VecU) | __builtin_convertvector(high, VecU) << 16);
  }

  static const float* along(const float* x, // (rows, step)
                            int64_t rows,
                            int64_t lanes,
                            int64_t step,
                            float* to) { // (rows, step / 2)
    for (int64_t j = 0; j < rows; ++j) {
      Bf16* const row = reinterpret_cast<Bf16*>(to + j * step / 2);
      for (int64_t i = 0; i < lanes; i += kWidth) {
        const VecBits bits = round(x + j * step + i);
        memcpy(row + i, &bits, sizeof bits);
      }
    }
    return to;
  }

  static const float* across(const float* x, // (rows, step)
                             int64_t rows,
                             int64_t lanes,
                             int64_t step,
                             float* to) { // (words(rows), step)
    for (int64_t j = 0; j < rows; j += 2) {
      for (int64_t i = 0; i < lanes; i += kWidth) {
        const float* const from = x + j * step + i;
        store(to + j / 2 * step + i,
              join(round(from), j + 1 < rows ? round(from + step) : VecBits{}));
      }
    }
    return to;
  }

  static const float* rows_across(const Row* tile, // (rows, width)
                                  int64_t rows,
                                  int64_t width,
                                  float* to) { // (words(rows), width)
    for (int64_t j = 0; j < rows; j += 2) {
      for (int64_t d = 0; d < width; d += kWidth) {
        VecBits low, high{};
        memcpy(&low, tile + j * width + d, sizeof low);
        if (j + 1 < rows) {
          memcpy(&high, tile + (j + 1) * width + d, sizeof high);
        }
        store(to + j / 2 * width + d, join(low, high));
      }
    }
    return to;
  }
};
#endif

} // namespace
} // namespace vimpac
