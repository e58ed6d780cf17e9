// The rows, masks and softmax of a tile of whole lines.
#pragma once
#include "axial_attention/lines.cuh"

namespace vimpac {

// One bit per column (key) of a tile.
template <int kOctets>
struct ColumnBits {
  static constexpr int kWords = (8 * kOctets + 31) / 32;
  uint32_t word[kWords];

  __device__ __forceinline__ bool any() const {
    uint32_t all = 0;
    for (int w = 0; w < kWords; ++w) {
      all |= word[w];
    }
    return all != 0;
  }
  // Column 8 octet + column of the octet.
  __device__ __forceinline__ bool test(int octet, int column) const {
    return word[octet / 4] >> (octet % 4 * 8 + column) & 1;
  }
};

// Bits below x of a word.
__device__ __forceinline__ uint32_t bits_below(int x) {
  return x <= 0 ? 0u : x >= 32 ? ~0u : (1u << x) - 1;
}

__device__ __forceinline__ uint32_t shift_left(uint32_t bits, int by) {
  return by <= -32 || by >= 32 ? 0u : by >= 0 ? bits << by : bits >> -by;
}

// The lines of a tile; the same in every lane of a warp.
template <int kOctets>
struct LineTile {
  const AxialAxis* axis;
  int first_line, count;    // lines, of the clip
  int64_t clip_lines;       // lines of the clips before this one
  ColumnBits<kOctets> keys; // what may be attended: tokens that are not padding, and [CLS]
};

// Where row r of a tile is.
struct LineRow {
  int line, query, start; // line of the tile, number in the line, first column of the line
};

template <int kOctets>
__device__ __forceinline__ LineRow find_row(const LineTile<kOctets>& tile, int r) {
  const int line =
                static_cast<int>(static_cast<unsigned>(r) / static_cast<unsigned>(tile.axis->keys)),
            start = line * tile.axis->keys;
  return {line, r - start, start};
}

// Lists the sequence row of every row of a tile (-1 where there is none) in `rows`, which a warp
// owns, and finds the keys. 16-row products may reach past the last octet: they find -1. A warp
// of a team lists its own 16 rows alone.
template <int kOctets, bool kTeam = false>
__device__ __forceinline__ LineTile<kOctets>
index_tile(const AxialProblem& p, const AxialAxis& axis, int clip, int tile_index, int* rows) {
  constexpr int kRows = (kOctets + 1) / 2 * 16;
  LineTile<kOctets> tile{&axis, tile_index * axis.lines_per_tile, 0, 0, {}};
  tile.count = min(axis.lines_per_tile, axis.lines - tile.first_line);
  tile.clip_lines = int64_t{clip} * axis.lines;
  __syncwarp(); // the previous tile no longer reads `rows`
#pragma unroll
  for (int w = 0; w < ColumnBits<kOctets>::kWords; ++w) {
    const int r = 32 * w + static_cast<int>(threadIdx.x % 32);
    const LineRow at = find_row(tile, r);
    int row = -1;
    bool key = false;
    if (at.line < tile.count) {
      const bool is_cls = at.query == axis.length;
      const int token = is_cls ? 0 : axis.token(tile.first_line + at.line, at.query);
      row = is_cls ? 0 : token + p.has_cls;
      key = is_cls || p.padding == nullptr || p.padding[int64_t{clip} * p.tokens + token] == 0;
    }
    if (r < kRows && (!kTeam || r / 16 == static_cast<int>(threadIdx.x / 32))) {
      rows[r] = row;
    }
    tile.keys.word[w] = __ballot_sync(~0u, key);
  }
  __syncwarp();
  return tile;
}

// The columns that row r attends: the keys of its own line.
template <int kOctets>
__device__ __forceinline__ ColumnBits<kOctets> row_keys(const LineTile<kOctets>& tile, int r) {
  const LineRow at = find_row(tile, r);
  const int end = at.line < tile.count ? at.start + tile.axis->keys : 0;
  ColumnBits<kOctets> bits;
#pragma unroll
  for (int w = 0; w < ColumnBits<kOctets>::kWords; ++w) {
    bits.word[w] = tile.keys.word[w] & bits_below(end - 32 * w) & ~bits_below(at.start - 32 * w);
  }
  return bits;
}

__device__ __forceinline__ float row_max(float x) { // over the four lanes of a row
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Scores of rows 16 m + g (s[.][0..1]) and 16 m + 8 + g (s[.][2..3]), columns 8 n + 2 c + {0, 1},
// become probabilities; a row without keys becomes zero, one whose scores are not finite NaN.
template <int kOctets>
__device__ __forceinline__ void
softmax(float (&s)[kOctets][4], const LineTile<kOctets>& tile, int m, float scale_log2) {
  const int lane = static_cast<int>(threadIdx.x % 32), first = lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const ColumnBits<kOctets> keys = row_keys(tile, 16 * m + 8 * half + lane / 4);
    float largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i) {
      float& x = s[i / 2][2 * half + i % 2];
      x = keys.test(i / 2, first + i % 2) ? x * scale_log2 : -INFINITY;
      largest = fmaxf(largest, x);
    }
    largest = row_max(largest);
    const bool any = keys.any();
    largest = any ? largest : 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i) {
      float& x = s[i / 2][2 * half + i % 2];
      x = approximate_exp2(x - largest);
      sum += x;
    }
    sum = row_sum(sum);
    const float inverse = any ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kOctets; ++i) {
      s[i / 2][2 * half + i % 2] *= inverse;
    }
  }
}

} // namespace vimpac
