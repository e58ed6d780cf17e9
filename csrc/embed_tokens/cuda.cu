// y = dropout(LN(embedding[token] + position)), rounded to the compute dtype; [CLS] in row 0.
//
// One to eight warps own a place, which is one row of each clip. What the clips share, the position
// and the LayerNorm's parameters, is read once for several of them. A row is read from the
// embedding, which the second-level cache holds, and stays in registers until y is stored.
// Statistics are fp32; the variance is taken around the mean. Bound by memory: one write of (B, S,
// D), and as many reads of fp32 from the second-level cache.
#include "cuda/element_type.cuh"
#include "embed_tokens/rows.cuh"

#include <type_traits>

namespace vimpac {
namespace {

template <class E, class Y, int kChunks>
__global__ void __launch_bounds__(kEmbedThreads<kChunks>, kChunks == 2 ? kEmbedForwardResident : 1)
    embed_tokens_fwd_kernel(const EmbedProblem a, int warps_per_row) {
  SharedArena arena;
  float* shared = arena.take<float>(blockDim.x / 32);
  const RowPlace place(warps_per_row);
  const int s = static_cast<int>(blockIdx.x) * place.rows + place.row, D = a.D;
  const int cell = s - a.has_cls, cells = a.S - a.has_cls;
  const bool live = s < a.S, norm = a.weight != nullptr;
  const uint64_t seed = a.threshold > 0 ? static_cast<uint64_t>(*a.seed) : 0;
  const auto base = common<kChunks>(place, live, D, [&a, cell](float (&x)[kChunk], int column) {
    load_place(x, a, cell, column);
  });
  const auto weight = common<kChunks>(
      place, norm, D, [&a](float (&w)[kChunk], int column) { load_chunk(w, a.weight + column); });
  const auto bias = common<kChunks>(
      place, norm, D, [&a](float (&b)[kChunk], int column) { load_chunk(b, a.bias + column); });
  const bool is_token = live && cell >= 0;
  const int step = static_cast<int>(gridDim.y);
  int clip = static_cast<int>(blockIdx.y);
  int next = is_token && clip < a.B ? token_at(a, static_cast<int64_t>(clip) * cells + cell) : 0;
  for (; clip < a.B; clip += step) {
    const int64_t row = static_cast<int64_t>(clip) * a.S + s;
    const int token = next;
    if (is_token && clip + step < a.B) { // early, for the next row
      next = token_at(a, static_cast<int64_t>(clip + step) * cells + cell);
    }
    const E* const embedded = static_cast<const E*>(a.embedding) + static_cast<int64_t>(token) * D;
    float x[kChunks][kChunk] = {}; // 0 beyond the row's end
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = place.column + c * place.step;
      if (!live || column >= D) {
        continue;
      }
      base.read(x[c], c, column);
      if (is_token) {
        float e[kChunk];
        if (token >= 0) {
          load_chunk(e, embedded + column);
        }
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          x[c][i] += token >= 0 ? e[i] : __uint_as_float(0x7fc00000u); // NaN
        }
      }
    }
    float mu = 0.0f, inverse = 1.0f;
    if (norm) {
      mu = centre_row(x, D, shared, place);
      float squares[1] = {0.0f};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          squares[0] += x[c][i] * x[c][i];
        }
      }
      sum_row(squares, shared, place);
      inverse = 1.0f / sqrtf(squares[0] / static_cast<float>(D) + a.eps);
    }
    if (!live) {
      continue;
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = place.column + c * place.step;
      if (column >= D) {
        continue;
      }
      if (norm) {
        float w[kChunk], b[kChunk];
        weight.read(w, c, column);
        bias.read(b, c, column);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          x[c][i] = x[c][i] * inverse * w[i] + b[i];
        }
      }
      if (a.threshold > 0) {
        drop_chunk(x[c], seed, a.threshold, row, column, kStreamEmbedding);
      }
      store_chunk(static_cast<Y*>(a.y) + row * D + column, x[c]);
    }
    if (a.mean != nullptr && place.column == 0) {
      a.mean[row] = mu;
      a.rstd[row] = inverse;
    }
  }
}

} // namespace

int64_t embed_tokens_fwd_workspace(const EmbedTokens&) {
  return 0;
}

void embed_tokens_fwd(const EmbedTokens& args) {
  const EmbedProblem a(args);
  const RowSplit split = embed_split(a.D);
  const unsigned groups = static_cast<unsigned>((a.S + split.rows() - 1) / split.rows());
  const unsigned parts = static_cast<unsigned>(embed_parts(a.B, kEmbedForwardClips));
  with_type(args.y.type, [&](auto y) {
    const auto run = [&](auto e) {
      using E = decltype(e);
      using Y = decltype(y);
      launch(split.chunks == 2 ? embed_tokens_fwd_kernel<E, Y, 2>
                               : embed_tokens_fwd_kernel<E, Y, 4>,
             dim3(groups, parts), split.threads(), split.warps * sizeof(float),
             static_cast<Stream>(args.stream), a, split.warps_per_row);
    };
    args.embedding.type == ElementType::kFloat32 ? run(float{}) : run(y);
  });
}

} // namespace vimpac
