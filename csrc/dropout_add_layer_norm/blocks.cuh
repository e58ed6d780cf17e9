// The blocks of dropout_add_layer_norm: their threads, rows and shared memory.
#pragma once
#include "cuda/platform.cuh"
#include "dropout_add_layer_norm/rows.cuh"

namespace vimpac {
namespace {

// Threads of a block and how many blocks registers must leave room for on a multiprocessor. Rows of
// several warps may need a larger block, of which there is one then.
template <bool kOneWarp>
constexpr int kThreads = 32 * (kOneWarp ? kNormWarps : kMaxWarps);
template <bool kOneWarp, int kWanted>
constexpr int kBlocks = kOneWarp ? kWanted : 1;

// Bytes of the memory in which the warps of a block add up `values` sums of a row: two buffers,
// used alternately.
constexpr size_t sums_bytes(int warps, int values) {
  return (static_cast<size_t>(2 * warps * values) * sizeof(float) + 15) / 16 * 16;
}

// Bytes of the weight in shared memory: no registers are left to hold it, and to read it again for
// each row takes more instructions. Of wide rows it would take room from the rows themselves.
template <bool kOneWarp>
constexpr int kWeightBytes = kOneWarp ? kColumnBytes<float> : 0;

// Where a warp's columns of a row stand in shared memory, in bytes: mean and rstd, total, dy and
// then what there is of dy_other and dtotal.
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

  // A block for each of M rows, or as many as the device holds at a time: `most` of usual blocks on
  // a multiprocessor, unless their shared memory allows less.
  int64_t blocks(int64_t M, int most, size_t shared = 0) const {
    const int64_t wanted = (M + rows() - 1) / rows();
    const int larger = most * kNormWarps / warps(); // of those that may be
    const int resident = wave_blocks(larger > 1 ? larger : 1, shared);
    return wanted < resident ? wanted : resident;
  }
  // With as many stages as every GPU has room for.
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
