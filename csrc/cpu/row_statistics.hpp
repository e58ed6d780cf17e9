// Mean and variance of a row, for kernels that normalise it.
#pragma once

#include "cpu/vec_io.hpp"

#include <cmath>

namespace vimpac {
namespace {

// The mean is rounded once for each term of the sum it comes from. That is far below a row's
// deviation unless its elements are nearly equal; then it would be all that is left of them, and
// rstd would make it as large as 1. So the mean is corrected by the mean of the differences from
// it, which are exact in such a row. The two stay apart: rounded to one number they would be off by
// up to half the spacing of the elements.
struct RowStatistics {
  float mean, correction = 0.0f, rstd;

  // row: D elements; sum: of them, lane by lane.
  VIMPAC_INLINE RowStatistics(const float* row, int64_t D, VecF sum, float eps)
      : mean(reduce_add(sum) / static_cast<float>(D)) {
    const Sums sums = differences(row, D);
    float variance = sums.squares;
    correction = sums.first;
    if (correction * correction > 0.25f * variance) { // most of it would cancel
      variance = differences(row, D).squares;
    } else {
      variance -= correction * correction;
    }
    rstd = 1.0f / sqrtf(variance + eps);
  }

  VIMPAC_INLINE VecF centred(VecF x) const { return x - mean - correction; }

  // The mean as one number, for the backward.
  float rounded_mean() const { return mean + correction; }

private:
  struct Sums {
    float first, squares;
  };

  // Means of the centred elements and of their squares; in parts, as an addition waits for the one
  // before it.
  VIMPAC_INLINE Sums differences(const float* row, int64_t D) const {
    constexpr int kParts = 4;
    VecF first[kParts] = {}, squares[kParts] = {};
    int64_t i = 0;
    for (; i + kParts * kWidth <= D; i += kParts * kWidth) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const VecF d = centred(load(row + i + part * kWidth));
        first[part] = first[part] + d;
        squares[part] = fmadd(d, d, squares[part]);
      }
    }
    for_each_vector(D - i, [&](int64_t j, int n) {
      const VecF x = centred(load_n(row + i + j, n));
      const VecF d = n == kWidth ? x : (iota() < n ? x : VecF{});
      first[0] = first[0] + d;
      squares[0] = fmadd(d, d, squares[0]);
    });
    const auto mean_of = [D](const VecF(&parts)[kParts]) {
      return reduce_add((parts[0] + parts[1]) + (parts[2] + parts[3])) / static_cast<float>(D);
    };
    return {mean_of(first), mean_of(squares)};
  }
};

} // namespace
} // namespace vimpac
