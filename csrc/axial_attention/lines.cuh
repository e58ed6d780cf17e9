// Which token is where in the lines of an axis, and which warp owns which lines.
//
// A line is its L tokens followed by [CLS] if there is one: `keys` rows, each a query and a key. A
// tile is as many whole lines of one clip as fit its rows. A unit is the work of one warp, or of a
// team of warps: one head and a chunk of consecutive tiles of one axis. Heads vary fastest, so that
// the warps of a block together read whole token rows. All axes of a call share one range of units.
// The number of tiles of a chunk follows from the device, so sums over units repeat on one model of
// GPU only.
#pragma once
#include "axial_attention/arguments.hpp"
#include "axial_attention/cuda_tuning.cuh"
#include "cuda/platform.cuh"

#include <algorithm>
#include <stdexcept>

namespace vimpac {

struct AxialAxis {
  int id;             // 0 T, 1 H, 2 W: part of the dropout counter
  int length;         // tokens of a line
  int keys;           // rows of a line
  int lines;          // of a clip
  int inner;          // tokens from one token of a line to the next
  int first_head;     // of the axis' group of heads
  int lines_per_tile; // whole lines only
  int chunks;         // of a clip and head
  unsigned first_unit;

  // Number in the clip of token i of a line; lines are numbered as reference.to_lines orders them.
  __host__ __device__ int token(int line, int i) const {
    return (line / inner * length + i) * inner + line % inner;
  }
};

struct AxialProblem {
  int clips, tokens, heads, head_dim, num_axes, group_heads, tiles_per_chunk;
  int parts;   // of the result: 1 forward, 3 backward
  int longest; // rows of the longest lines
  bool has_cls;
  unsigned units;
  float scale;
  unsigned threshold;     // a 16-bit dropout decision below it drops; 0: no dropout
  const uint8_t* padding; // (B, T, H, W), or null
  const int64_t* seed;    // read on the device, iff threshold > 0
  int64_t clip_stride, row_stride, part_stride, head_stride; // of qkv (B, S, 3, N, Dh), in elements
  // Scratch memory: sums over rows of each unit.
  float* cls_sums;  // (units, parts, Dh) of [CLS]; null without
  float* bias_sums; // (units, 2, Dh) of dq and dv; null: not wanted
  AxialAxis axes[3];

  __host__ __device__ int rows() const { return tokens + has_cls; }
  // Offset of a clip and head in a contiguous (B, S, parts, N, Dh), whose rows are
  // parts * heads * head_dim apart.
  __host__ __device__ int64_t offset(int clip, int head, int parts) const {
    return (int64_t{clip} * rows() * parts * heads + head) * head_dim;
  }
  // First line of a chunk, of the clip.
  __host__ __device__ int first_line(const AxialAxis& axis, int chunk) const {
    const int line = chunk * tiles_per_chunk * axis.lines_per_tile;
    return line < axis.lines ? line : axis.lines;
  }
  // Past the last tile of a chunk.
  __host__ __device__ int end_tile(const AxialAxis& axis, int chunk) const {
    const int end = (chunk + 1) * tiles_per_chunk;
    const int tiles = (axis.lines + axis.lines_per_tile - 1) / axis.lines_per_tile;
    return end < tiles ? end : tiles;
  }
  __host__ __device__ int64_t qkv_offset(int clip, int head) const {
    return clip * clip_stride + head * head_stride;
  }
};

// The arguments, and the sizes that follow from them.
struct AxialCall : AxialAttention {
  explicit AxialCall(const AxialAttention& args)
      : AxialAttention(args), T(static_cast<int>(grid[0])), H(static_cast<int>(grid[1])),
        W(static_cast<int>(grid[2])), heads(static_cast<int>(qkv.sizes[3])),
        head_dim(static_cast<int>(qkv.sizes[4])), num_axes(axes[1] < 0   ? 1
                                                           : axes[2] < 0 ? 2
                                                                         : 3),
        has_cls(qkv.sizes[1] != int64_t{T} * H * W) {}

  int T, H, W, heads, head_dim;
  int num_axes; // groups of heads
  bool has_cls;

