// Dropout of the probabilities of a tile of whole lines.
#pragma once
#include "axial_attention/line_softmax.cuh"
#include "common/philox.hpp"

namespace vimpac {

// The decisions of one Philox call, bit e = keep key 8 group + e.
__device__ __forceinline__ uint32_t keep_octet(
    unsigned group, unsigned query, unsigned line, unsigned last, uint64_t seed, unsigned t) {
  const Philox4<uint32_t> words = philox4x32_10(Philox4<uint32_t>{group, query, line, last}, seed);
  const uint32_t all[4] = {words.x, words.y, words.z, words.w};
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bits |= uint32_t{(all[i] & 0xffff) >= t} << (2 * i) | uint32_t{(all[i] >> 16) >= t}
                                                              << (2 * i + 1);
  }
  return bits;
}

// The columns that dropout keeps in rows 16 m + g and 16 m + 8 + g. The four lanes of a row share
// the calls of its two rows.
template <int kOctets>
__device__ __forceinline__ void keep_bits(const AxialProblem& p,
                                          const LineTile<kOctets>& tile,
                                          int head,
                                          int m,
                                          ColumnBits<kOctets> (&keep)[2]) {
  constexpr int kWords = ColumnBits<kOctets>::kWords;
  const int lane = static_cast<int>(threadIdx.x % 32), groups = (tile.axis->keys + 7) / 8;
  const uint64_t seed = static_cast<uint64_t>(*p.seed);
  const unsigned last = static_cast<unsigned>(head) | static_cast<unsigned>(tile.axis->id) << 16;
  for (int w = 0; w < kWords; ++w) {
    keep[0].word[w] = keep[1].word[w] = 0;
  }
  const LineRow at = find_row(tile, 16 * m + lane % 2 * 8 + lane / 4);
  const unsigned line =
      static_cast<unsigned>(tile.clip_lines) + static_cast<unsigned>(tile.first_line + at.line);
  for (int group = lane % 4 / 2; group < groups; group += 2) {
    const uint32_t bits = keep_octet(group, at.query, line, last, seed, p.threshold);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const uint32_t placed = shift_left(bits, at.start + 8 * group - 32 * w);
      keep[0].word[w] |= lane % 2 == 0 ? placed : 0;
      keep[1].word[w] |= lane % 2 == 1 ? placed : 0;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint32_t& word = keep[half].word[w];
      word |= __shfl_xor_sync(~0u, word, 1);
      word |= __shfl_xor_sync(~0u, word, 2);
    }
  }
}

// Zeroes what dropout drops and scales the rest.
template <int kOctets>
__device__ __forceinline__ void
drop(float (&s)[kOctets][4], const ColumnBits<kOctets> (&keep)[2], float keep_scale) {
  const int first = static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
  for (int n = 0; n < kOctets; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n][i] *= keep[i / 2].test(n, first + i % 2) ? keep_scale : 0.0f; // 0 * NaN is NaN
    }
  }
}

} // namespace vimpac
