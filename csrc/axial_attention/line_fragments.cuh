// Rows of a tile as matrix fragments, loaded (line_operand.cuh) and stored 16 bytes at a time.
//
// The rows of a tile come in octets, their elements in blocks of 32. A Chunk is the part of one
// octet and block that lane 4 g + c holds: elements 8 c .. 8 c + 7 of row g. A product may contract
// in any order, so words 2 s and 2 s + 1 of a chunk can be used directly as the two halves of step
// s of a 16-wide contraction over the elements, for both operands. Transposed in place (word i
// becomes rows 2 c and 2 c + 1 of element 8 (g / 2) + 2 i + g % 2), a chunk is the operand of a
// contraction over the rows. The result of that, fp32 d[4][4], is again in the order of a chunk:
// element 8 c + 2 i + e of row g is d[i][e], of row g + 8 it is d[i][2 + e].
#pragma once
#include "axial_attention/cuda_tuning.cuh"
#include "cuda/mma.cuh"
#include "cuda/vector.cuh"

namespace vimpac {

struct Chunk {
  uint32_t w[4];
};

// The 16 x 16 operand of a product: quarters (row, column) in the order (0,0) (1,0) (0,1) (1,1).
struct Fragment {
  uint32_t w[4];
};

__device__ __forceinline__ Chunk transpose(const Chunk& x) {
  return {transpose_8x8(x.w[0]), transpose_8x8(x.w[1]), transpose_8x8(x.w[2]),
          transpose_8x8(x.w[3])};
}

__device__ __forceinline__ Fragment transpose(const Fragment& x) {
  return {transpose_8x8(x.w[0]), transpose_8x8(x.w[2]), transpose_8x8(x.w[1]),
          transpose_8x8(x.w[3])};
}

// d += (rows of octets a0 and a1) (rows of octet b)^T over a block of 32 elements.
template <class T>
__device__ __forceinline__ void
multiply_rows(float (&d)[4], const Chunk& a0, const Chunk& a1, const Chunk& b) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    mma_m16n8k16<T>(d, {a0.w[2 * s], a1.w[2 * s], a0.w[2 * s + 1], a1.w[2 * s + 1]},
                    {b.w[2 * s], b.w[2 * s + 1]}, d);
  }
}

// d += weights (16 x 16) times 16 rows, given as the columns of their two octets.
template <class T>
__device__ __forceinline__ void
multiply_columns(float (&d)[4][4], const Fragment& weights, const Chunk& low, const Chunk& high) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    mma_m16n8k16<T>(d[i], weights.w, {low.w[i], high.w[i]}, d[i]);
  }
}

// Columns 16 j .. 16 j + 15 of fp32 weights, rounded to T.
template <class T, int kOctets>
__device__ __forceinline__ Fragment round_weights(const float (&x)[kOctets][4], int j) {
  Fragment f{};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (2 * j + half < kOctets) {
      f.w[2 * half] = pack<T>(x[2 * j + half][0], x[2 * j + half][1]);
      f.w[2 * half + 1] = pack<T>(x[2 * j + half][2], x[2 * j + half][3]);
    }
  }
  return f;
}

// Of the two rows of a lane among 16, those that are [CLS]; `any` is of all lanes.
struct ClsRows {
  bool own[2], any;
};

// Where the rows of a kernel's result go: tokens to memory, [CLS] nowhere. `rows` is as in Operand.
template <class T>
class RowSink {
  T* base_; // element 8 c of row 0
  int64_t stride_;
  int first_; // row of a token

public:
  __device__ __forceinline__ RowSink(T* base, int64_t stride, bool has_cls)
      : base_(base + threadIdx.x % 4 * 8), stride_(stride), first_(has_cls) {}

  // Rows of octets 2 m and 2 m + 1, one block.
  __device__ __forceinline__ void
  store(const float (&d)[4][4], const int* rows, int m, int block) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = rows[8 * (2 * m + half)];
      if (row < first_) {
        continue;
      }
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = pack<T>(d[i][2 * half], d[i][2 * half + 1]);
      }
      store16<kAxialStore>(reinterpret_cast<uint32_t*>(base_ + row * stride_ + 32 * block), words);
    }
  }
  // Of the same octets.
  __device__ __forceinline__ ClsRows cls(const int* rows, int m) const {
    const bool low = first_ == 1 && rows[16 * m] == 0, high = first_ == 1 && rows[16 * m + 8] == 0;
    return {{low, high}, __any_sync(~0u, low || high) != 0};
  }
};

// Sums over rows of results, one block of 32 elements: first each lane's elements 8 c .. 8 c + 7
// over the rows that it holds, then over the lanes.
class RowSums {
  float x_[8] = {};

public:
  // Adds those of 16 rows that are [CLS].
  __device__ __forceinline__ void add(const float (&d)[4][4], const ClsRows& cls) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x_[i] += (cls.own[0] ? d[i / 2][i % 2] : 0.0f) + (cls.own[1] ? d[i / 2][2 + i % 2] : 0.0f);
    }
  }
  // Adds all rows.
  __device__ __forceinline__ void add(const float (&d)[4][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x_[i] += d[i / 2][i % 2] + d[i / 2][2 + i % 2];
    }
  }
  // The sum of element 8 c + g: each exchange halves the lanes that add to an element.
  __device__ __forceinline__ float total() {
#pragma unroll
    for (int n = 4; n > 0; n /= 2) {
      const bool upper = (threadIdx.x & (4u * static_cast<unsigned>(n))) != 0;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float mine = upper ? x_[i + n] : x_[i], other = upper ? x_[i] : x_[i + n];
        x_[i] = mine + __shfl_xor_sync(~0u, other, 4 * n);
      }
    }
    return x_[0];
  }
};

// The place of what total() returns in a block.
__device__ __forceinline__ int sum_element() {
  return static_cast<int>(threadIdx.x % 4 * 8 + threadIdx.x % 32 / 4);
}

} // namespace vimpac
