// Philox on vectors: every lane draws a call of its own.
//   philox4x32_10<VecU>(counter, seed)   the words of the lanes' calls
//   call_numbers()                       0 ... kWidth - 1, laid out for store_words
//   store_words(drawn, to)               the words of calls numbered so, call by call
#pragma once

#include "common/philox.hpp"
#include "cpu/lanes.hpp"

namespace vimpac {
namespace {

// Every other lane of a VecU, in the form of the multiply instruction's operands: it reads the low
// halves of 64-bit lanes, so the high halves may hold anything.
using VecWide = uint64_t __attribute__((vector_size(4 * kWidth)));

template <>
VIMPAC_INLINE Product<VecWide> multiply<VecWide>(VecWide a, uint32_t b) {
#if defined(__AVX512F__)
  const VecWide product = reinterpret_cast<VecWide>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  const VecWide product = reinterpret_cast<VecWide>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  const VecWide product = (a & 0xFFFFFFFFu) * b;
#endif
  return {product >> 32, product};
}

VIMPAC_INLINE VecU join(VecWide even, VecWide odd) {
  return reinterpret_cast<VecU>((even & 0xFFFFFFFFu) | odd << 32);
}

// The even and the odd lanes go through the rounds separately.
template <>
VIMPAC_INLINE Philox4<VecU> philox4x32_10<VecU>(Philox4<VecU> counter, uint64_t seed) {
  const VecWide x = reinterpret_cast<VecWide>(counter.x), y = reinterpret_cast<VecWide>(counter.y);
  const VecWide z = reinterpret_cast<VecWide>(counter.z), w = reinterpret_cast<VecWide>(counter.w);
  const Philox4<VecWide> even = philox4x32_10<VecWide>({x, y, z, w}, seed);
  const Philox4<VecWide> odd = philox4x32_10<VecWide>({x >> 32, y >> 32, z >> 32, w >> 32}, seed);
  return {join(even.x, odd.x), join(even.y, odd.y), join(even.z, odd.z), join(even.w, odd.w)};
}

// Quarter q of vector k after transpose_quarters is the call of lane 4 q + k.
VIMPAC_INLINE VecU call_numbers() {
  return as_uint(iota() % 4 * (kWidth / 4) + iota() / 4);
}

VIMPAC_INLINE void store_words(const Philox4<VecU>& drawn, void* to) { // (kWidth, 4) words
  VecF words[4] = {as_float(drawn.x), as_float(drawn.y), as_float(drawn.z), as_float(drawn.w)};
  transpose_quarters(words);
  memcpy(to, words, sizeof words);
}

} // namespace
} // namespace vimpac
