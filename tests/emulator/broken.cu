// Deliberately broken kernels, each of which the emulator must notice, and correct twins, which it
// must accept. Usage: broken CASE SEED; without arguments lists the cases.
// Exit status: 0 accepted, 2 the emulator raised, 3 a wrong result; sanitizers exit with their own.
#include "cuda/mma.cuh"

#include <cstdio>
#include <map>
#include <string>
#include <vector>

using namespace vimpac;
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr unsigned kThreads = 128;
constexpr size_t kSharedBytes = 4096;

__device__ unsigned global_thread() {
  return blockIdx.x * blockDim.x + threadIdx.x;
}

template <bool Barrier>
__global__ void read_after_write(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (Barrier) {
    __syncthreads();
  }
  out[global_thread()] = x[(threadIdx.x + 33) % kThreads];
}

template <bool Barrier>
__global__ void write_after_read(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  x[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  const float y = x[(threadIdx.x + 33) % kThreads];
  if (Barrier) {
    __syncthreads();
  }
  x[threadIdx.x] = -1;
  out[global_thread()] = y;
}

template <bool Sync>
__global__ void warp_exchange(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (Sync) {
    __syncwarp();
  }
  out[global_thread()] = x[threadIdx.x ^ 1];
}

template <bool Barrier>
__global__ void reused_scratch(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(4);
  float total = 0;
  for (int i = 0; i < 3; ++i) {
    if (threadIdx.x % 32 == 0) {
      x[threadIdx.x / 32] = static_cast<float>(static_cast<int>(threadIdx.x) + i);
    }
    __syncthreads();
    for (int w = 0; w < 4; ++w) {
      total += x[w];
    }
    if (Barrier) {
      __syncthreads();
    }
  }
  out[global_thread()] = total;
}

template <bool Atomic>
__global__ void block_count(float* out) {
  SharedArena arena;
  int* n = arena.take<int>(1);
  if (threadIdx.x == 0) {
    *n = 0;
  }
  __syncthreads();
  if (Atomic) {
    atomicAdd(n, 1);
  } else {
    *n += 1;
  }
  __syncthreads();
  out[global_thread()] = static_cast<float>(*n);
}

template <bool Atomic>
__global__ void grid_sum(float* out) {
  if (Atomic) {
    atomicAdd(out, 1.0f);
  } else {
    *out += 1.0f;
  }
}

// A block waits for the one before it: by a ticket drawn on arrival, or by its index, although
// nothing promises that blocks start in order. out[kThreads] draws tickets, the next word is passed
// on.
template <bool Ticket>
__global__ void chained_blocks(float* out) {
  if (threadIdx.x != 0) {
    return;
  }
  auto* words = reinterpret_cast<unsigned*>(out + kThreads);
  const unsigned ticket = Ticket ? atomicAdd(words, 1u) : blockIdx.x;
  while (atomicAdd(words + 1, 0u) != ticket) {
    __nanosleep(20);
  }
  atomicExch(words + 1, ticket + 1);
}

__global__ void two_barrier_sites(float* out) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[global_thread()] = 0;
}

__global__ void half_a_barrier(float* out) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else if (threadIdx.x % 2 == 0) {
    __syncwarp();
  }
  out[global_thread()] = 0;
}

__global__ void divergent_shuffle(float* out) {
  float x = 0;
  if (threadIdx.x % 32 < 16) {
    x = __shfl_xor_sync(kAll, 1.0f, 1);
  }
  __syncthreads();
  out[global_thread()] = x;
}

__global__ void two_masks(float* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? kAll : 0xffff0000u;
  out[global_thread()] = __shfl_xor_sync(mask, 1.0f, 1);
}

__global__ void foreign_mask(float* out) {
  out[global_thread()] = __shfl_sync(0xffffu, 1.0f, 0);
}

__global__ void exited_lane(float* out) {
  if (threadIdx.x == 5) {
    return;
  }
  out[global_thread()] = __shfl_sync(kAll, 1.0f, 0);
}

__global__ void source_outside_mask(float* out) {
  const unsigned half = threadIdx.x % 32 / 16 * 16;
  out[global_thread()] = __shfl_sync(0xffffu << half, 1.0f, 20);
}

__global__ void early_exit(float* out) {
  if (threadIdx.x >= 64) {
    return;
  }
  __syncthreads();
  out[global_thread()] = 0;
}

