// Philox4x32-10 (Salmon et al., SC 2011), the one random generator of every backend.
//
// A pure function from a 128-bit counter and a 64-bit key to 128 random bits: no state, so the CPU,
// Triton, CUDA and the PyTorch reference agree bit for bit, in any order and on any thread.
// The key is the seed, low word first. The four counter words are laid out by each op and written
// down in the reference of the op; the last one has a stream in its top byte, so that ops which
// share a seed never share bits.
//
// `Word` is uint32_t (C++, nvcc) or a SIMD vector (cpu/vec_philox.hpp, which specialises multiply;
// then every lane is a generator of its own and the key is broadcast).
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define VIMPAC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VIMPAC_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace vimpac {
// Internal linkage: each instruction set compiles its own copy, none of which the linker may merge.
namespace {

// As in vimpac_kernels/runtime/philox.py; attention has 0.
constexpr uint32_t kStreamResidual = 1u << 24, kStreamMask = 2u << 24, kStreamNoise = 3u << 24,
                   kStreamEmbedding = 4u << 24;

template <class Word>
struct Philox4 {
  Word x, y, z, w;
};

// The halves of a 64-bit product of two 32-bit numbers.
template <class Word>
struct Product {
  Word high, low;
};

template <class Word>
VIMPAC_HOST_DEVICE Product<Word> multiply(Word a, uint32_t b) {
#ifdef __CUDA_ARCH__ // one instruction; from the formula nvcc makes 64-bit products and xors of two
  uint32_t high, low;
  asm("{ .reg .u64 p; mul.wide.u32 p, %2, %3; mov.b64 {%1, %0}, p; }"
      : "=r"(high), "=r"(low)
      : "r"(a), "r"(b));
  return {high, low};
#else
  return {static_cast<Word>((static_cast<uint64_t>(a) * b) >> 32), a * b};
#endif
}

template <class Word>
VIMPAC_HOST_DEVICE Philox4<Word> philox4x32_10(Philox4<Word> counter, uint64_t seed) {
  constexpr uint32_t kMultiplierX = 0xD2511F53u, kMultiplierZ = 0xCD9E8D57u;
  constexpr uint32_t kWeylX = 0x9E3779B9u, kWeylY = 0xBB67AE85u;
  uint32_t key_x = static_cast<uint32_t>(seed);
  uint32_t key_y = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Product<Word> x = multiply(counter.x, kMultiplierX);
    const Product<Word> z = multiply(counter.z, kMultiplierZ);
    counter = {z.high ^ counter.y ^ key_x, z.low, x.high ^ counter.w ^ key_y, x.low};
    key_x += kWeylX;
    key_y += kWeylY;
  }
  return counter;
}

// Uniform integer in [0, bound) from 32 random bits, by multiply-high (Lemire, without rejection).
template <class Word>
VIMPAC_HOST_DEVICE Word bounded(Word bits, uint32_t bound) {
  return multiply(bits, bound).high;
}

// What dropout multiplies kept elements by: a 16-bit decision below the threshold drops.
VIMPAC_HOST_DEVICE float keep_scale(int threshold) {
  return 65536.0f / static_cast<float>(65536 - threshold);
}

} // namespace
} // namespace vimpac
