// The positions of the tokens of an axis, which both CPU kernels of axial_attention use.
#pragma once

#include "axial_attention/arguments.hpp"
#include "common/philox.hpp"

namespace vimpac {
namespace {

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The arguments, and the sizes that follow from them.
struct AxialCall : AxialAttention {
  explicit AxialCall(const AxialAttention& args)
      : AxialAttention(args), B(qkv.sizes[0]), N(qkv.sizes[3]), Dh(qkv.sizes[4]),
        tokens(grid[0] * grid[1] * grid[2]), has_cls(qkv.sizes[1] != tokens),
        num_axes(axes[1] < 0   ? 1
                 : axes[2] < 0 ? 2
                               : 3),
        kept_scale(keep_scale(threshold)) {}

  int64_t B, N, Dh, tokens; // tokens of a clip, without [CLS]
  bool has_cls;
  int num_axes; // groups of heads
  float kept_scale;
};

// One axis: its heads, the positions of the tokens of its lines, and its share of a clip's tasks.
struct Axis {
  int id; // 0 T, 1 H, 2 W, 3 HW, 4 THW
  int64_t first_head, heads, lines, length, token_step, tasks, first_task;

  // Token number (row without [CLS]) of the line's first token.
  int64_t first_token(int64_t line, int64_t H, int64_t W) const {
    return id == 0 ? line : id == 1 ? line / W * H * W + line % W : line * length;
  }
};

// The axis of a group of heads; `tasks` and `first_task` are left 0.
inline Axis axis_of_group(const AxialCall& a, int group) {
  const int id = a.axes[group];
  const int64_t T = a.grid[0], H = a.grid[1], W = a.grid[2], heads = a.N / a.num_axes;
  const int64_t lengths[] = {T, H, W, H * W, T * H * W}, steps[] = {H * W, W, 1, 1, 1};
  return {id, group * heads, heads, T * H * W / lengths[id], lengths[id], steps[id], 0, 0};
}

inline int64_t longest_line(const AxialCall& a) {
  int64_t longest = 0;
  for (int g = 0; g < a.num_axes; ++g) {
    const int64_t length = axis_of_group(a, g).length;
    longest = length > longest ? length : longest;
  }
  return longest;
}

} // namespace

namespace VIMPAC_ISA { // in cpu_long.cpp
bool axial_attention_long_fwd(const AxialAttention& args);
bool axial_attention_long_bwd(const AxialAttention& args);
} // namespace VIMPAC_ISA
} // namespace vimpac
