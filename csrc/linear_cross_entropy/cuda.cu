// Softmax cross-entropy between the matrix products: logits z (m, stride) become dz in place.
//
// A block owns one row at a time and holds it in registers: bias, exponentials and their sum, loss,
// whether the target is the arg-max; then dz is written where z was read. So z is read once and
// written once. Exponents are relative to the target's logit, which is known before the row is
// read. The sum is then at least 1, a row needs no maximum, and one barrier brings the sum and the
// hit to all warps. If the sum is not below kSafeSum (a loss above 22, an infinity, a NaN), the
// block computes the row once more, relative to its maximum.
//
// The grid is persistent. A thread has the same columns in every row of its block. Their bias and
// the sums of their dz are in shared memory; the logits of its next row are in registers,
// unconverted. So two blocks fit a multiprocessor, and one computes while the other waits. Longer
// rows (kWide) are read a second time for dz, from the L2 cache, a piece at a time. A second kernel
// adds the sums of the blocks in order, so results repeat bit for bit; hits and targets are
// integers and may be counted by atomics. Bound by memory: in the time of a bf16 logit's 4 bytes an
// H200 issues about 24 instructions; a row of 8,197 logits takes 15 for each logit.
#include "cuda/column_sums.cuh"
#include "cuda/element_type.cuh"
#include "cuda/platform.cuh"
#include "linear_cross_entropy/arguments.hpp"
#include "linear_cross_entropy/options.cuh"
#include "linear_cross_entropy/row.cuh"

