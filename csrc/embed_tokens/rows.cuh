// Shared by the kernels of embed_tokens: the arguments, and the sum of a row from the tables.
#pragma once
#include "embed_tokens/arguments.hpp"
#include "embed_tokens/cuda_tuning.cuh"
#include "embed_tokens/row_warps.cuh"

namespace vimpac {

// The threads of the largest block, which registers must suffice for; narrow rows never take more
// warps than a usual block has.
template <int kChunks>
constexpr int kEmbedThreads = kChunks == 2 ? 32 * kEmbedWarps : 256;
static_assert(kEmbedNarrow % 512 == 0 && kEmbedNarrow <= 512 * kEmbedWarps && kEmbedWarps <= 8);

inline RowSplit embed_split(int D) {
  return RowSplit(D, kEmbedNarrow, kEmbedWarps);
}

// Parts of a batch, one for each blockIdx.y, so that a warp has about that many clips.
inline int embed_parts(int B, int clips) {
  const int parts = (B + clips - 1) / clips;
  return parts < 65535 ? parts : 65535; // the most that a grid can have
}

// The arguments of the kernels. Row s of a clip is [CLS] if has_cls and s = 0, else the token of
// cell s - has_cls of the grid.
struct EmbedProblem {
  const void* tokens;
  const void* embedding;
  const float* positions[3]; // time, height, width
  const float *cls, *weight, *bias;
  float *mean, *rstd;
  const int64_t* seed;
  void* y;
  const void* dy;
  const int32_t* sorted_ids;
  const int64_t* order;
  float *dembedding, *dvectors;
  bool wide_tokens;
  int has_cls; // 0 or 1
  int B, grid[3], S, V;
  int D; // a multiple of 8, at most 8192
  int threshold;
  float eps;

  explicit EmbedProblem(const EmbedTokens& a)
      : tokens(a.tokens.data), embedding(a.embedding.data), positions{a.time, a.height, a.width},
        cls(a.cls), weight(a.weight), bias(a.bias), mean(a.mean), rstd(a.rstd), seed(a.seed),
        y(a.y.data), dy(a.dy.data), sorted_ids(a.sorted_ids), order(a.order),
        dembedding(a.dembedding), dvectors(a.dvectors),
        wide_tokens(a.tokens.type == IntegerType::kInt64), has_cls(a.cls != nullptr),
        B(static_cast<int>(a.tokens.sizes[0])),
        grid{static_cast<int>(a.tokens.sizes[1]), static_cast<int>(a.tokens.sizes[2]),
             static_cast<int>(a.tokens.sizes[3])},
        S(has_cls + grid[0] * grid[1] * grid[2]), V(static_cast<int>(a.embedding.sizes[0])),
        D(static_cast<int>(a.embedding.sizes[1])), threshold(a.threshold), eps(a.eps) {}
};

// The row of a token in the embedding, or -1 if it is outside.
__device__ __forceinline__ int token_at(const EmbedProblem& a, int64_t i) {
  const int64_t token = a.wide_tokens ? static_cast<const int64_t*>(a.tokens)[i]
                                      : static_cast<const int32_t*>(a.tokens)[i];
  return token >= 0 && token < a.V ? static_cast<int>(token) : -1;
}

// Adds eight columns of a row of fp32 to x.
__device__ __forceinline__ void add_chunk(float (&x)[kChunk], const float* row) {
  float added[kChunk];
  load_chunk(added, row);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    x[i] += added[i];
  }
}

// The position of a cell, or [CLS], both the same in all clips: eight columns from `column` on.
__device__ __forceinline__ void
load_place(float (&x)[kChunk], const EmbedProblem& a, int cell, int column) {
  if (cell < 0) {
    return load_chunk(x, a.cls + column);
  }
  const int at[3] = {cell / a.grid[2] / a.grid[1], cell / a.grid[2] % a.grid[1],
                     cell % a.grid[2]}; // t, h, w
  load_chunk(x, a.positions[2] + static_cast<int64_t>(at[2]) * a.D + column);
#pragma unroll
  for (int axis = 1; axis >= 0; --axis) {
    if (a.positions[axis] != nullptr) {
      add_chunk(x, a.positions[axis] + static_cast<int64_t>(at[axis]) * a.D + column);
    }
  }
}

// A vector that all rows of a warp share: its chunk by number and column, from registers or, if
// there are too few, read through the cache again each time.
template <int kChunks, bool kHold, class Load>
class Common {
public:
  __device__ Common(const RowPlace& place, bool live, int D, const Load& load) : load_(load) {
    if constexpr (kHold) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (live && place.column + c * place.step < D) {
          load_(values_[c], place.column + c * place.step);
        }
      }
    }
  }

  __device__ __forceinline__ void read(float (&out)[kChunk], int c, int column) const {
    if constexpr (kHold) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        out[i] = values_[c][i];
      }
    } else {
      load_(out, column);
    }
  }

private:
  Load load_;
  float values_[kHold ? kChunks : 1][kChunk] = {};
};

template <int kChunks, class Load>
__device__ __forceinline__ auto common(const RowPlace& place, bool live, int D, const Load& load) {
  return Common < kChunks, kEmbedHold && kChunks == 2, Load > (place, live, D, load);
}

} // namespace vimpac
