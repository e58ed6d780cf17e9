// Dropout decisions of a row, drawn once for the whole of it.
#pragma once

#include "cpu/vec_philox.hpp"

namespace vimpac {
namespace {

struct RowDropout {
  int64_t seed;
  uint32_t threshold; // a 16-bit decision below it drops
  float keep_scale;   // of kept elements
  uint32_t stream;    // in the top byte
};

// factors[e] = keep_scale where element e of the row is kept, 0 where it is dropped. A Philox call
// decides eight elements, 16 bits each, so a vector of calls decides 8 * kWidth; `factors` has room
// for a whole number of vectors.
inline void
draw_row_factors(const RowDropout& drop, int64_t row, int64_t D, float* __restrict__ factors) {
  const VecU low = broadcast(static_cast<uint32_t>(row));
  const VecU high = broadcast(static_cast<uint32_t>(row >> 32));
  const uint64_t seed = static_cast<uint64_t>(drop.seed);
  const uint32_t threshold = drop.threshold;
  const float keep_scale = drop.keep_scale; // read under the condition, it would end vectorisation
  for (int64_t first = 0; first < D; first += 8 * kWidth) {
    const VecU group = call_numbers() + static_cast<uint32_t>(first / 8);
    const Philox4<VecU> drawn =
        philox4x32_10<VecU>({group, low, high, broadcast(drop.stream)}, seed);
    uint16_t decisions[8 * kWidth];
    store_words(drawn, decisions);
    for (int i = 0; i < 8 * kWidth; ++i) {
      factors[first + i] = decisions[i] >= threshold ? keep_scale : 0.0f;
    }
  }
}

// Room that the factors of a row take.
inline int64_t padded_width(int64_t D) {
  return (D + 8 * kWidth - 1) / (8 * kWidth) * (8 * kWidth);
}

} // namespace
} // namespace vimpac
