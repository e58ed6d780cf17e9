// The emulated counterparts of the wrappers in csrc/cuda/mma.cuh; fragments as described there.
#pragma once
#include "shared_arena.hpp"
#include "sync.hpp"

#include <type_traits>

namespace emulator {

inline float widen(uint16_t bits, __nv_bfloat16* /*type*/) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}
inline float widen(uint16_t bits, __half* /*type*/) {
  const uint32_t magnitude = uint32_t{bits} << 13 & 0x0fffe000u, sign = uint32_t{bits} >> 15 << 31;
  const bool finite = (bits & 0x7c00) != 0x7c00;
  const float value = finite ? std::bit_cast<float>(magnitude) * 0x1p112f // exact, subnormals too
                             : std::bit_cast<float>(magnitude | 0x7f800000u);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

struct MmaOperand {
  const uint32_t *a, *b;
  const float* c;
  float* d;
};

// a (16, 16) and b (16, 8) from the fragments of 32 lanes; d = a b + c back into theirs.
template <class T>
void multiply_fragments(MmaOperand** lanes) {
  constexpr T* kType = nullptr;
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, column = lane % 4 * 2;
    uint16_t av[8], bv[4];
    std::memcpy(av, lanes[lane]->a, sizeof(av));
    std::memcpy(bv, lanes[lane]->b, sizeof(bv));
    for (int i = 0; i < 8; ++i) {
      a[group + i / 2 % 2 * 8][column + i / 4 * 8 + i % 2] = widen(av[i], kType);
    }
    for (int i = 0; i < 4; ++i) {
      b[column + i / 2 * 8 + i % 2][group] = widen(bv[i], kType);
    }
    for (int i = 0; i < 4; ++i) {
      d[group + i / 2 * 8][column + i % 2] = lanes[lane]->c[i];
    }
  }
  for (int m = 0; m < 16; ++m) {
    float sum[8] = {};
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) {
        sum[n] += a[m][k] * b[k][n];
      }
    }
    for (int n = 0; n < 8; ++n) {
      d[m][n] += sum[n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      lanes[lane]->d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
}

} // namespace emulator

namespace vimpac {

template <class T>
void mma_m16n8k16(float (&d)[4],
                  const uint32_t (&a)[4],
                  const uint32_t (&b)[2],
                  const float (&c)[4],
                  EMULATOR_HERE) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  emulator::MmaOperand mine{a, b, c, d};
  emulator::collective("mma_m16n8k16", ~0u, mine, emulator::multiply_fragments<T>, here);
}

template <bool Transpose = false, int N>
void ldmatrix(uint32_t (&out)[N], const void* row, EMULATOR_HERE) {
  static_assert(N == 1 || N == 2 || N == 4);
  struct Operand {
    uint16_t row[8];
    uint32_t* out;
  } mine{{}, out};
  if (emulator::current->lane < 8 * N) {
    if (!emulator::in_shared(row, 16)) {
      emulator::fail("the row is not in shared memory", "ldmatrix", here);
    }
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      emulator::fail("the row is not aligned to 16 bytes", "ldmatrix", here);
    }
    for (int i = 0; i < 8; ++i) { // visible to the sanitizers, as memcpy may not be
      mine.row[i] = static_cast<const uint16_t*>(row)[i];
    }
  }
  const auto combine = [](Operand** lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < N; ++i) {
        uint32_t pair[2];
        for (int e = 0; e < 2; ++e) {
          const int r = lane / 4, c = lane % 4 * 2 + e;
          pair[e] = Transpose ? lanes[8 * i + c]->row[r] : lanes[8 * i + r]->row[c];
        }
        lanes[lane]->out[i] = pair[0] | pair[1] << 16;
      }
    }
  };
  emulator::collective("ldmatrix", ~0u, mine, combine, here);
}

inline uint32_t transpose_8x8(uint32_t x, EMULATOR_HERE) {
  struct Operand {
    uint16_t in[2];
    uint32_t out;
  } mine{{static_cast<uint16_t>(x), static_cast<uint16_t>(x >> 16)}, 0};
  const auto combine = [](Operand** lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      const int column = lane / 4, row = lane % 4 * 2;
      const uint32_t low = lanes[4 * row + column / 2]->in[column % 2];
      const uint32_t high = lanes[4 * row + 4 + column / 2]->in[column % 2];
      lanes[lane]->out = low | high << 16;
    }
  };
  emulator::collective("transpose_8x8", ~0u, mine, combine, here);
  return mine.out;
}

// The copy takes place when it is waited for; until then the destination reads as NaN. Copies go
// word by word, since sanitizers do not see what the compiler makes of a short memcpy.
template <int Bytes>
void cp_async(void* dst, const void* src, bool valid = true, EMULATOR_HERE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if (!emulator::in_shared(dst, Bytes)) {
    emulator::fail("the destination is not in shared memory", "cp_async", here);
  }
  if (reinterpret_cast<uintptr_t>(dst) % Bytes != 0 ||
      (valid && reinterpret_cast<uintptr_t>(src) % Bytes != 0)) {
    emulator::fail("an address is not aligned to " + std::to_string(Bytes) + " bytes", "cp_async",
                   here);
  }
  for (int i = 0; i < Bytes / 4; ++i) {
    static_cast<uint32_t*>(dst)[i] = ~0u;
  }
  emulator::Unchecked scope;
  emulator::current->copies.back().push_back({static_cast<uint32_t*>(dst),
                                              valid ? static_cast<const uint32_t*>(src) : nullptr,
                                              Bytes / 4});
}

inline void cp_async_commit() {
  emulator::Unchecked scope;
  emulator::current->copies.emplace_back();
}

template <int Pending = 0>
void cp_async_wait() {
  auto& groups = emulator::current->copies;
  while (groups.size() > Pending + 1) { // the open group does not count
    for (const emulator::AsyncCopy& copy : groups.front()) {
      for (int i = 0; i < copy.words; ++i) {
        copy.dst[i] = copy.src != nullptr ? copy.src[i] : 0;
      }
    }
    emulator::Unchecked scope;
    groups.erase(groups.begin());
  }
}

} // namespace vimpac
