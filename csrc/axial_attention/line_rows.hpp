// Copies rows of a line between memory and a tile. In memory they have the tensor's type and are
// `step` elements apart. A tile is fp32, but gathered values may be rounded; its rows are `width`
// numbers apart: head_dim rounded up to whole vectors.
#pragma once

#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

// to = scale * (from + bias); bias: (head_dim,) or null
template <class T, class To>
VIMPAC_INLINE void
gather_row(const T* from, const float* bias, int64_t head_dim, float scale, To* to) {
  for_each_vector(head_dim, [&](int64_t d, int n) {
    const VecF x = load_n(from + d, n);
    store(to + d, (bias == nullptr ? x : x + load_n(bias + d, n)) * scale);
  });
}

// bf16 rows that nothing changes are copied.
VIMPAC_INLINE void
gather_row(const Bf16* from, const float* bias, int64_t head_dim, float scale, Bf16* to) {
  if (bias != nullptr || scale != 1.0f) {
    return gather_row<Bf16, Bf16>(from, bias, head_dim, scale, to);
  }
  memcpy(to, from, sizeof(Bf16) * head_dim);
  memset(to + head_dim, 0, sizeof(Bf16) * (-head_dim & (kWidth - 1)));
}

template <class T>
VIMPAC_INLINE void scatter_row(const float* from, int64_t head_dim, float scale, T* to) {
  int64_t d = 0;
  for (; d + kWidth <= head_dim; d += kWidth) {
    store(to + d, load(from + d) * scale);
  }
  if (d < head_dim) {
    store_n(to + d, load(from + d) * scale, static_cast<int>(head_dim - d));
  }
}

// tile[l] = scale * (from[l * step] + bias)
template <class T, class To>
void gather(const T* from,
            const float* bias,
            int64_t step,
            int64_t length,
            int64_t head_dim,
            int64_t width,
            float scale,
            To* tile) {
  for (int64_t l = 0; l < length; ++l) {
    gather_row(from + l * step, bias, head_dim, scale, tile + l * width);
  }
}

// Prefetches what a later gather reads, to the second-level cache: the first-level cache is too
// small for it. This function and its callers are always inlined: GCC sees no effect in a function
// of prefetches and drops calls of it.
template <class T>
VIMPAC_INLINE void prefetch(const T* from, int64_t step, int64_t length, int64_t head_dim) {
  constexpr int kSecondLevel = 2;
  for (int64_t l = 0; l < length; ++l) {
    for (int64_t d = 0; d < head_dim; d += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(from + l * step + d, 0, kSecondLevel);
    }
  }
}

template <class T>
void scatter(const float* tile,
             int64_t step,
             int64_t length,
             int64_t head_dim,
             int64_t width,
             float scale,
             T* to) {
  for (int64_t l = 0; l < length; ++l) {
    scatter_row(tile + l * width, head_dim, scale, to + l * step);
  }
}

// sum += scale * the sum of a tile's rows
inline void
accumulate_rows(const float* tile, int64_t rows, int64_t width, float scale, float* sum) {
  for (int64_t d = 0; d < width; d += kWidth) {
    VecF total{};
    for (int64_t l = 0; l < rows; ++l) {
      total = total + load(tile + l * width + d);
    }
    store(sum + d, fmadd(total, broadcast(scale), load(sum + d)));
  }
}

inline void accumulate(const float* row, int64_t width, float scale, float* sum) {
  for (int64_t d = 0; d < width; d += kWidth) {
    store(sum + d, fmadd(load(row + d), broadcast(scale), load(sum + d)));
  }
}

// Adds the rows at(first), at(first + 1), ... in pairs, then pairs of pairs, and leaves the sum in
// the first: one long sum would lose digits.
template <class At>
const float* sum_pairwise(int64_t first, int64_t count, int64_t width, const At& at) {
  for (int64_t step = 1; step < count; step *= 2) {
    for (int64_t i = 0; i + step < count; i += 2 * step) {
      accumulate(at(first + i + step), width, 1.0f, at(first + i));
    }
  }
  return at(first);
}

} // namespace
} // namespace vimpac