namespace vimpac {
namespace {

// Below this sum its terms are at most 2^32; the exponents of such terms have no larger rounding
// error than logits that far apart.
constexpr float kSafeSum = 4294967296.0f;

template <class T, bool kWide>
__global__ void __launch_bounds__(RowLayout<kWide>::kThreads, kLossBlocks)
    linear_cross_entropy_fwd_kernel(T* __restrict__ z,                     // (m, stride)
                                    const float* __restrict__ bias,        // (V,) or null
                                    const void* __restrict__ target,       // (R,)
                                    const int32_t* __restrict__ positions, // (M,) or null
                                    const int32_t* __restrict__ count,     // 0-d or null
                                    const float* __restrict__ row_scale,   // (M,) or null
                                    float* __restrict__ losses,            // (M,)
                                    int32_t* __restrict__ counts,          // hits, targets
                                    float* __restrict__ partial, // (blocks, stride) or null
                                    Options options,
                                    int64_t step, // bytes from a row of a block to its next
                                    float even) { // label_smoothing / V
  using Tile = RowLayout<kWide>;
  constexpr int kChunks = Tile::kChunks, kPiece = Tile::kPiece, kSums = Tile::kSums;
  constexpr bool kAhead = !kWide && sizeof(T) == 2; // else prefetched to the L2 cache
  SharedArena arena;
  Label* const labels = arena.take<Label>(kLossBatch);
  float* const parts = arena.take<float>(2 * kBuffer); // see `put`
  int* const hits = arena.take<int>(1);
  const OwnChunks<kSums + Tile::kBias> own(
      arena.take<float4>(2 * (kSums + Tile::kBias) * blockDim.x));
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  // A thread's first column, and the number of columns from it to the end of the row and of V.
  const int begin = warp * kChunks * kStep + lane * kChunk;
  const int left = options.stride - begin, classes = options.V - begin;
  const auto column_sum = [&](int c, int h) -> float4& {
    return c < kSums
               ? own.half(c, h)
               : reinterpret_cast<float4*>(partial + static_cast<int>(blockIdx.x) * options.stride +
                                           begin + c * kStep)[h];
  };
  const auto offset = [&](int c, int h) {
    return kWide ? bias_of(bias, begin + c * kStep + 4 * h, options.V) : own.half(kSums + c, h);
  };
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!kWide) {
        own.half(kSums + c, h) = bias_of(bias, begin + c * kStep + 4 * h, options.V);
      }
      if (partial != nullptr && c * kStep < left) {
        column_sum(c, h) = {};
      }
    }
  }
  if (threadIdx.x == 0) {
    *hits = 0;
  }
  if (threadIdx.x < 32) {
    for (int i = 0; i < 2 * kBuffer; i += kMaxWarps) { // for missing warps
      parts[i + lane] = i % kBuffer == kMax ? -INFINITY : 0.0f;
    }
  }
  const int rows = options.rows, grid = static_cast<int>(gridDim.x);
  const auto read_label = [&](int row) {
    const int64_t number = options.first + row;
    if (count != nullptr && number >= *count) {
      return Label{kIgnored, 0.0f, 0.0f, row};
    }
    const int64_t source = positions == nullptr ? number : positions[number];
    int64_t label = kOutside;
    if (source >= 0) {
      label = options.wide_target ? static_cast<const int64_t*>(target)[source]
                                  : static_cast<const int32_t*>(target)[source];
      if (label == options.ignore_index) {
        return Label{kIgnored, 0.0f, 0.0f, row};
      }
    }
    atomicAdd(&counts[1], 1);
    if (label < 0 || label >= options.V) {
      return Label{kOutside, 0.0f, 0.0f, row};
    }
    const int hot = static_cast<int>(label);
    const float logit = to_float(z[static_cast<int64_t>(row) * options.stride + hot]) +
                        (bias == nullptr ? 0.0f : bias[hot]);
    return Label{hot, logit, row_scale == nullptr ? 1.0f : row_scale[number], row};
  };
  const auto each = [](auto what) { // chunk of a piece
#pragma unroll
    for (int c = 0; c < kPiece; ++c) {
      what(c);
    }
  };
  // z + bias of a chunk.
  const auto logits = [&](const LogitChunk<T>& chunk, int c, float (&x)[kChunk]) {
    chunk.unpack(x);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float4 b = offset(c, h);
      x[4 * h] += b.x;
      x[4 * h + 1] += b.y;
      x[4 * h + 2] += b.z;
      x[4 * h + 3] += b.w;
    }
  };
  const auto load = [&](const T* at, int c) {
    LogitChunk<T> chunk{};
    if (c * kStep < left) {
      chunk.load(at + c * kStep);
    }
    return chunk;
  };
  const auto clear_row = [&](T* at) {
    const float zeros[kChunk] = {};
    if (options.gradient) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c * kStep < left) {
          store_chunk(at + c * kStep, zeros);
        }
      }
    }
  };
  // Passes one value of each warp to all warps. Two buffers are used alternately, so that one
  // barrier suffices: no warp writes to a buffer before all warps have read what was there.
  int buffer = 0;
  const auto put = [&](float of_warp, int which) {
    if (lane == 0) {
      parts[buffer + which + warp] = of_warp;
    }
  };
  const auto get = [&](int which) { return parts[buffer + which + lane]; };

  T* at = z + blockIdx.x * static_cast<int64_t>(options.stride) + begin;
  const auto after = [&](T* p) { return reinterpret_cast<T*>(reinterpret_cast<char*>(p) + step); };
  int row = static_cast<int>(blockIdx.x);
  while (row < rows) {
    const int todo = (rows - row + grid - 1) / grid, size = todo < kLossBatch ? todo : kLossBatch;
    LogitChunk<T> next[kPiece];
    if (kAhead) {
      each([&](int c) { next[c] = load(at, c); });
    }
    __syncthreads(); // the labels before these have been read
    for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x)) {
      labels[i] = read_label(row + i * grid);
    }
    __syncthreads();
    const Label* entry = labels;
    const Label* const end = labels + size;
    bool again = false; // relative to the row's maximum
    float row_max = 0.0f;
    const auto proceed = [&] {
      ++entry;
      at = after(at);
      again = false;
    };
    while (entry < end) {
      const int hot = entry->hot - begin;
      const float logit = entry->logit;
      const bool follows = entry + 1 < end && entry[1].hot >= 0;
      float x[kPiece][kChunk], thread_max = -INFINITY, sum = 0.0f, plain = 0.0f;
      bool beaten = false;
      if (kAhead) {
        each([&](int c) { logits(next[c], c, x[c]); });
        if (follows) {
          each([&](int c) { next[c] = load(after(at), c); });
        }
      }
      if (entry->hot < 0) { // the same branch for the whole block
        if (threadIdx.x == 0) {
          losses[options.first + entry->row] = entry->hot == kIgnored ? 0.0f : NAN;
        }
        clear_row(at);
        proceed();
        continue;
      }
      const auto read_piece = [&](int first) {
        each([&](int c) { logits(load(at, first + c), first + c, x[c]); });
      };
      const auto exponentials = [&] {
        if (again) {
          each([&](int c) {
            for (float& y : x[c]) {
              y -= row_max;
            }
          });
        }
        const float exponent = again ? 0.0f : logit * kLog2e;
        each([&](int c) {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) {
            x[c][j] = approximate_exp2(fmaf(x[c][j], kLog2e, -exponent));
          }
        });
      };
