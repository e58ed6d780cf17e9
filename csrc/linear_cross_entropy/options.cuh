// The options of linear_cross_entropy's row pass, its shared memory and its number of blocks.
#pragma once
#include "cuda/platform.cuh"
#include "linear_cross_entropy/arguments.hpp"
#include "linear_cross_entropy/row.cuh"

namespace vimpac {
namespace {

constexpr int kMaxWarps = 32;

// Offsets of the values of the warps in a buffer of shared memory, and the size of a buffer.
constexpr int kSum = 0, kPlain = kMaxWarps, kMax = 2 * kMaxWarps, kBuffer = 3 * kMaxWarps;
constexpr int kIgnored = -1, kOutside = -2;

struct Options {
  int rows; // m: of this chunk of logits
  int64_t first;
  int V, stride; // a multiple of 8, at most 32,768
  int64_t ignore_index;
  float label_smoothing, z_loss;
  bool gradient, wide_target;
};

// The label of a row, and what follows from it before the row is read.
struct alignas(16) Label {
  int hot; // its class, kIgnored or kOutside
  float logit;
  float factor; // of dz
  int row;
};

template <bool kWide>
size_t shared_bytes(int threads) {
  using Tile = RowLayout<kWide>;
  return kLossBatch * sizeof(Label) + 2 * kBuffer * sizeof(float) + 4 * sizeof(int) +
         (Tile::kSums + Tile::kBias) * kChunk * sizeof(float) * threads;
}

template <bool kWide>
int blocks_for(int rows, int stride) {
  const int threads = threads_of(RowLayout<kWide>::kChunks, stride);
  const int most = wave_blocks(kLossBlocks, shared_bytes<kWide>(threads));
  return rows < most ? rows : most;
}

inline Options options_of(const LinearCrossEntropy& a) {
  return {static_cast<int>(a.z.rows),
          a.first,
          static_cast<int>(a.V),
          static_cast<int>(a.z.columns),
          a.ignore_index,
          a.label_smoothing,
          a.z_loss,
          a.gradient,
          a.target.type == IntegerType::kInt64};
}

} // namespace
} // namespace vimpac
