// mask_tokens on the CPU. A thread owns whole clips: it draws the clip's mask, then reads the
// tokens once and writes inputs and mask once. After a prefix sum over the counts of the clips, a
// second pass over the mask writes the positions of every clip. Bound by memory traffic and, for
// iid and noise, by Philox.
#include "cpu/parallel.hpp"
#include "cpu/vec_philox.hpp"
#include "mask_tokens/arguments.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

// out[4 * i + j] = word j of the call with counter (clip, i, group, stream), 4 * i + j < count.
void draw_words(uint64_t seed,
                uint32_t clip,
                uint32_t group,
                uint32_t stream,
                int64_t count,
                uint32_t* out) { // (count,)
  constexpr int kWords = 4 * kWidth;
  for (int64_t first = 0; first < count; first += kWords) {
    const VecU index = call_numbers() + static_cast<uint32_t>(first / 4);
    const Philox4<VecU> drawn =
        philox4x32_10<VecU>({broadcast(clip), index, broadcast(group), broadcast(stream)}, seed);
    uint32_t words[kWords];
    store_words(drawn, words);
    const int64_t left = count - first;
    memcpy(out + first, words, sizeof(uint32_t) * (left < kWords ? left : kWords));
  }
}

// Two overlapping stores instead of a call to memset: rows are short, and all rows of a box have
// one length.
void set_ones(uint8_t* mask, uint32_t count) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  if (count > 16) {
    memset(mask, 1, count);
  } else if (count >= 8) {
    memcpy(mask, &kOnes, 8);
    memcpy(mask + count - 8, &kOnes, 8);
  } else if (count >= 4) {
    memcpy(mask, &kOnes, 4);
    memcpy(mask + count - 4, &kOnes, 4);
  } else {
    mask[0] = mask[count / 2] = mask[count - 1] = 1;
  }
}

// Adds the boxes to `mask`. Each token gets the decision word of the last box on it, if wanted.
void draw_boxes(const MaskTokens& a,
                uint64_t seed,
                uint32_t clip,
                uint8_t* mask,       // (T, H, W)
                uint32_t* decisions, // (T, H, W) or null
                uint32_t* words) {   // room for (2, num_blocks, 4)
  memset(mask, 0, static_cast<int64_t>(a.T) * a.H * a.W);
  const int64_t drawn = 4 * static_cast<int64_t>(a.num_blocks);
  draw_words(seed, clip, 0, kStreamMask, drawn, words);
  draw_words(seed, clip, 1, kStreamMask, drawn, words + drawn);
  for (const uint32_t *size = words, *place = words + drawn; size < words + drawn;
       size += 4, place += 4) {
    const uint32_t t = 1 + bounded(size[0], a.max_block[0]), t0 = bounded(place[0], a.T - t + 1);
    const uint32_t h = 1 + bounded(size[1], a.max_block[1]), h0 = bounded(place[1], a.H - h + 1);
    const uint32_t w = 1 + bounded(size[2], a.max_block[2]), w0 = bounded(place[2], a.W - w + 1);
    for (uint32_t i = t0; i < t0 + t; ++i) {
      for (uint32_t j = h0; j < h0 + h; ++j) {
        const int64_t row = (static_cast<int64_t>(i) * a.H + j) * a.W + w0;
        set_ones(mask + row, w);
        for (uint32_t n = 0; decisions != nullptr && n < w; ++n) {
          decisions[row + n] = size[3];
        }
      }
    }
  }
}

