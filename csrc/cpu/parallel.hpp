// Static work sharing over OpenMP threads, and scratch memory for them.
//
// The extension links against libgomp by name only and so shares the one that torch has loaded.
// Results must not depend on the thread count: a body writes only what its own index owns, and a
// reduction keeps one partial per fixed chunk (never per thread) and adds them in order afterwards.
// An exception must not leave a body; allocate before the region.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <omp.h>

namespace vimpac {
namespace {

// Below this many elements of work a parallel region costs more than it saves.
constexpr int64_t kSerialBelow = 32768;

// body(i) for i in [0, count): threads take contiguous runs of indices. `work` is the total number
// of elements read and written, `num_threads` what torch.get_num_threads() said in the caller.
template <class Body>
inline void parallel_for(int64_t count, int64_t work, int num_threads, const Body& body) {
  if (num_threads <= 1 || count <= 1 || work < kSerialBelow) {
    for (int64_t i = 0; i < count; ++i) {
      body(i);
    }
    return;
  }
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t i = 0; i < count; ++i) {
    body(i);
  }
}

// Inside a body: which thread runs it, 0 <= thread_index() < num_threads.
inline int thread_index() {
  return omp_get_thread_num();
}

// Uninitialised array on a 64-byte boundary; `data` is null if memory ran out (kernels report it).
template <class T>
class Scratch {
public:
  explicit Scratch(int64_t count)
      : data(static_cast<T*>(aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64))) {}
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* const data;
};

} // namespace
} // namespace vimpac