#pragma unroll 1
      for (int first = 0; first < kChunks; first += kPiece) {
        if (!kAhead) {
          read_piece(first);
        }
        if (!kAhead && follows) {
          each([&](int c) {
            if ((first + c) * kStep < left) {
              prefetch_l2(after(at) + (first + c) * kStep);
            }
          });
        }
        float highest = -INFINITY;
        each([&](int c) {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) {
            highest = fmaxf(highest, x[c][j]);
          }
        });
        thread_max = fmaxf(thread_max, highest);
        if (highest == logit) { // true in few threads
          each([&](int c) {
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
              beaten |= x[c][j] == logit && (first + c) * kStep + j < hot;
            }
          });
        }
        if (options.label_smoothing > 0.0f) {
          each([&](int c) {
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
              plain += (first + c) * kStep + j < classes ? x[c][j] : 0.0f;
            }
          });
        }
        exponentials();
        each([&](int c) {
#pragma unroll
          for (int j = 0; j < kChunk; ++j) {
            sum += x[c][j];
          }
        });
      }
      beaten |= !(thread_max <= logit);
      if (options.label_smoothing > 0.0f) {
        put(sum_of_warp(plain), kPlain);
      }
      put(sum_of_warp(sum), kSum);
      beaten = __syncthreads_or(beaten) != 0;
      sum = sum_of_warp(get(kSum));
      if (!again && !(sum > 0.5f && sum < kSafeSum)) { // or a NaN
        put(max_of_warp(thread_max), kMax);
        __syncthreads();
        row_max = max_of_warp(get(kMax));
        again = true;
        if (kAhead) {
          each([&](int c) { next[c] = load(at, c); });
        }
        continue;
      }
      const auto log_of_sum = [&] { return log_of(sum, again ? 0.0f : entry->logit); };
      const auto anchor = [&] { return again ? row_max : entry->logit; };
      if (threadIdx.x < 32) {
        plain = options.label_smoothing > 0.0f ? sum_of_warp(get(kPlain)) : 0.0f;
        const float log_sum = log_of_sum(), lse = anchor() + log_sum;
        if (threadIdx.x == 0) {
          losses[options.first + entry->row] =
              (1.0f - options.label_smoothing) * (anchor() - entry->logit + log_sum) +
              options.label_smoothing * lse - even * plain + options.z_loss * lse * lse;
          *hits += !beaten;
        }
      }
      buffer = kBuffer - buffer;
      const float factor = entry->factor;
      float scale = approximate_reciprocal(sum) * factor;
      if (options.z_loss != 0.0f) {
        scale *= fmaf(options.z_loss * (anchor() + log_of_sum()), 2.0f, 1.0f);
      }
      if (options.gradient) {
#pragma unroll 1
        for (int first = 0; first < kChunks; first += kPiece) {
          if (kWide) {
            read_piece(first);
            exponentials();
          }
          each([&](int i) {
            const int c = first + i;
            float (&y)[kChunk] = x[i];
            if (c * kStep >= left) {
              return;
            }
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
              y[j] = fmaf(y[j], scale, -even * factor);
            }
            if (static_cast<unsigned>(hot - c * kStep) < kChunk ||
                classes < c * kStep + kChunk) { // true in few threads
#pragma unroll
              for (int j = 0; j < kChunk; ++j) {
                y[j] -= hot == c * kStep + j ? (1.0f - options.label_smoothing) * factor : 0.0f;
                y[j] = c * kStep + j < classes ? y[j] : 0.0f;
              }
            }
            if (partial != nullptr) {
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                float4& all = column_sum(c, h);
                const float4 old = all;
                all = {old.x + y[4 * h], old.y + y[4 * h + 1], old.z + y[4 * h + 2],
                       old.w + y[4 * h + 3]};
              }
            }
            store_chunk(at + c * kStep, y);
          });
        }
      }
      proceed();
    }
    row = end[-1].row + grid; // read here to save registers
  }
  if (threadIdx.x == 0) {
    atomicAdd(&counts[0], *hits);
  }
  if (partial != nullptr) {
#pragma unroll
    for (int c = 0; c < kSums; ++c) {
      if (c * kStep < left) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          reinterpret_cast<float4*>(partial +
                                    static_cast<int>(opaque(blockIdx.x)) * options.stride + begin +
                                    c * kStep)[h] = own.half(c, h);
        }
      }
    }
  }
}

template <class T, bool kWide>
void launch_row_pass(const LinearCrossEntropy& a) {
  const Options options = options_of(a);
  const auto stream = static_cast<Stream>(a.stream);
  const int blocks = blocks_for<kWide>(options.rows, options.stride);
  const int threads = threads_of(RowLayout<kWide>::kChunks, options.stride);
  launch(linear_cross_entropy_fwd_kernel<T, kWide>, dim3(static_cast<unsigned>(blocks)),
         dim3(static_cast<unsigned>(threads)), shared_bytes<kWide>(threads), stream,
         static_cast<T*>(a.z.data), a.bias, a.target.data, a.positions, a.count, a.row_scale,
         a.losses, a.counts, a.workspace, options,
         blocks * static_cast<int64_t>(options.stride * sizeof(T)),
         a.label_smoothing / static_cast<float>(a.V));
  if (a.dbias != nullptr) {
    add_blocks<true>(a.workspace, {a.dbias}, blocks, options.stride, options.V, stream);
  }
}

} // namespace

int64_t linear_cross_entropy_fwd_workspace(const LinearCrossEntropy& args) {
  const Options options = options_of(args);
  const int blocks = is_wide(options.stride) ? blocks_for<true>(options.rows, options.stride)
                                             : blocks_for<false>(options.rows, options.stride);
  return args.dbias == nullptr ? 0 : int64_t{blocks} * options.stride;
}

void linear_cross_entropy_fwd(const LinearCrossEntropy& args) {
  with_type(args.z.type, [&](auto zero) {
    using T = decltype(zero);
    if (is_wide(static_cast<int>(args.z.columns))) {
      launch_row_pass<T, true>(args);
    } else {
      launch_row_pass<T, false>(args);
    }
  });
}

} // namespace vimpac
