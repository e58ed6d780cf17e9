// Softmax of one line's scores, with its dropout and its gradient, on transposed matrices: a row is
// a key, a lane is a query, and the queries of several heads are side by side, so every reduction
// over the keys is lane by lane. Matrices are (keys, ld), ld being a multiple of kWidth; lanes
// beyond the queries of the last head hold unused numbers.
#pragma once

#include "cpu/vec_io.hpp"
#include "cpu/vec_philox.hpp"

namespace vimpac {
namespace {

// Replaces scores by probabilities. Hidden keys get 0; a query without any key gets 0 everywhere.
inline void softmax_keys(float* p,              // (keys, ld) scores
                         const uint8_t* hidden, // (keys,) or null
                         int64_t keys,
                         int64_t ld) {
  for (int64_t i = 0; i < ld; i += kWidth) {
    VecF row_max = broadcast(-__builtin_inff());
    for (int64_t j = 0; j < keys; ++j) {
      if (hidden == nullptr || !hidden[j]) {
        row_max = max(row_max, load(p + j * ld + i));
      }
    }
    VecF sum{};
    for (int64_t j = 0; j < keys; ++j) {
      VecF e{};
      if (hidden == nullptr || !hidden[j]) {
        e = exp(load(p + j * ld + i) - row_max);
        sum += e;
      }
      store(p + j * ld + i, e);
    }
    const VecF inverse = sum == 0.0f ? VecF{} : 1.0f / sum;
    for (int64_t j = 0; j < keys; ++j) {
      if (hidden == nullptr || !hidden[j]) { // else 0 stays, also beside scores that are not finite
        store(p + j * ld + i, load(p + j * ld + i) * inverse);
      }
    }
  }
}

// Which elements stay: decision (query i, key j) of a head is number j % 8 of the call
// (j / 8, i, line, last), `last` being one larger for each following head.
struct Dropout {
  uint64_t seed;
  uint32_t threshold; // a 16-bit decision below it drops
  float keep_scale;
};

// dropped = p times keep_scale where kept, times 0 elsewhere. `dropped` may be `p`.
inline void drop(const Dropout& dropout,
                 uint32_t line,
                 uint32_t last,  // of the first head
                 const float* p, // (keys, ld)
                 int64_t keys,
                 int64_t ld,
                 float* dropped) { // (keys, ld)
  uint32_t lane_query = 0;
  for (int64_t i = 0; i < ld; i += kWidth) {
    VecU query{}, head{};
    for (int lane = 0; lane < kWidth; ++lane) {
      query[lane] = lane_query;
      head[lane] = last;
      if (++lane_query == keys) {
        lane_query = 0;
        ++last;
      }
    }
    for (int64_t first = 0; first < keys; first += 8) {
      const Philox4<VecU> bits = philox4x32_10<VecU>(
          {broadcast(static_cast<uint32_t>(first / 8)), query, broadcast(line), head},
          dropout.seed);
      const VecU words[4] = {bits.x, bits.y, bits.z, bits.w};
      const int64_t count = keys - first < 8 ? keys - first : 8;
      for (int64_t j = 0; j < count; ++j) {
        const VecU decision = j % 2 ? words[j / 2] >> 16 : words[j / 2] & 0xFFFFu;
        const int64_t at = (first + j) * ld + i;
        const VecF kept = broadcast(dropout.keep_scale);
        store(dropped + at, load(p + at) * (decision >= dropout.threshold ? kept : VecF{}));
      }
    }
  }
}

// Replaces dp by ds = dropped * dp - p * delta, with delta = sum over the keys of dropped * dp. ds
// of hidden keys is 0.
inline void softmax_keys_backward(const float* p,        // (keys, ld)
                                  const float* dropped,  // (keys, ld), p itself without dropout
                                  const uint8_t* hidden, // (keys,) or null
                                  int64_t keys,
                                  int64_t ld,
                                  float* dp) { // (keys, ld)
  for (int64_t i = 0; i < ld; i += kWidth) {
    VecF delta{};
    for (int64_t j = 0; j < keys; ++j) {
      VecF product{};
      if (hidden == nullptr || !hidden[j]) {
        product = load(dropped + j * ld + i) * load(dp + j * ld + i);
        delta += product;
      }
      store(dp + j * ld + i, product);
    }
    for (int64_t j = 0; j < keys; ++j) {
      if (hidden == nullptr || !hidden[j]) {
        store(dp + j * ld + i, load(dp + j * ld + i) - load(p + j * ld + i) * delta);
      }
    }
  }
}

} // namespace
} // namespace vimpac
