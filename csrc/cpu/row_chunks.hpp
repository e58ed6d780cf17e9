// For kernels that walk rows: chunks of rows that threads take, sums over all rows by way of one
// partial per chunk, and prefetches of the next row.
#pragma once

#include "cpu/parallel.hpp"
#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

constexpr int64_t kMaxChunks = 64, kMinChunkRows = 16;

// Chunks of rows; their number does not depend on the threads'.
struct RowChunks {
  explicit RowChunks(int64_t rows)
      : rows(rows),
        size(rows / kMaxChunks + 1 > kMinChunkRows ? rows / kMaxChunks + 1 : kMinChunkRows),
        count((rows + size - 1) / size) {}
  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return chunk + 1 < count ? (chunk + 1) * size : rows; }

  const int64_t rows, size, count;
};

// sums = the partials of all chunks, `stride` elements apart, added in the order of the chunks.
inline void add_partials(const float* partials, // (count, stride)
                         int64_t count,
                         int64_t stride,
                         int64_t D,
                         float* sums) { // (D,)
  for_each_vector(D, [&](int64_t i, int n) {
    VecF sum{};
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      sum = sum + load_n(partials + chunk * stride + i, n);
    }
    store_n(sums + i, sum, n);
  });
}

// Asks for an element of the next row, to be read or written: a row is too short for the processor
// to see where it goes, and a store that waits for its line holds up those behind it. Inlined,
// since GCC sees no effect in a function that only prefetches and drops calls of it.
template <class T>
VIMPAC_INLINE void prefetch(const T* next) {
  constexpr int kSecondLevel = 2;
  __builtin_prefetch(next, 0, kSecondLevel);
}

} // namespace
} // namespace vimpac
