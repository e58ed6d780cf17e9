// The gradient of one row of embed_tokens, for the kernel by places and the kernel by ids.
#pragma once
#include "cuda/element_type.cuh"
#include "embed_tokens/rows.cuh"

namespace vimpac {
namespace {

// dx of a row from x and dy, with h = (x - mean) * rstd and g = dropout(dy) * weight:
//   dx = rstd * (g - mean(g) - h * mean(g * h))
// If kSums, dropout(dy) * h is added to dweight and dropout(dy) to dbias. On return x holds h.
// Every thread of the block takes part.
template <bool kSums, class Y, int kChunks, class Weight>
__device__ __forceinline__ void row_gradient(const EmbedProblem& a,
                                             const RowPlace& place,
                                             const Weight& weight,
                                             uint64_t seed,
                                             int64_t row,
                                             bool live,
                                             float* shared,
                                             float (&x)[kChunks][kChunk],
                                             float (&dx)[kChunks][kChunk],
                                             float (*dweight)[kChunk],
                                             float (*dbias)[kChunk]) {
  const bool norm = a.weight != nullptr;
  const float mu = norm && live ? a.mean[row] : 0.0f, inverse = norm && live ? a.rstd[row] : 0.0f;
  float sums[2] = {0.0f, 0.0f};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = place.column + c * place.step;
    if (!live || column >= a.D) {
      continue;
    }
    load_chunk(dx[c], static_cast<const Y*>(a.dy) + row * a.D + column);
    if (a.threshold > 0) {
      drop_chunk(dx[c], seed, a.threshold, row, column, kStreamEmbedding);
    }
    if (!norm) {
      continue;
    }
    float w[kChunk];
    weight.read(w, c, column);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      x[c][i] = (x[c][i] - mu) * inverse;
      if constexpr (kSums) {
        dweight[c][i] += dx[c][i] * x[c][i];
        dbias[c][i] += dx[c][i];
      }
      dx[c][i] *= w[i];
      sums[0] += dx[c][i];
      sums[1] += dx[c][i] * x[c][i];
    }
  }
  if (!norm) {
    return;
  }
  sum_row(sums, shared, place);
  const float mean = sums[0] / static_cast<float>(a.D), mean_h = sums[1] / static_cast<float>(a.D);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (place.column + c * place.step < a.D) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        dx[c][i] = inverse * (dx[c][i] - mean - x[c][i] * mean_h);
      }
    }
  }
}

} // namespace
} // namespace vimpac
