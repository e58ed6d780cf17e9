// mask_tokens on CUDA, in one launch. A block owns one clip: it draws the clip's mask, reads the
// tokens once, and writes inputs and mask once. The offset of its positions follows from the counts
// of the clips before it (decoupled look-back). Bound by memory traffic and, for iid and noise, by
// Philox. The result does not depend on the order of the blocks.
#include "common/philox.hpp"
#include "cuda/platform.cuh"
#include "mask_tokens/arguments.hpp"
#include "mask_tokens/groups.cuh"

namespace vimpac {
namespace {

constexpr size_t kMaxSharedBytes = 227 << 10;

struct Plan {
  MaskTokens args;
  Divider height, width;
  uint32_t cells, groups;
  bool vectors;              // clips start at addresses that a group is loaded from in one piece
  unsigned long long* state; // (1 + B,): the ticket counter, then each clip's Status
};

struct Box {
  uint32_t t, t_end, h, h_end, w, w_end, decision;
};

// The status of a clip for the clips after it: first the number of masked tokens in this clip, then
// the number in it and all clips before it. The kind of a count and the count are in one word, so
// no other memory needs ordering.
constexpr unsigned long long kOwnCount = 1ull << 32, kRunningCount = 2ull << 32;

__device__ __forceinline__ uint32_t word(const Philox4<uint32_t>& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

__device__ __forceinline__ Box draw_box(const MaskTokens& a,
                                        uint64_t seed,
                                        uint32_t clip,
                                        uint32_t block) {
  const Philox4<uint32_t> size = philox4x32_10<uint32_t>({clip, block, 0, kStreamMask}, seed);
  const Philox4<uint32_t> place = philox4x32_10<uint32_t>({clip, block, 1, kStreamMask}, seed);
  const uint32_t t = 1 + bounded(size.x, a.max_block[0]), t0 = bounded(place.x, a.T - t + 1);
  const uint32_t h = 1 + bounded(size.y, a.max_block[1]), h0 = bounded(place.y, a.H - h + 1);
  const uint32_t w = 1 + bounded(size.z, a.max_block[2]), w0 = bounded(place.z, a.W - w + 1);
  return {t0, t0 + t, h0, h0 + h, w0, w0 + w, size.w};
}

// A clip's mask, padding included. Its tables are in shared memory.
struct Sampler {
  const Plan& plan;
  uint64_t seed;
  uint32_t clip;
  Box* boxes;        // (num_blocks,)
  uint32_t* keys;    // (H*W,), tube
  uint64_t last = 0; // of the keys that are taken

  __device__ __forceinline__ void prepare() {
    const MaskTokens& a = plan.args;
    const uint32_t plane = static_cast<uint32_t>(a.H) * a.W;
    if (a.strategy == MaskTokens::kBlock) {
      for (uint32_t k = threadIdx.x; k < static_cast<uint32_t>(a.num_blocks); k += kThreads) {
        boxes[k] = draw_box(a, seed, clip, k);
      }
    } else if (a.strategy == MaskTokens::kTube) {
      for (uint32_t i = threadIdx.x; i < plane; i += kThreads) {
        keys[i] = word(philox4x32_10<uint32_t>({clip, i / 4, 0, kStreamMask}, seed), i % 4);
      }
    }
    __syncthreads();
    if (a.strategy == MaskTokens::kTube && a.amount != 0) {
      last = select_smallest(keys, plane, static_cast<uint32_t>(a.amount));
    }
  }

  // Bit i: whether token first + i is masked. decision[i]: that of the last box on the token.
  __device__ __forceinline__ uint32_t masked(uint32_t first, uint32_t (&decision)[kGroup]) const {
    const MaskTokens& a = plan.args;
    Philox4<uint32_t> words{};
    if (a.strategy == MaskTokens::kIid) {
      words = philox4x32_10<uint32_t>({clip, first / 4, 0, kStreamMask}, seed);
    }
    const int index_bits = 32 - __clz(a.H * a.W);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t row = plan.width.quotient(first + i);
      const uint32_t t = plan.height.quotient(row);
      const uint32_t w = first + i - row * a.W, h = row - t * a.H;
      bool inside = false;
      if (a.strategy == MaskTokens::kIid) {
        inside = word(words, i) < a.amount;
      } else if (a.strategy == MaskTokens::kTube) {
        const uint32_t cell = h * a.W + w;
        inside = a.amount != 0 && (uint64_t{keys[cell]} << index_bits | cell) <= last;
      } else {
        for (int k = 0; k < a.num_blocks; ++k) {
          const Box& b = boxes[k];
          if (t >= b.t && t < b.t_end && h >= b.h && h < b.h_end && w >= b.w && w < b.w_end) {
            inside = true;
            decision[i] = b.decision;
          }
        }
      }
      bits |= static_cast<uint32_t>(inside) << i;
    }
    return bits;
  }
};

// Replaces the masked tokens of a group.
template <class T>
__device__ __forceinline__ Group<T> replace(const Sampler& s,
                                            uint32_t first,
                                            uint32_t bits,
                                            const uint32_t (&block_decision)[kGroup],
                                            Group<T> tokens) {
  const MaskTokens& a = s.plan.args;
#pragma unroll
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    Philox4<uint32_t> words{};
    if (a.noise != MaskTokens::kNone && (bits >> 2 * pair & 3) != 0) {
      words = philox4x32_10<uint32_t>({s.clip, first / 2 + pair, 0, kStreamNoise}, s.seed);
    }
#pragma unroll
    for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
      if ((bits >> i & 1) == 0) {
        continue;
      }
      const uint32_t decision =
          a.noise == MaskTokens::kPerBlock ? block_decision[i] : word(words, 2 * (i % 2));
      if (a.noise == MaskTokens::kNone || decision < a.noise_below[0]) {
        tokens.x[i] = static_cast<T>(a.mask_token);
      } else if (decision < a.noise_below[1]) {
        tokens.x[i] = static_cast<T>(bounded(word(words, 2 * (i % 2) + 1), a.vocab_size));
      }
    }
  }
  return tokens;
}

