// Softmax of a block of queries against a line that is too long for one tile, with its dropout and
// its gradient, a part of the keys at a time. Matrices are (keys, kBlock): a row is a key, a lane
// is a query, so every reduction is lane by lane. `lanes` lanes of a row are used; they are whole
// vectors.
//
// Probabilities stay unnormalised, e = exp(scale * (s - row_max)), until their sum is known. In the
// backward the sign of e marks what dropout drops, so no separate matrix of decisions is needed.
#pragma once

#include "axial_attention/line_softmax.hpp"

namespace vimpac {
namespace {

// Queries, a multiple of a vector: those of a register tile twelve keys high.
constexpr int64_t kBlock = 48;

// row_max = max(row_max, s) over the keys that are not hidden
inline void update_row_max(const float* s,        // (keys, kBlock)
                           const uint8_t* hidden, // (keys,) or null
                           int64_t keys,
                           int64_t lanes,
                           float* row_max) { // (lanes,)
  for (int64_t i = 0; i < lanes; i += kWidth) {
    VecF highest = load(row_max + i);
    for (int64_t j = 0; j < keys; ++j) {
      if (hidden == nullptr || !hidden[j]) {
        highest = max(highest, load(s + j * kBlock + i));
      }
    }
    store(row_max + i, highest);
  }
}

// Called after term j of a sum. Every kTerms terms the recent sum is added to the total: one long
// sum would lose digits, which gradients need, as they are differences of such sums.
VIMPAC_INLINE void carry(int64_t j, VecF& recent, VecF& total) {
  constexpr int64_t kTerms = 8;
  if (j % kTerms == kTerms - 1) {
    total += recent;
    recent = VecF{};
  }
}

// Replaces scores by e, 0 for hidden keys, and adds them to the sums. A scale of 0 or more.
inline void exponentiate(float* s,              // (keys, kBlock)
                         const uint8_t* hidden, // (keys,) or null
                         int64_t keys,
                         int64_t lanes,
                         float scale,
                         const float* row_max, // (lanes,)
                         float* sum) {         // (lanes,)
  for (int64_t i = 0; i < lanes; i += kWidth) {
    const VecF highest = load(row_max + i);
    VecF total{}, recent{};
    for (int64_t j = 0; j < keys; ++j) {
      VecF e{};
      if (hidden == nullptr || !hidden[j]) {
        e = exp((load(s + j * kBlock + i) - highest) * scale); // 1 of an only key, exactly
        recent += e;
      }
      store(s + j * kBlock + i, e);
      carry(j, recent, total);
    }
    store(sum + i, load(sum + i) + (total + recent));
  }
}

// Multiplies what is dropped by `factor`: 0 drops it, -1 marks it.
inline void drop_block(const Dropout& dropout,
                       uint32_t line,
                       uint32_t last,        // head and axis
                       uint32_t first_query, // of the lanes
                       uint32_t first_key,   // of the rows, a multiple of 8
                       float factor,
                       int64_t keys,
                       int64_t lanes,
                       float* e) { // (keys, kBlock)
  for (int64_t i = 0; i < lanes; i += kWidth) {
    const VecU query = as_uint(iota()) + (first_query + static_cast<uint32_t>(i));
    for (int64_t first = 0; first < keys; first += 8) {
      const uint32_t call = (first_key + static_cast<uint32_t>(first)) / 8;
      const Philox4<VecU> bits = philox4x32_10<VecU>(
          {broadcast(call), query, broadcast(line), broadcast(last)}, dropout.seed);
      const VecU words[4] = {bits.x, bits.y, bits.z, bits.w};
      const int64_t count = keys - first < 8 ? keys - first : 8;
      for (int64_t j = 0; j < count; ++j) {
        const VecU decision = j % 2 ? words[j / 2] >> 16 : words[j / 2] & 0xFFFFu;
        float* const at = e + (first + j) * kBlock + i;
        const VecF x = load(at);
        store(at, decision >= dropout.threshold ? x : x * factor);
      }
    }
  }
}

// What the gradient of a probability is multiplied by: keep_scale, or 0 where e is marked.
VIMPAC_INLINE VecF kept_factor(VecF e, float keep_scale) {
  return reinterpret_cast<VecI>(e) < 0 ? VecF{} : broadcast(keep_scale);
}

VIMPAC_INLINE VecF magnitude(VecF x) {
  return as_float(as_uint(x) & 0x7FFFFFFFu);
}

// delta += the sum over keys of e * dropout(dp)
inline void add_delta(const float* e,        // (keys, kBlock)
                      const float* dp,       // (keys, kBlock)
                      const uint8_t* hidden, // (keys,) or null
                      int64_t keys,
                      int64_t lanes,
                      float keep_scale,
                      float* delta) { // (lanes,)
  for (int64_t i = 0; i < lanes; i += kWidth) {
    VecF total{}, recent{};
    for (int64_t j = 0; j < keys; ++j) {
      if (hidden == nullptr || !hidden[j]) {
        const VecF x = load(e + j * kBlock + i);
        const VecF gradient = load(dp + j * kBlock + i) * kept_factor(x, keep_scale);
        recent = fmadd(magnitude(x), gradient, recent);
      }
      carry(j, recent, total);
    }
    store(delta + i, load(delta + i) + (total + recent));
  }
}

// With p = e * inverse: dp becomes ds = p * (dropout(dp) - delta), and e becomes dropout(p); both
// are 0 for hidden keys.
inline void differentiate(float* e,              // (keys, kBlock)
                          float* dp,             // (keys, kBlock)
                          const uint8_t* hidden, // (keys,) or null
                          int64_t keys,
                          int64_t lanes,
                          float keep_scale,
                          const float* inverse, // (lanes,)
                          const float* delta) { // (lanes,)
  for (int64_t i = 0; i < lanes; i += kWidth) {
    const VecF factor = load(inverse + i), mean = load(delta + i);
    for (int64_t j = 0; j < keys; ++j) {
      float *const at = e + j * kBlock + i, *const gradient = dp + j * kBlock + i;
      if (hidden != nullptr && hidden[j]) {
        store(gradient, VecF{});
        store(at, VecF{});
        continue;
      }
      const VecF x = load(at), kept = kept_factor(x, keep_scale);
      const VecF p = magnitude(x) * factor;
      store(gradient, p * (load(gradient) * kept - mean));
      store(at, p * kept);
    }
  }
}

} // namespace
} // namespace vimpac
