// The loss of predicted pixels, and its gradient, on the CPU. A thread owns chunks of tubelets. It
// copies the pixels of one, rows of 3 * P bytes, next to each other into its core's own cache,
// where it reads them twice: for the sums of each channel, and for the differences from pred. Bound
// by memory, from which pred and the pixels are read once. The loss has one fp64 sum per chunk;
// they are added in the order of the chunks.
//
// Channels alternate with a period of three elements. Three neighbouring vectors hold kWidth
// pixels; so in every such block a lane has the same channel, and its own sum and scale.
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_chunks.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"
#include "tubelet_mse/arguments.hpp"

#include <cmath>

namespace vimpac::VIMPAC_ISA {
namespace {

constexpr int kBlock = 3 * kWidth; // elements
#define VIMPAC_IN_BLOCK _Pragma("GCC unroll 3") for (int k = 0; k < 3; ++k)

// The arguments and their sizes.
struct Args : TubeletMse {
  explicit Args(const TubeletMse& args)
      : TubeletMse(args), M(pred.sizes[1]), K(pred.columns), H(video.sizes[2]), W(video.sizes[3]),
        grid{video.sizes[1] / t, H / P, W / P} {}

  const int64_t M, K, H, W, grid[3];
};

// The number of the first tubelet whose index is outside the grid, or -1.
int64_t first_outside(const Args& a) {
  const int64_t N = a.grid[0] * a.grid[1] * a.grid[2];
  for (int64_t i = 0; i < a.pred.rows; ++i) {
    if (a.tubelets[i] < 0 || a.tubelets[i] >= N) {
      return i;
    }
  }
  return -1;
}

// Copies the pixels of tubelet number i of all clips, (K,), and zeros up to a whole block.
void copy_pixels(const Args& a, int64_t i, uint8_t* pixels) {
  const int64_t index = a.tubelets[i], w = index % a.grid[2];
  const int64_t h = index / a.grid[2] % a.grid[1], t = index / a.grid[2] / a.grid[1];
  const int64_t first = i / a.M * a.video.sizes[1] + t * a.t; // frame
  const uint8_t* frame =
      static_cast<const uint8_t*>(a.video.data) + ((first * a.H + h * a.P) * a.W + w * a.P) * 3;
  for (int f = 0; f < a.t; ++f, frame += a.H * a.W * 3) {
    for (int y = 0; y < a.P; ++y, pixels += 3 * a.P) {
      const uint8_t* const row = frame + y * a.W * 3;
      if (a.P % 16 == 0) { // 48 bytes take less than a call of memcpy
        for (int x = 0; x < 3 * a.P; x += 48) {
          memcpy(pixels + x, row + x, 48);
        }
      } else {
        memcpy(pixels, row, 3 * a.P);
      }
    }
  }
  memset(pixels, 0, kBlock);
}

// kWidth bytes as integers. GCC would convert a vector of eight bytes one by one.
VIMPAC_INLINE VecI load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<VecI>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return reinterpret_cast<VecI>(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  uint8_t __attribute__((vector_size(kWidth))) bytes;
  memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, VecI);
#endif
}

// What makes targets of the bytes v of a tubelet: (n * v - sum) * scale, lane by lane of a block.
// The difference is exact, as n * 255 < 2^24.
struct Target {
  VecF n, sum[3], scale[3];

