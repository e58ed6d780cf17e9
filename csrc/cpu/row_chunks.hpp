// For kernels that walk over rows: chunks of rows for the threads, sums over all rows from one
// partial per chunk, and prefetches of the next row.
#pragma once

#include "cpu/parallel.hpp"
#include "cpu/vec_io.hpp"

namespace vimpac {
namespace {

constexpr int64_t kMaxChunks = 64, kMinChunkRows = 16;

// Chunks of rows; their number does not depend on the number of threads.
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

// Prefetches an element of the next row, to be read or written: a row is too short for the hardware
// prefetcher, and a store that waits for its cache line delays the stores after it. Always inlined:
// GCC sees no effect in a function that only prefetches and drops calls of it.
template <class T>
VIMPAC_INLINE void prefetch(const T* next) {
  constexpr int kSecondLevel = 2;
  __builtin_prefetch(next, 0, kSecondLevel);
}

} // namespace
} // namespace vimpac
