// The blocks of dropout_add_layer_norm: their threads, rows and shared memory.
#pragma once
#include "cuda/platform.cuh"
#include "dropout_add_layer_norm/rows.cuh"

namespace vimpac {
namespace {

// The threads of a block, and the number of blocks of a multiprocessor that registers must suffice
// for. Rows of several warps may need a larger block; then there is one per multiprocessor.
template <bool kOneWarp>
constexpr int kThreads = 32 * (kOneWarp ? kNormWarps : kMaxWarps);
template <bool kOneWarp, int kWanted>
constexpr int kBlocks = kOneWarp ? kWanted : 1;

// Bytes of shared memory in which the warps of a block add sums of a row. floats: of a warp, in all
// buffers that take turns.
constexpr size_t sums_bytes(int warps, int floats) {
  return (static_cast<size_t>(warps * floats) * sizeof(float) + 15) / 16 * 16;
}

// Bytes of the weight in shared memory: no registers are left for it, and reading it again for each
// row takes more instructions. For wide rows it would take room from the rows themselves.
template <bool kOneWarp>
constexpr int kWeightBytes = kOneWarp ? kColumnBytes<float> : 0;

// Offsets in bytes of a warp's columns of a row in shared memory: mean and rstd, total, dy, and
// then dy_other and dtotal if they are given.
template <class T, class R>
struct Slot {
  static constexpr int kTotal = 16, kDy = kTotal + kColumnBytes<R>, kOther = kDy + kColumnBytes<T>;
  int dtotal, size;

  __host__ __device__ Slot(bool has_other, bool has_dtotal)
      : dtotal(kOther + (has_other ? kColumnBytes<T> : 0)),
        size(dtotal + (has_dtotal ? kColumnBytes<R> : 0)) {}
};

// Warps, rows and shared memory of a block.
struct Split {
  int warps_per_row;

  explicit Split(int D) : warps_per_row((D + kWarpColumns - 1) / kWarpColumns) {}

  int rows() const { return warps_per_row > kNormWarps ? 1 : kNormWarps / warps_per_row; }
  int warps() const { return rows() * warps_per_row; }

  // Blocks for M rows: as many as the rows need, or as many as the device holds at a time. `most`
  // is the number of blocks of usual size on a multiprocessor, unless their shared memory allows
  // less.
  int64_t blocks(int64_t M, int most, size_t shared = 0) const {
    const int64_t wanted = (M + rows() - 1) / rows();
    const int larger = most * kNormWarps / warps(); // of those that may be
    const int resident = wave_blocks(larger > 1 ? larger : 1, shared);
    return wanted < resident ? wanted : resident;
  }
  // With as many stages as fit the shared memory of every GPU.
  Rows rows_of(int64_t M, int D, int threshold, int slot_bytes) const {
    constexpr int kSmallest = 96 << 10; // bytes of a block, without the sums
    const int stages = warps() * kNormStages * slot_bytes <= kSmallest ? kNormStages : 1;
    return {M,
            D,
            warps_per_row,
            stages,
            threshold,
            1.0f / static_cast<float>(D),
            keep_scale(threshold)};
  }
};

} // namespace
} // namespace vimpac
