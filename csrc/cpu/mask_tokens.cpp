// mask_tokens on the CPU. A thread owns whole clips: it draws the clip's mask, then reads the
// tokens once and writes inputs and mask once. After a prefix sum over the clips' counts a second
// pass over the mask writes every clip's positions. Bound by memory traffic and, for iid and noise,
// by Philox.
#include "cpu/ops.hpp"
#include "cpu/parallel.hpp"
#include "cpu/vec.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

constexpr uint32_t kStreamMask = 2u << 24, kStreamNoise = 3u << 24;

// out[4 * i + j] = word j of the call with counter (clip, i, 0, stream), for all 4 * i + j < count.
void draw_words(uint64_t seed, uint32_t clip, uint32_t stream, int64_t count, uint32_t* out) {
  constexpr int kWords = 4 * kWidth;
  for (int64_t first = 0; first < count; first += kWords) {
    const VecU group = as_uint(iota()) + static_cast<uint32_t>(first / 4);
    const Philox4<VecU> drawn =
        philox4x32_10<VecU>({broadcast(clip), group, VecU{}, broadcast(stream)}, seed);
    uint32_t words[kWords];
    for (int i = 0; i < kWidth; ++i) {
      words[4 * i] = drawn.x[i];
      words[4 * i + 1] = drawn.y[i];
      words[4 * i + 2] = drawn.z[i];
      words[4 * i + 3] = drawn.w[i];
    }
    const int64_t left = count - first;
    memcpy(out + first, words, sizeof(uint32_t) * (left < kWords ? left : kWords));
  }
}

