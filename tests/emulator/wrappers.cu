// Calls each wrapper of mma.cuh from one warp, on a device or emulated. Operands lie by lane.
#include "cuda/mma.cuh"

#include <string>

namespace vimpac {
namespace {

// in: a (32, 4), b (32, 2) words and c (32, 4) floats; out: d (32, 4) floats.
template <class T>
__global__ void mma_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t a[4], b[2];
  float c[4], d[4];
  for (int i = 0; i < 4; ++i) {
    a[i] = in[4 * lane + i];
  }
  for (int i = 0; i < 2; ++i) {
    b[i] = in[128 + 2 * lane + i];
  }
  for (int i = 0; i < 4; ++i) {
    c[i] = __uint_as_float(in[192 + 4 * lane + i]);
  }
  mma_m16n8k16<T>(d, a, b, c);
  for (int i = 0; i < 4; ++i) {
    out[4 * lane + i] = __float_as_uint(d[i]);
  }
}

// in: 32 rows of 4 words, row 8 i + r being row r of matrix i; out: (32, N) words.
template <bool Transpose, int N>
__global__ void ldmatrix_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  SharedArena arena;
  uint32_t* rows = arena.take<uint32_t>(128);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) {
    rows[4 * lane + i] = in[4 * lane + i];
  }
  __syncwarp();
  uint32_t r[N];
  ldmatrix<Transpose>(r, rows + 4 * lane);
  for (int i = 0; i < N; ++i) {
    out[N * lane + i] = r[i];
  }
}

// in and out: (32,) words.
__global__ void transpose_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = transpose_8x8(in[lane]);
}

// in and out: (2, 32, Bytes / 4) words, copied in two groups; the odd lanes' copies are invalid.
template <int Bytes>
__global__ void cp_async_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  constexpr int kWords = Bytes / 4;
  SharedArena arena;
  uint32_t* copy = arena.take<uint32_t>(2 * 32 * kWords);
  const int lane = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 2; ++group) {
    const int first = (group * 32 + lane) * kWords;
    cp_async<Bytes>(copy + first, in + first, lane % 2 == 0);
    cp_async_commit();
  }
  cp_async_wait<1>();
  for (int i = 0; i < kWords; ++i) {
    out[lane * kWords + i] = copy[lane * kWords + i];
  }
  cp_async_wait<0>();
  for (int i = 0; i < kWords; ++i) {
    out[(32 + lane) * kWords + i] = copy[(32 + lane) * kWords + i];
  }
}

// in: (32, 2) floats; out: (32,) words.
template <class T>
__global__ void pack_kernel(const uint32_t* __restrict__ in, uint32_t* __restrict__ out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane] = pack<T>(__uint_as_float(in[2 * lane]), __uint_as_float(in[2 * lane + 1]));
}

struct Wrapper {
  const char* name;
  void (*kernel)(const uint32_t*, uint32_t*);
};

const Wrapper kWrappers[] = {
    {"mma_bf16", mma_kernel<__nv_bfloat16>},
    {"mma_fp16", mma_kernel<__half>},
    {"ldmatrix_x1", ldmatrix_kernel<false, 1>},
    {"ldmatrix_x2", ldmatrix_kernel<false, 2>},
    {"ldmatrix_x4", ldmatrix_kernel<false, 4>},
    {"ldmatrix_x1_trans", ldmatrix_kernel<true, 1>},
    {"ldmatrix_x2_trans", ldmatrix_kernel<true, 2>},
    {"ldmatrix_x4_trans", ldmatrix_kernel<true, 4>},
    {"transpose_8x8", transpose_kernel},
    {"cp_async_4", cp_async_kernel<4>},
    {"cp_async_8", cp_async_kernel<8>},
    {"cp_async_16", cp_async_kernel<16>},
    {"pack_bf16", pack_kernel<__nv_bfloat16>},
    {"pack_fp16", pack_kernel<__half>},
};

} // namespace
} // namespace vimpac

// Runs the wrapper `name` on device pointers (host pointers when emulated); 0 if there is one.
extern "C" __attribute__((visibility("default"))) int
run_wrapper(const char* name, const uint32_t* in, uint32_t* out) {
  for (const vimpac::Wrapper& w : vimpac::kWrappers) {
    if (std::string(name) != w.name) {
      continue;
    }
    vimpac::launch(w.kernel, dim3(1), dim3(32), 2048, nullptr, in, out);
    return 0;
  }
  return 1;
}