template <int Offset>
__global__ void shared_neighbour(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  float* y = arena.take<float>(kThreads);
  y[threadIdx.x] = 0;
  (Offset > 0 ? x : y)[static_cast<int>(threadIdx.x) + Offset] = 0;
  __syncthreads();
  out[global_thread()] = y[threadIdx.x];
}

template <unsigned Offset>
__global__ void global_store(float* out) {
  out[global_thread() + Offset] = 0;
}

__global__ void arena_too_big(float* out) {
  SharedArena arena;
  out[global_thread()] = *arena.take<float>(kSharedBytes);
}

__global__ void uninitialized_shared(float* out) {
  SharedArena arena;
  out[global_thread()] = arena.take<float>(kThreads)[threadIdx.x];
}

__global__ void register_array_overrun(float* out) {
  float x[4] = {};
  out[global_thread()] = x[(threadIdx.x + 7) % 8];
}

__global__ void misaligned_vector(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kSharedBytes / 4);
  *reinterpret_cast<float4*>(x + threadIdx.x) = make_float4(0, 0, 0, 0);
  out[global_thread()] = 0;
}

__global__ void shift_overflow(float* out) {
  out[global_thread()] = static_cast<float>(0u << threadIdx.x);
}

__global__ void integer_overflow(float* out) {
  const int x = 0x7fffff00 + static_cast<int>(threadIdx.x);
  out[global_thread()] = x + 200 == 0 ? 1.0f : 0.0f;
}

template <bool Wait, bool Barrier>
__global__ void async_copy(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  cp_async<4>(x + threadIdx.x, out + threadIdx.x);
  cp_async_commit();
  if (Wait) {
    cp_async_wait<0>();
  }
  if (Barrier) {
    __syncthreads();
  }
  out[kThreads + threadIdx.x] = x[(threadIdx.x + 33) % kThreads];
}

template <int Pending>
__global__ void async_pipeline(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(2 * kThreads);
  for (int stage = 0; stage < 2; ++stage) {
    cp_async<4>(x + stage * kThreads + threadIdx.x, out + threadIdx.x);
    cp_async_commit();
  }
  cp_async_wait<Pending>();
  __syncthreads();
  out[kThreads + threadIdx.x] = x[kThreads + (threadIdx.x + 33) % kThreads];
}

__global__ void async_uncommitted(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  cp_async<4>(x + threadIdx.x, out + threadIdx.x);
  cp_async_wait<0>();
  __syncthreads();
  out[kThreads + threadIdx.x] = x[threadIdx.x];
}

__global__ void async_misaligned(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kSharedBytes / 4);
  cp_async<16>(x + threadIdx.x, out + 4 * threadIdx.x % 64);
  out[global_thread()] = 0;
}

__global__ void async_to_global(float* out) {
  cp_async<4>(out + threadIdx.x, out + threadIdx.x);
}

__global__ void ldmatrix_misaligned(float* out) {
  SharedArena arena;
  uint32_t r[4];
  ldmatrix(r, arena.take<float>(kSharedBytes / 4) + threadIdx.x);
  out[global_thread()] = 0;
}

__global__ void global_store_to_shared(float* out) {
  SharedArena arena;
  float* x = arena.take<float>(kThreads);
  __stcg(x + threadIdx.x, 0.0f);
  out[global_thread()] = x[threadIdx.x];
}

__global__ void ldmatrix_from_global(float* out) {
  uint32_t r[4];
  ldmatrix(r, out + threadIdx.x * 4);
  out[global_thread()] = 0;
}

struct Case {
  void (*kernel)(float*);
  unsigned blocks;
  float (*expected)(unsigned); // of out[i]
  unsigned threads = kThreads;
  size_t shared_bytes = kSharedBytes;
};

float zero(unsigned) {
  return 0.0f;
}
float rotated(unsigned i) {
  return static_cast<float>((i + 33) % kThreads);
}
float pairs(unsigned i) {
  return static_cast<float>(i % kThreads ^ 1);
}
float sums(unsigned) {
  return 3 * 192.0f + 12;
}
float threads_in_block(unsigned) {
  return static_cast<float>(kThreads);
}
float grid_total(unsigned i) {
  return i == 0 ? 2.0f * kThreads : 0.0f;
}
float one(unsigned) {
  return 1.0f;
}
float four(unsigned i) {
  return i == kThreads || i == kThreads + 1 ? std::bit_cast<float>(4u) : 0.0f;
}