// Unions the boxes into `mask`; the last box on a token leaves its decision word, if asked for.
void draw_boxes(const MaskTokensFwd& a,
                uint64_t seed,
                uint32_t clip,
                uint8_t* mask,         // (T, H, W)
                uint32_t* decisions) { // (T, H, W) or null
  memset(mask, 0, static_cast<int64_t>(a.T) * a.H * a.W);
  for (int k = 0; k < a.num_blocks; ++k) {
    const uint32_t block = static_cast<uint32_t>(k);
    const Philox4<uint32_t> size = philox4x32_10<uint32_t>({clip, block, 0, kStreamMask}, seed);
    const Philox4<uint32_t> place = philox4x32_10<uint32_t>({clip, block, 1, kStreamMask}, seed);
    const uint32_t t = 1 + bounded(size.x, a.max_block[0]), t0 = bounded(place.x, a.T - t + 1);
    const uint32_t h = 1 + bounded(size.y, a.max_block[1]), h0 = bounded(place.y, a.H - h + 1);
    const uint32_t w = 1 + bounded(size.z, a.max_block[2]), w0 = bounded(place.z, a.W - w + 1);
    for (uint32_t i = t0; i < t0 + t; ++i) {
      for (uint32_t j = h0; j < h0 + h; ++j) {
        const int64_t row = (static_cast<int64_t>(i) * a.H + j) * a.W + w0;
        for (uint32_t n = 0; n < w; ++n) {
          mask[row + n] = 1;
        }
        for (uint32_t n = 0; decisions != nullptr && n < w; ++n) {
          decisions[row + n] = size.w;
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

// The clip's mask before padding is taken out. `words` has room for T*H*W.
void draw_mask(const MaskTokensFwd& a,
               uint64_t seed,
               uint32_t clip,
               uint8_t* mask,     // (T, H, W)
               uint32_t* words) { // (T, H, W), decisions if noise is per block
  const int64_t plane = static_cast<int64_t>(a.H) * a.W, cells = a.T * plane;
  if (a.strategy == MaskTokensFwd::kBlock) {
    draw_boxes(a, seed, clip, mask, a.noise == MaskTokensFwd::kPerBlock ? words : nullptr);
  } else if (a.strategy == MaskTokensFwd::kIid) {
    draw_words(seed, clip, kStreamMask, cells, words);
    for (int64_t i = 0; i < cells; ++i) {
      mask[i] = words[i] < a.amount;
    }
  } else {
    draw_words(seed, clip, kStreamMask, plane, words);
    mark_smallest(words, plane, static_cast<int64_t>(a.amount), mask);
    for (int t = 1; t < a.T; ++t) {
      memcpy(mask + t * plane, mask, plane);
    }
  }
}

// Takes padding out of the mask, replaces tokens, and returns how many are masked.
template <class T>
int64_t replace(const MaskTokensFwd& a,
                int64_t cells,
                const T* __restrict__ tokens, // (cells,)
                const uint32_t* decisions,    // (cells,), noise per block
                const uint32_t* noise,        // (2 * cells,): decision and draw of every token
                uint8_t* __restrict__ mask,   // (cells,)
                T* __restrict__ inputs) {     // (cells,)
  const T pad = static_cast<T>(a.pad_token), mask_token = static_cast<T>(a.mask_token);
  const bool has_pad = a.has_pad && static_cast<int64_t>(pad) == a.pad_token;
  int64_t count = 0;
  for (int64_t i = 0; i < cells; ++i) {
    const uint8_t masked = mask[i] & static_cast<uint8_t>(!(has_pad & (tokens[i] == pad)));
    mask[i] = masked;
    inputs[i] = masked ? mask_token : tokens[i];
    count += masked;
  }
  for (int64_t i = 0; noise != nullptr && i < cells; ++i) {
    const uint32_t decision = decisions != nullptr ? decisions[i] : noise[2 * i];
    if (mask[i] && decision >= a.noise_low) {
      const T random_id = static_cast<T>(bounded(noise[2 * i + 1], a.vocab_size));
      inputs[i] = decision < a.noise_high ? random_id : tokens[i];
    }
  }
  return count;
}

template <class T>
int64_t mask_clip(const MaskTokensFwd& a, int64_t b, uint32_t* scratch) { // scratch (3 * cells,)
  const int64_t cells = static_cast<int64_t>(a.T) * a.H * a.W;
  const uint64_t seed = static_cast<uint64_t>(*a.seed);
  const uint32_t clip = static_cast<uint32_t>(b) + a.clip_offset;
  uint8_t* const mask = a.mask + b * cells;
  draw_mask(a, seed, clip, mask, scratch);
  uint32_t* const noise = a.noise == MaskTokensFwd::kNone ? nullptr : scratch + cells;
  if (noise != nullptr) {
    draw_words(seed, clip, kStreamNoise, 2 * cells, noise);
  }
  return replace(a, cells, static_cast<const T*>(a.tokens) + b * cells,
                 a.noise == MaskTokensFwd::kPerBlock ? scratch : nullptr, noise, mask,
                 static_cast<T*>(a.inputs) + b * cells);
}

// Rows of the clip's masked tokens, eight mask bytes at a time where none is set.
void write_positions(const uint8_t* mask, int64_t cells, int64_t first_row, int32_t* out) {
  for (int64_t i = 0; i < cells; ++i) {
    uint64_t eight = 1;
    if (i + 8 <= cells) {
      memcpy(&eight, mask + i, 8);
    }
    if (eight == 0) {
      i += 7;
    } else if (mask[i]) {
      *out++ = static_cast<int32_t>(first_row + i);
    }
  }
}

template <class T>
bool mask_clips(const MaskTokensFwd& a) {
  const int64_t cells = static_cast<int64_t>(a.T) * a.H * a.W, total = a.B * cells;
  const int threads = a.num_threads < 1 ? 1 : a.num_threads;
  Scratch<uint32_t> scratch(threads * 3 * cells);
  Scratch<int64_t> offsets(a.B + 1); // of each clip's first position
  if (scratch.data == nullptr || offsets.data == nullptr) {
    return false;
  }
  parallel_for(a.B, total, threads, [&](int64_t b) {
    offsets.data[b + 1] = mask_clip<T>(a, b, scratch.data + thread_index() * 3 * cells);
  });
  offsets.data[0] = 0;
  for (int64_t b = 0; b < a.B; ++b) {
    offsets.data[b + 1] += offsets.data[b];
  }
  const int64_t count = offsets.data[a.B];
  *a.count = static_cast<int32_t>(count);
  parallel_for(a.B, total, threads, [&](int64_t b) {
    const int64_t first_row = b * (cells + a.row_offset) + a.row_offset;
    write_positions(a.mask + b * cells, cells, first_row, a.positions + offsets.data[b]);
    const int64_t tail = b * cells < count ? count : b * cells;
    for (int64_t i = tail; i < (b + 1) * cells; ++i) {
      a.positions[i] = -1;
    }
  });
  return true;
}

} // namespace

bool mask_tokens_fwd(const MaskTokensFwd& args) {
  switch (args.token_type) {
  case MaskTokensFwd::kInt16:
    return mask_clips<int16_t>(args);
  case MaskTokensFwd::kUInt16:
    return mask_clips<uint16_t>(args);
  case MaskTokensFwd::kInt32:
    return mask_clips<int32_t>(args);
  default:
    return mask_clips<int64_t>(args);
  }
}

} // namespace vimpac::VIMPAC_ISA
