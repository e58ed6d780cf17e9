// The pass over the pixels of tubelet_embed: normalises the bytes of the wanted tubelets to pixels,
// and starts their rows with positions and bias.
//
// A block owns one tubelet. A thread takes chunks of eight bytes, which lie in one row of the
// tubelet, and writes their pixels: 16 bytes of a 16-bit type, next to those of the thread before
// it. Where rows are not whole chunks at multiples of eight bytes, it takes single bytes. Then the
// threads write the row. Bound by memory: a byte is read and a pixel is written, once each; a run
// of 3 P bytes is 48 for P = 16, so of the sectors of 32 bytes that are fetched a fourth or more is
// not needed.
#include "cuda/element_type.cuh"
#include "cuda/platform.cuh"
#include "cuda/vector.cuh"
#include "tubelet_embed/arguments.hpp"
#include "tubelet_embed/cuda_tuning.cuh"

namespace vimpac {
namespace {

// Bytes of one row of a tubelet, taken together: eight at a multiple of eight, or one anywhere.
template <int kBytes>
struct Bytes {
  uint8_t x[kBytes] = {};

  __device__ __forceinline__ void load(const uint8_t* from) {
    if constexpr (kBytes == kChunk) {
      const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
      memcpy(x, &bits, sizeof(bits));
    } else {
      x[0] = __ldg(from);
    }
  }
  __device__ __forceinline__ void store(uint8_t* to) const {
    if constexpr (kBytes == kChunk) {
      uint2 bits;
      memcpy(&bits, x, sizeof(bits));
      *reinterpret_cast<uint2*>(to) = bits;
    } else {
      *to = x[0];
    }
  }
};

template <int kBytes, class T>
__device__ __forceinline__ void store_pixels(T* to, const float (&pixels)[kBytes]) {
  if constexpr (kBytes == kChunk) {
    store_chunk(to, pixels);
  } else {
    *to = from_float<T>(pixels[0]);
  }
}

template <class T, int kBytes>
__global__ void __launch_bounds__(kTubeletThreads)
    tubelet_embed_fwd_kernel(const TubeletEmbed a, int K, int D) {
  const int64_t row = blockIdx.x;
  const int tubelet = a.tubelets[row], line = 3 * a.P;
  const bool inside = tubelet >= 0 && tubelet < a.grid[0] * a.grid[1] * a.grid[2];
  const int w = tubelet % a.grid[2], h = tubelet / a.grid[2] % a.grid[1];
  const int first_frame = tubelet / a.grid[2] / a.grid[1] * a.t;
  const uint8_t* const first = a.video + row / a.V * a.strides[0] + first_frame * a.strides[1] +
                               int64_t{h} * a.P * a.strides[2] + w * line;
  T* const pixels = static_cast<T*>(a.pixels.data) + row * K;
  const int thread = static_cast<int>(threadIdx.x);
  for (int k = thread * kBytes; k < K; k += kTubeletThreads * kBytes) {
    const int y = k / line, frame = y / a.P; // y counts the rows of all frames
    Bytes<kBytes> bytes;
    if (inside) {
      bytes.load(first + frame * a.strides[1] + (y - frame * a.P) * a.strides[2] + (k - y * line));
    }
    const int channel = k % 3; // of the first byte
    float scales[3], shifts[3], x[kBytes];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int of = channel + c < 3 ? channel + c : channel + c - 3;
      scales[c] = a.scales[of];
      shifts[c] = a.shifts[of];
    }
#pragma unroll
    for (int i = 0; i < kBytes; ++i) {
      x[i] = fmaf(static_cast<float>(bytes.x[i]), scales[i % 3], shifts[i % 3]);
    }
    store_pixels<kBytes>(pixels + k, x);
    if (a.patches != nullptr) {
      bytes.store(a.patches + row * K + k);
    }
  }
  if (a.rows.data == nullptr) {
    return;
  }
  T* const out = static_cast<T*>(a.rows.data) + row * D;
  for (int column = thread * kChunk; column < D; column += kTubeletThreads * kChunk) {
    float x[kChunk], position[kChunk];
    load_chunk(x, a.bias + column);
    if (inside) {
      load_chunk(position, a.positions + int64_t{tubelet} * D + column);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      x[i] += inside ? position[i] : __uint_as_float(0x7fc00000u); // NaN
    }
    store_chunk(out + column, x);
  }
}

// Whether a row of a tubelet is whole chunks, all at multiples of eight bytes.
bool in_chunks(const TubeletEmbed& a) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(a.video) | reinterpret_cast<uintptr_t>(a.patches);
  for (const int64_t stride : a.strides) {
    bits |= static_cast<uintptr_t>(stride);
  }
  return bits % kChunk == 0 && a.P % kChunk == 0;
}

} // namespace

int64_t tubelet_embed_fwd_workspace(const TubeletEmbed&) {
  return 0;
}

void tubelet_embed_fwd(const TubeletEmbed& args) {
  const int K = static_cast<int>(args.pixels.columns), D = static_cast<int>(args.rows.columns);
  with_type(args.pixels.type, [&](auto zero) {
    using T = decltype(zero);
    launch(in_chunks(args) ? tubelet_embed_fwd_kernel<T, kChunk> : tubelet_embed_fwd_kernel<T, 1>,
           dim3(static_cast<unsigned>(args.pixels.rows)), dim3(kTubeletThreads), 0,
           static_cast<Stream>(args.stream), args, K, D);
  });
}

} // namespace vimpac