  // pixels: (K,), followed by zeros up to a whole block.
  Target(const Args& a, const uint8_t* pixels) : n(broadcast(static_cast<float>(a.K / 3))) {
    VecI sums[3] = {}, squares[3] = {};
    for (int64_t at = 0; at < a.K; at += kBlock) {
      VIMPAC_IN_BLOCK {
        const VecI v = load_bytes(pixels + at + k * kWidth);
        sums[k] += v;
        squares[k] += v * v;
      }
    }
    int32_t sum_of[kBlock], square_of[kBlock]; // each lane
    memcpy(sum_of, sums, sizeof sums);
    memcpy(square_of, squares, sizeof squares);
    float total[3], factor[3]; // of each channel
    for (int c = 0; c < 3; ++c) {
      int64_t v = 0, v2 = 0;
      for (int lane = c; lane < kBlock; lane += 3) {
        v += sum_of[lane];
        v2 += square_of[lane];
      }
      const double count = static_cast<double>(a.K / 3);
      const int64_t spread = a.K / 3 * v2 - v * v;
      const double std = sqrt(static_cast<double>(spread) / (count * (count - 1)));
      total[c] = static_cast<float>(v);
      factor[c] = spread == 0 ? 0.0f : static_cast<float>(1 / (count * (std + 255.0 * a.eps)));
    }
    float each_total[kBlock], each_factor[kBlock];
    for (int lane = 0; lane < kBlock; ++lane) {
      each_total[lane] = total[lane % 3];
      each_factor[lane] = factor[lane % 3];
    }
    VIMPAC_IN_BLOCK {
      sum[k] = load(each_total + k * kWidth);
      scale[k] = load(each_factor + k * kWidth);
    }
  }
};

// f(k, at, n, e): the differences e = pred - target of tubelet number i, vector by vector: n
// elements from element `at` of the tubelet on, of vector k of their block. Lanes behind them are
// 0.
template <class T, class F>
VIMPAC_INLINE void for_each_difference(const Args& a, int64_t i, const F& f) {
  alignas(64) uint8_t pixels[3 * kMostPixels + kBlock];
  copy_pixels(a, i, pixels);
  const Target target(a, pixels);
  const T* const pred = static_cast<const T*>(a.pred.data) + i * a.K;
  const auto block = [&](int64_t first, const auto& n) {
    VIMPAC_IN_BLOCK {
      const int64_t at = first + k * kWidth;
      const VecF v = __builtin_convertvector(load_bytes(pixels + at), VecF);
      const VecF centred = fmadd(v, target.n, -target.sum[k]);
      const VecF e = fmadd(centred, -target.scale[k], load_n(pred + at, n(k)));
      f(k, at, n(k), n(k) == kWidth ? e : (iota() < n(k) ? e : VecF{}));
    }
  };
  int64_t first = 0;
  for (; first + kBlock <= a.K; first += kBlock) {
    block(first, [](int) { return kWidth; });
  }
  if (first < a.K) {
    block(first, [&](int k) {
      const int64_t left = a.K - first - k * kWidth;
      return static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
    });
  }
}

// In fp32 for 64 blocks, then in fp64: a lane would add hundreds of squares of a large tubelet.
template <class T>
double squares_of(const Args& a, int64_t i) {
  constexpr int kRun = 64;
  int left = kRun;
  double total = 0;
  VecF sums[3] = {};
  const auto flush = [&] {
    total += static_cast<double>(reduce_add((sums[0] + sums[1]) + sums[2]));
    sums[0] = sums[1] = sums[2] = VecF{};
    left = kRun;
  };
  for_each_difference<T>(a, i, [&](int k, int64_t, int, VecF e) {
    sums[k] = fmadd(e, e, sums[k]);
    if (k == 2 && --left == 0) {
      flush();
    }
  });
  flush();
  return total;
}

template <class T>
bool forward(const Args& a) {
  const RowChunks chunks(a.pred.rows);
  Scratch<double> partials(chunks.count);
  if (partials.data == nullptr) {
    return false;
  }
  parallel_for(chunks.count, a.pred.rows * a.K, a.num_threads, [&](int64_t chunk) {
    double sum = 0;
    for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
      sum += squares_of<T>(a, i);
    }
    partials.data[chunk] = sum;
  });
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    sum += partials.data[chunk];
  }
  *a.loss = static_cast<float>(sum / static_cast<double>(a.pred.rows * a.K));
  return true;
}

template <class T>
bool backward(const Args& a) {
  const RowChunks chunks(a.pred.rows);
  const double count = static_cast<double>(a.pred.rows * a.K);
  const VecF factor = broadcast(static_cast<float>(*a.dloss * 2.0 / count));
  parallel_for(chunks.count, 2 * a.pred.rows * a.K, a.num_threads, [&](int64_t chunk) {
    for (int64_t i = chunks.begin(chunk); i < chunks.end(chunk); ++i) {
      T* const dpred = static_cast<T*>(a.dpred.data) + i * a.K;
      for_each_difference<T>(
          a, i, [&](int, int64_t at, int n, VecF e) { store_n(dpred + at, e * factor, n); });
    }
  });
  return true;
}

#undef VIMPAC_IN_BLOCK

} // namespace

bool tubelet_mse_fwd(const TubeletMse& args) {
  const Args a(args);
  *a.invalid = first_outside(a);
  return *a.invalid >= 0 ||
         with_type(a.pred.type, [&](auto zero) { return forward<decltype(zero)>(a); });
}

bool tubelet_mse_bwd(const TubeletMse& args) {
  const Args a(args);
  *a.invalid = first_outside(a);
  return *a.invalid >= 0 ||
         with_type(a.pred.type, [&](auto zero) { return backward<decltype(zero)>(a); });
}

} // namespace vimpac::VIMPAC_ISA