// The number of masked tokens in the clips before `clip`. Publishes `own` and the running count for
// the clips after it. One warp calls; each lane reads one of the 32 clips before `end`.
__device__ uint32_t look_back(unsigned long long* status, uint32_t clip, uint32_t own) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane == 0) {
    atomicExch(status + clip, (clip == 0 ? kRunningCount : kOwnCount) | own);
  }
  uint32_t before = 0;
  for (uint32_t end = clip; end != 0;) {
    unsigned long long seen = kRunningCount; // before the first clip: nothing
    if (lane < end) {
      while ((seen = atomicAdd(status + end - 1 - lane, 0ull)) == 0) {
        __nanosleep(kMaskNanoseconds);
      }
    }
    // Own counts up to the nearest running count complete the sum.
    const unsigned running = __ballot_sync(kAllLanes, seen >= kRunningCount);
    const uint32_t nearest = running == 0 ? 32 : static_cast<uint32_t>(__ffs(running)) - 1;
    before += __reduce_add_sync(kAllLanes, lane <= nearest ? static_cast<uint32_t>(seen) : 0u);
    end = running == 0 ? end - 32 : 0;
  }
  if (lane == 0 && clip != 0) {
    atomicExch(status + clip, kRunningCount | (before + own));
  }
  return before;
}