const std::map<std::string, Case> kCases = {
    {"arena_too_big", {arena_too_big, 1, zero}},
    {"async_misaligned", {async_misaligned, 1, zero}},
    {"async_ok", {async_copy<true, true>, 1, zero}},
    {"async_pipeline_ok", {async_pipeline<0>, 1, zero}},
    {"async_pipeline_short_wait", {async_pipeline<1>, 1, zero}},
    {"async_to_global", {async_to_global, 1, zero}},
    {"async_uncommitted", {async_uncommitted, 1, zero}},
    {"async_without_barrier", {async_copy<true, false>, 1, zero}},
    {"async_without_wait", {async_copy<false, true>, 1, zero}},
    {"block_count_ok", {block_count<true>, 2, threads_in_block}},
    {"block_count_race", {block_count<false>, 2, threads_in_block}},
    {"chained_blocks_by_index", {chained_blocks<false>, 4, four}},
    {"divergent_shuffle", {divergent_shuffle, 1, zero}},
    {"early_exit_ok", {early_exit, 2, zero}},
    {"exited_lane", {exited_lane, 1, zero}},
    {"foreign_mask", {foreign_mask, 1, one}},
    {"global_overrun", {global_store<1>, 2, zero}},
    {"global_store_ok", {global_store<0>, 2, zero}},
    {"global_store_to_shared", {global_store_to_shared, 1, zero}},
    {"grid_sum_ok", {grid_sum<true>, 2, grid_total}},
    {"grid_sum_race", {grid_sum<false>, 2, grid_total}},
    {"half_a_barrier", {half_a_barrier, 1, zero}},
    {"integer_overflow", {integer_overflow, 1, zero}},
    {"launch_too_many_threads", {global_store<0>, 1, zero, 1056}},
    {"launch_too_much_shared", {global_store<0>, 1, zero, kThreads, 300 << 10}},
    {"ldmatrix_from_global", {ldmatrix_from_global, 1, zero}},
    {"ldmatrix_misaligned", {ldmatrix_misaligned, 1, zero}},
    {"misaligned_vector", {misaligned_vector, 1, zero}},
    {"read_after_write", {read_after_write<false>, 2, rotated}},
    {"read_after_write_ok", {read_after_write<true>, 2, rotated}},
    {"register_array_overrun", {register_array_overrun, 1, zero}},
    {"reused_scratch", {reused_scratch<false>, 2, sums}},
    {"reused_scratch_ok", {reused_scratch<true>, 2, sums}},
    {"shared_overrun", {shared_neighbour<1>, 1, zero}},
    {"shared_underrun", {shared_neighbour<-1>, 1, zero}},
    {"shift_overflow", {shift_overflow, 1, zero}},
    {"source_outside_mask", {source_outside_mask, 1, one}},
    {"ticketed_blocks_ok", {chained_blocks<true>, 4, four}},
    {"two_barrier_sites", {two_barrier_sites, 1, zero}},
    {"two_masks", {two_masks, 1, one}},
    {"uninitialized_shared", {uninitialized_shared, 1, zero}},
    {"warp_exchange", {warp_exchange<false>, 2, pairs}},
    {"warp_exchange_ok", {warp_exchange<true>, 2, pairs}},
    {"write_after_read", {write_after_read<false>, 2, rotated}},
    {"write_after_read_ok", {write_after_read<true>, 2, rotated}},
};

int run(const Case& c, unsigned seed) {
  std::vector<float> out(2 * kThreads);
  emulator::schedule = {seed, 1};
  try {
    launch(c.kernel, dim3(c.blocks), dim3(c.threads), c.shared_bytes, nullptr, out.data());
  } catch (const std::runtime_error& error) {
    std::printf("error: %s\n", error.what());
    return 2;
  }
  for (unsigned i = 0; i < out.size(); ++i) {
    if (out[i] != c.expected(i)) {
      std::printf("wrong: out[%u] = %g\n", i, static_cast<double>(out[i]));
      return 3;
    }
  }
  return 0;
}

} // namespace

int main(int argc, char** argv) {
  if (argc == 3) {
    return run(kCases.at(argv[1]), static_cast<unsigned>(std::stoul(argv[2])));
  }
  for (const auto& entry : kCases) {
    std::puts(entry.first.c_str());
  }
  return 0;
}
