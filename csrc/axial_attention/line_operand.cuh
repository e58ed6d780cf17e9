// q, k, v and dout of a tile: loaded once, used many times.
//
// A lane's operand of a product is what the lane itself has loaded, so no data passes between lanes
// and no barrier is needed. In shared memory, lane l's chunk of an octet and block is the l-th 16
// bytes of their 512. Eight neighbouring lanes, which a GPU serves at a time, then cover all 32
// banks once, without a swizzle.
//
// The warps of a team share a tile. Each copies and transposes its own 16 rows: octets 2 w and 2 w
// + 1 for warp w. A barrier must follow before another warp reads them.
#pragma once
#include "axial_attention/line_fragments.cuh"

namespace vimpac {

__device__ __forceinline__ uint4 to_uint4(const Chunk& x) {
  return {x.w[0], x.w[1], x.w[2], x.w[3]};
}
__device__ __forceinline__ Chunk from_uint4(const uint4& x) {
  return {x.x, x.y, x.z, x.w};
}

enum class Keep {
  kNowhere, // every use loads again, which the L1 cache serves
  kStaged,  // in shared memory
  kHeld,    // in registers
};

// `rows` lists the rows of a tile for this lane: entry 8 o is a row of the sequence, or -1.
template <class T, int kOctets, int kBlocks, Keep kKeep, bool kTeam = false>
class Operand {
  static constexpr bool kHeld = kKeep == Keep::kHeld, kStaged = kKeep == Keep::kStaged;
  static constexpr int kShare = kTeam ? 2 : kOctets; // octets that this warp copies and transposes
  static constexpr int kOwn = kHeld || kStaged ? kOctets : 1;
  const T* base_; // element 8 c of row 0
  int64_t stride_;
  const int* rows_ = nullptr;
  uint4* stage_;             // this lane's chunk of octet 0, block 0
  Chunk own_[kOwn][kBlocks]; // held; or of the next tile, on its way to the stage

  __device__ __forceinline__ Chunk load(const int* rows, int octet, int block) const {
    const int row = rows[8 * octet];
    Chunk chunk{};
    if (row >= 0) {
      load16_readonly(chunk.w,
                      reinterpret_cast<const uint32_t*>(base_ + row * stride_ + 32 * block));
    }
    return chunk;
  }
  __device__ __forceinline__ uint4& place(int octet, int block) const {
    return stage_[(octet * kBlocks + block) * 32];
  }
  // Octet i of the share; past the last octet where a tile ends within the share.
  static __device__ __forceinline__ int octet_of(int i) {
    return kTeam ? 2 * static_cast<int>(threadIdx.x / 32) + i : i;
  }

public:
  static constexpr int kStage = kStaged ? kOctets * kBlocks * 32 : 0; // of uint4, for a unit

  __device__ __forceinline__ Operand(const T* base, int64_t stride, uint4* stage)
      : base_(base + threadIdx.x % 4 * 8), stride_(stride), stage_(stage + threadIdx.x % 32) {}

  // Starts to load a tile into registers; a staged tile may still be used.
  __device__ __forceinline__ void prefetch(const int* rows) {
    rows_ = rows;
    if constexpr (kHeld || kStaged) {
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          own_[o][b] = load(rows, o, b);
        }
      }
    }
  }
  // Writes the prefetched tile to shared memory, over the staged one.
  __device__ __forceinline__ void stage() {
    if constexpr (kStaged) {
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          place(o, b) = to_uint4(own_[o][b]);
        }
      }
    }
  }
  // Starts to copy a tile to shared memory, over the staged one, without registers. It has arrived
  // after cp_async_commit() and cp_async_wait().
  __device__ __forceinline__ void copy(const int* rows) {
    if constexpr (kStaged) {
#pragma unroll
      for (int i = 0; i < kShare; ++i) {
        const int o = octet_of(i), row = rows[8 * o];
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          if (o < kOctets) {
            cp_async<16>(&place(o, b), base_ + max(row, 0) * stride_ + 32 * b, row >= 0);
          }
        }
      }
    } else {
      prefetch(rows);
    }
  }

  // Octets past the last are zero.
  __device__ __forceinline__ Chunk operator()(int octet, int block) const {
    if constexpr (kHeld) {
      return octet < kOctets ? own_[octet < kOctets ? octet : 0][block] : Chunk{};
    } else if constexpr (kStaged) {
      return octet < kOctets ? from_uint4(place(octet, block)) : Chunk{};
    } else {
      return load(rows_, octet, block);
    }
  }
  // For a contraction over the rows.
  __device__ __forceinline__ Chunk columns(int octet, int block) const {
    return octet < kOctets ? transpose((*this)(octet, block)) : Chunk{};
  }

  // Transposes the kept chunks once, for all uses. After it, call only transposed().
  __device__ __forceinline__ void transpose_in_place() {
    if constexpr (kHeld || kStaged) {
#pragma unroll
      for (int i = 0; i < kShare; ++i) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          if constexpr (kHeld) {
            own_[i][b] = transpose(own_[i][b]);
          } else if (const int o = octet_of(i); o < kOctets) {
            place(o, b) = to_uint4(transpose(from_uint4(place(o, b))));
          }
        }
      }
    }
  }
  __device__ __forceinline__ Chunk transposed(int octet, int block) const {
    if constexpr (kHeld || kStaged) {
      return (*this)(octet, block);
    } else {
      return columns(octet, block);
    }
  }
};

} // namespace vimpac