// Writes the rows of the clip's masked tokens from `before` on. Each unmasked token writes a -1 at
// the far end; together they fill the rest that the masked tokens of all clips leave.
__device__ __forceinline__ void write_positions(const Plan& plan,
                                                uint32_t clip,
                                                uint32_t before,
                                                const uint8_t* bits, // (groups,)
                                                uint32_t* scratch) { // (kWarps,)
  const MaskTokens& a = plan.args;
  const uint32_t unmasked_before = clip * plan.cells - before;
  int32_t* const end = a.positions + a.B * plan.cells - unmasked_before;
  const uint32_t first_row = clip * (plan.cells + a.row_offset) + a.row_offset;
  uint32_t done = 0; // masked tokens of earlier rounds
  for (uint32_t first = 0; first < plan.groups; first += kThreads) {
    const uint32_t group = first + threadIdx.x;
    const uint32_t mine = group < plan.groups ? bits[group] : 0;
    uint32_t total;
    uint32_t rank = done + exclusive_sum(__popc(mine), scratch, total);
    done += total;
#pragma unroll
    for (uint32_t i = 0; i < kGroup; ++i) {
      const uint32_t cell = group * kGroup + i;
      if ((mine >> i & 1) != 0) {
        a.positions[before + rank++] = static_cast<int32_t>(first_row + cell);
      } else if (cell < plan.cells) {
        *(end - 1 - (cell - rank)) = -1;
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kMaskResident) mask_tokens_fwd_kernel(const Plan plan) {
  const MaskTokens& a = plan.args;
  SharedArena arena;
  uint32_t* scratch = arena.take<uint32_t>(kWarps);
  uint32_t* shared = arena.take<uint32_t>(2); // the ticket; masked tokens before this clip
  uint8_t* bits = arena.take<uint8_t>(plan.groups);
  const bool boxed = a.strategy == MaskTokens::kBlock, tube = a.strategy == MaskTokens::kTube;
  Box* boxes = arena.take<Box>(boxed ? a.num_blocks : 0);
  uint32_t* keys = arena.take<uint32_t>(tube ? a.H * a.W : 0);

  // Clips are taken in the order in which blocks start, so that a clip waits for running blocks
  // only.
  if (threadIdx.x == 0) {
    shared[0] = static_cast<uint32_t>(atomicAdd(plan.state, 1ull));
  }
  __syncthreads();
  const uint32_t clip = shared[0];
  const size_t base = static_cast<size_t>(clip) * plan.cells;
  Sampler sampler{plan, static_cast<uint64_t>(*a.seed),
                  clip + static_cast<uint32_t>(*a.clip_offset), boxes, keys};
  sampler.prepare();

  const T* const tokens = static_cast<const T*>(a.tokens.data) + base;
  T* const inputs = static_cast<T*>(a.inputs.data) + base;
  const T pad = static_cast<T>(a.pad_token);
  const bool has_pad = a.has_pad && static_cast<int64_t>(pad) == a.pad_token;
  uint32_t own = 0;
  for (uint32_t group = threadIdx.x; group < plan.groups; group += kThreads) {
    const uint32_t first = group * kGroup, count = plan.cells - first;
    const Group<T> ids = load_group(tokens + first, count, plan.vectors);
    uint32_t decision[kGroup] = {};
    uint32_t mine = sampler.masked(first, decision) & (count < kGroup ? (1u << count) - 1 : 0xfu);
    Group<uint8_t> mask;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      mine &= ~(static_cast<uint32_t>(has_pad && ids.x[i] == pad) << i);
      mask.x[i] = static_cast<uint8_t>(mine >> i & 1);
    }
    store_group(inputs + first, replace(sampler, first, mine, decision, ids), count, plan.vectors);
    store_group(a.mask + base + first, mask, count, plan.vectors);
    bits[group] = static_cast<uint8_t>(mine);
    own += static_cast<uint32_t>(__popc(mine));
  }

  uint32_t total;
  exclusive_sum(own, scratch, total);
  if (threadIdx.x < 32) {
    const uint32_t before = look_back(plan.state + 1, clip, total);
    if (threadIdx.x == 0) {
      shared[1] = before;
      if (clip == gridDim.x - 1) {
        *a.count = static_cast<int32_t>(before + total);
      }
    }
  }
  __syncthreads();
  write_positions(plan, clip, shared[1], bits, scratch);
}

constexpr size_t round_up(size_t bytes) {
  return (bytes + 15) / 16 * 16;
}

// Shared memory of every clip: the counts of the warps, the ticket and the count before the clip.
constexpr size_t kClipBytes = round_up(kWarps * sizeof(uint32_t)) + 16;

template <class T>
void launch_mask_tokens_fwd(const MaskTokens& args) {
  const auto cells = static_cast<uint32_t>(args.T) * args.H * args.W;
  const uint32_t groups = (cells + kGroup - 1) / kGroup;
  const bool vectors = cells % kGroup == 0 && reinterpret_cast<uintptr_t>(args.mask) % kGroup == 0;
  const bool boxed = args.strategy == MaskTokens::kBlock;
  const bool tube = args.strategy == MaskTokens::kTube;
  const size_t shared = kClipBytes + round_up(groups) +
                        round_up(boxed ? args.num_blocks * sizeof(Box) : 0) +
                        (tube ? size_t{4} * args.H * args.W : 0);
  if (shared > kMaxSharedBytes) {
    throw std::runtime_error("mask_tokens: clips of " + std::to_string(cells) + " tokens with " +
                             std::to_string(args.num_blocks) + " blocks need " +
                             std::to_string(shared) + " bytes of shared memory, at most " +
                             std::to_string(kMaxSharedBytes) + ": use impl='triton'");
  }
  const auto stream = static_cast<Stream>(args.stream);
  clear(args.workspace, (1 + args.B) * sizeof(unsigned long long), stream);
  const Plan plan{args,
                  Divider(args.H),
                  Divider(args.W),
                  cells,
                  groups,
                  vectors,
                  reinterpret_cast<unsigned long long*>(args.workspace)};
  launch(mask_tokens_fwd_kernel<T>, dim3(static_cast<unsigned>(args.B)), dim3(kThreads), shared,
         stream, plan);
}

} // namespace

std::tuple<int64_t, int64_t, int64_t> mask_tokens_shared_bytes() {
  return {kClipBytes, sizeof(Box), kMaxSharedBytes};
}

int64_t mask_tokens_fwd_workspace(const MaskTokens& args) {
  return (1 + args.B) * static_cast<int64_t>(sizeof(unsigned long long) / sizeof(float));
}

void mask_tokens_fwd(const MaskTokens& args) {
  switch (args.tokens.type) {
  case IntegerType::kInt16:
    return launch_mask_tokens_fwd<int16_t>(args);
  case IntegerType::kUint16:
    return launch_mask_tokens_fwd<uint16_t>(args);
  case IntegerType::kInt32:
    return launch_mask_tokens_fwd<int32_t>(args);
  case IntegerType::kInt64:
    return launch_mask_tokens_fwd<int64_t>(args);
  }
}

} // namespace vimpac