  void* result() const { return out.data != nullptr ? out.data : dqkv.data; }
};

struct AxialUnit {
  int axis, clip, chunk, head; // head counts over all groups
};

__host__ __device__ inline AxialUnit find_unit(const AxialProblem& p, unsigned unit) {
  int a = 0;
  while (a + 1 < p.num_axes && unit >= p.axes[a + 1].first_unit) {
    ++a;
  }
  const unsigned local = unit - p.axes[a].first_unit, heads = static_cast<unsigned>(p.group_heads);
  const unsigned rest = local / heads, chunks = static_cast<unsigned>(p.axes[a].chunks);
  return {a, static_cast<int>(rest / chunks), static_cast<int>(rest % chunks),
          p.axes[a].first_head + static_cast<int>(local % heads)};
}

// The unit of chunk 0; chunk i of the same clip and head is i * group_heads further.
__host__ __device__ inline unsigned
first_unit(const AxialProblem& p, int axis, int clip, int head) {
  const AxialAxis& x = p.axes[axis];
  return x.first_unit +
         static_cast<unsigned>(clip) * static_cast<unsigned>(x.chunks) *
             static_cast<unsigned>(p.group_heads) +
         static_cast<unsigned>(head - x.first_head);
}

inline int divide_up(int a, int b) {
  return (a + b - 1) / b;
}

// Elements of the [CLS] sums of all units.
inline int64_t cls_elements(const AxialProblem& p) {
  return p.has_cls ? int64_t{p.units} * p.parts * p.head_dim : 0;
}

// Elements of scratch memory.
inline int64_t workspace_elements(const AxialProblem& p, const AxialCall& call) {
  return cls_elements(p) + (call.dbias == nullptr ? 0 : int64_t{p.units} * 2 * p.head_dim);
}

// Chunks of `tiles` tiles; returns the units.
inline uint64_t cut_chunks(AxialProblem& p, int tiles) {
  uint64_t units = 0;
  p.tiles_per_chunk = tiles;
  for (int a = 0; a < p.num_axes; ++a) {
    AxialAxis& axis = p.axes[a];
    axis.chunks = divide_up(axis.lines, axis.lines_per_tile * tiles);
    axis.first_unit = static_cast<unsigned>(units);
    units += static_cast<uint64_t>(p.clips) * static_cast<uint64_t>(axis.chunks) *
             static_cast<uint64_t>(p.group_heads);
  }
  return units;
}

// `tile_rows` is the number of rows of a tile, `resident` the number of units that the device works
// on at a time. The length of the chunks is the one that takes the least time: whole waves of
// units, each as long as its tiles and the fixed cost of a unit.
inline AxialProblem plan_axes(const AxialCall& call, int tile_rows, unsigned resident) {
  AxialProblem p{};
  const int T = call.T, H = call.H, W = call.W;
  p.clips = static_cast<int>(call.qkv.sizes[0]);
  p.tokens = T * H * W;
  p.heads = call.heads;
  p.head_dim = call.head_dim;
  p.num_axes = call.num_axes;
  p.group_heads = call.heads / p.num_axes;
  p.has_cls = call.has_cls;
  p.scale = call.scale;
  p.threshold = static_cast<unsigned>(call.threshold);
  p.clip_stride = call.qkv.strides[0];
  p.row_stride = call.qkv.strides[1];
  p.part_stride = call.qkv.strides[2];
  p.head_stride = call.qkv.strides[3];
  p.padding = call.key_padding_mask;
  p.seed = call.seed;
  p.parts = call.dout.data == nullptr ? 1 : 3;
  for (int a = 0; a < p.num_axes; ++a) {
    AxialAxis& axis = p.axes[a];
    axis.id = call.axes[a];
    axis.first_head = a * p.group_heads;
    axis.length = axis.id == 0 ? T : axis.id == 1 ? H : W;
    axis.inner = axis.id == 0 ? H * W : axis.id == 1 ? W : 1;
    axis.keys = axis.length + p.has_cls;
    axis.lines = p.tokens / axis.length;
    p.longest = std::max(p.longest, axis.keys);
    axis.lines_per_tile = tile_rows / axis.keys;
  }
  int best = 1;
  uint64_t least = ~uint64_t{0};
  for (int tiles = 1; tiles <= kAxialMostTiles; ++tiles) {
    const uint64_t waves = (cut_chunks(p, tiles) + resident - 1) / resident;
    const uint64_t time = waves * static_cast<uint64_t>(16 * tiles + kAxialUnitCost);
    if (time <= least) {
      least = time;
      best = tiles;
    }
  }
  const uint64_t units = cut_chunks(p, best);
  if (units >= 1u << 31) {
    throw std::invalid_argument("axial_attention: more lines than one launch takes");
  }
  p.units = static_cast<unsigned>(units);
  if (call.workspace != nullptr) {
    p.cls_sums = p.has_cls ? call.workspace : nullptr;
    p.bias_sums = call.dbias != nullptr ? call.workspace + cls_elements(p) : nullptr;
  }
  return p;
}

} // namespace vimpac