// Marks the `wanted` cells with the smallest (key, index). Radix selection: each round fixes 8 more
// bits of the last key that is taken; `wanted` becomes its rank among the keys that share them.
void mark_smallest(const uint32_t* keys, int64_t cells, int64_t wanted, uint8_t* mask) {
  memset(mask, 0, cells);
  if (wanted == 0) {
    return;
  }
  uint32_t last = 0, fixed = 0; // the last key's bits, and which of them are known
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t histogram[256] = {};
    for (int64_t i = 0; i < cells; ++i) {
      histogram[(keys[i] >> shift) & 255] += (keys[i] & fixed) == last;
    }
    uint32_t digit = 0;
    while (wanted > histogram[digit]) {
      wanted -= histogram[digit++];
    }
    last |= digit << shift;
    fixed |= 255u << shift;
  }
  for (int64_t i = 0; i < cells; ++i) {
    const bool tie = keys[i] == last && wanted > 0;
    wanted -= tie;
    mask[i] = keys[i] < last || tie;
  }
}

// The clip's mask, padding included.
void draw_mask(const MaskTokens& a,
               uint64_t seed,
               uint32_t clip,
               uint8_t* mask,     // (T, H, W)
               uint32_t* words,   // (T, H, W): decisions if noise is per block
               uint32_t* boxes) { // room for (2, num_blocks, 4)
  const int64_t plane = static_cast<int64_t>(a.H) * a.W, cells = a.T * plane;
  if (a.strategy == MaskTokens::kBlock) {
    draw_boxes(a, seed, clip, mask, a.noise == MaskTokens::kPerBlock ? words : nullptr, boxes);
  } else if (a.strategy == MaskTokens::kIid) {
    draw_words(seed, clip, 0, kStreamMask, cells, words);
    for (int64_t i = 0; i < cells; ++i) {
      mask[i] = words[i] < a.amount;
    }
  } else {
    draw_words(seed, clip, 0, kStreamMask, plane, words);
    mark_smallest(words, plane, static_cast<int64_t>(a.amount), mask);
    for (int t = 1; t < a.T; ++t) {
      memcpy(mask + t * plane, mask, plane);
    }
  }
}

// Removes padding from the mask, replaces tokens, and returns the number of masked tokens.
template <class T>
int64_t replace(const MaskTokens& a,
                int64_t cells,
                const T* __restrict__ tokens, // (cells,)
                const uint32_t* decisions,    // (cells,), noise per block
                const uint32_t* noise,        // (2 * cells,): decision and draw of every token
                uint8_t* __restrict__ mask,   // (cells,)
                T* __restrict__ inputs) {     // (cells,)
  const T pad = static_cast<T>(a.pad_token), mask_token = static_cast<T>(a.mask_token);
  const bool has_pad = a.has_pad && static_cast<int64_t>(pad) == a.pad_token;
  int32_t count = 0;
  for (int64_t i = 0; i < cells; ++i) {
    const uint8_t masked = mask[i] & static_cast<uint8_t>(!(has_pad & (tokens[i] == pad)));
    mask[i] = masked;
    inputs[i] = masked ? mask_token : tokens[i];
    count += masked;
  }
  for (int64_t i = 0; noise != nullptr && i < cells; ++i) {
    const uint32_t decision = decisions != nullptr ? decisions[i] : noise[2 * i];
    if (mask[i] && decision >= a.noise_below[0]) {
      const T random_id = static_cast<T>(bounded(noise[2 * i + 1], a.vocab_size));
      inputs[i] = decision < a.noise_below[1] ? random_id : tokens[i];
    }
  }
  return count;
}

// Words that one thread needs: decisions or keys, noise, boxes.
int64_t scratch_size(const MaskTokens& a) {
  return 3 * static_cast<int64_t>(a.T) * a.H * a.W + 8 * static_cast<int64_t>(a.num_blocks);
}

template <class T>
int64_t mask_clip(const MaskTokens& a, int64_t b, uint32_t* scratch) {
  const int64_t cells = static_cast<int64_t>(a.T) * a.H * a.W;
  const uint64_t seed = static_cast<uint64_t>(*a.seed);
  const uint32_t clip = static_cast<uint32_t>(b) + static_cast<uint32_t>(*a.clip_offset);
  uint8_t* const mask = a.mask + b * cells;
  draw_mask(a, seed, clip, mask, scratch, scratch + 3 * cells);
  uint32_t* const noise = a.noise == MaskTokens::kNone ? nullptr : scratch + cells;
  if (noise != nullptr) {
    draw_words(seed, clip, 0, kStreamNoise, 2 * cells, noise);
  }
  return replace(a, cells, static_cast<const T*>(a.tokens.data) + b * cells,
                 a.noise == MaskTokens::kPerBlock ? scratch : nullptr, noise, mask,
                 static_cast<T*>(a.inputs.data) + b * cells);
}

// Stores the rows row, row + 1, ... of the masked ones among kWidth tokens side by side, and
// anything behind them, kWidth rows in all; returns how many are masked.
VIMPAC_INLINE int store_masked(const uint8_t* mask, // (kWidth,)
                               int32_t row,
                               int32_t* out) { // (kWidth,)
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask));
  const __mmask16 masked = _mm_test_epi8_mask(bytes, bytes);
  _mm512_storeu_si512(out,
                      _mm512_maskz_compress_epi32(masked, reinterpret_cast<__m512i>(iota() + row)));
  return __builtin_popcount(masked);
#else
  static_assert(kWidth == sizeof(uint64_t));
  uint64_t all;
  memcpy(&all, mask, sizeof all);
  int count = 0;
  for (int i = 0; all != 0 && i < kWidth; ++i) {
    out[count] = row + i;
    count += mask[i];
  }
  return count;
#endif
}

// Rows of the clip's masked tokens.
void write_positions(const uint8_t* mask, // (cells,)
                     int64_t cells,
                     int64_t first_row,
                     int32_t* out,         // room for end - out rows, all of which are written
                     const int32_t* end) { // other threads write from here on
  int64_t i = 0;
  for (; i + kWidth <= cells && out + kWidth <= end; i += kWidth) {
    out += store_masked(mask + i, static_cast<int32_t>(first_row + i), out);
  }
  for (; out < end; ++i) {
    if (mask[i]) {
      *out++ = static_cast<int32_t>(first_row + i);
    }
  }
}

template <class T>
bool mask_clips(const MaskTokens& a) {
  const int64_t cells = static_cast<int64_t>(a.T) * a.H * a.W, total = a.B * cells;
  const int threads = a.num_threads < 1 ? 1 : a.num_threads;
  Scratch<uint32_t> scratch(threads * scratch_size(a));
  Scratch<int64_t> offsets(a.B + 1); // of each clip's first position
  if (scratch.data == nullptr || offsets.data == nullptr) {
    return false;
  }
  parallel_for(a.B, total, threads, [&](int64_t b) {
    offsets.data[b + 1] = mask_clip<T>(a, b, scratch.data + thread_index() * scratch_size(a));
  });
  offsets.data[0] = 0;
  for (int64_t b = 0; b < a.B; ++b) {
    offsets.data[b + 1] += offsets.data[b];
  }
  const int64_t count = offsets.data[a.B];
  *a.count = static_cast<int32_t>(count);
  parallel_for(a.B, total, threads, [&](int64_t b) {
    const int64_t first_row = b * (cells + a.row_offset) + a.row_offset;
    write_positions(a.mask + b * cells, cells, first_row, a.positions + offsets.data[b],
                    a.positions + offsets.data[b + 1]);
    const int64_t tail = b * cells < count ? count : b * cells;
    if (tail < (b + 1) * cells) {
      memset(a.positions + tail, 0xFF, ((b + 1) * cells - tail) * sizeof(int32_t)); // -1
    }
  });
  return true;
}

} // namespace

bool mask_tokens_fwd(const MaskTokens& args) {
  switch (args.tokens.type) {
  case IntegerType::kInt16:
    return mask_clips<int16_t>(args);
  case IntegerType::kUint16:
    return mask_clips<uint16_t>(args);
  case IntegerType::kInt32:
    return mask_clips<int32_t>(args);
  case IntegerType::kInt64:
    break;
  }
  return mask_clips<int64_t>(args);
}

} // namespace vimpac::VIMPAC_ISA
