// axial_attention on the CPU. A task owns kTaskLines consecutive lines of one axis of one clip, for
// all heads of the axis, so that a token's row is used as a whole. For each line: gather q, k, v
// (and dout) of a head into fp32 tiles, with [CLS] as the last row; compute scores; softmax of
// several heads at once, with queries in lanes; multiply; scatter. Meanwhile the inputs of the next
// phase are prefetched. q, k, v and dout are read once and the result is written once: bound by
// memory. A bias is added as q, k, v are read. Sums over lines, for [CLS] and for the bias's
// gradient, are kept per task and added in order, so results do not depend on the number of
// threads.
#include "axial_attention/arguments.hpp"
#include "axial_attention/axis.hpp"
#include "axial_attention/line_rows.hpp"
#include "axial_attention/line_softmax.hpp"
#include "axial_attention/small_matrix.hpp"
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

constexpr int64_t kTaskLines = 8;
constexpr int64_t kScores = 3072;             // floats of scores that stay in the first-level cache
constexpr int64_t kLine = 64 / sizeof(float); // floats of a cache line

// The tensors as one type and the plan of the call.
template <class T>
struct Problem {
  const AxialCall& a;
  const T* qkv;  // (B, S, 3, N, Dh)
  const T* dout; // (B, S, N, Dh)
  T* result;     // (B, S, N, Dh) or (B, S, 3, N, Dh)
  Axis axes[3];
  int64_t tokens, tasks, width; // tasks of one clip; floats of a tile's row
  // (B, tasks, 1 or 2, parts, heads of the axis, width): sums of [CLS], then those of the bias.
  float* partials;
  int64_t partial_stride;

  int64_t rows() const { return tokens + a.has_cls; }
  float* partial(int64_t b, const Axis& axis, int64_t chunk) const {
    return partials + (b * tasks + axis.first_task + chunk) * partial_stride;
  }
};

// The number of heads whose scores are side by side: a short line alone would leave most lanes
// empty.
int64_t heads_together(int64_t heads, int64_t keys) {
  const int64_t packs = (heads * keys * keys + kScores - 1) / kScores;
  return (heads + packs - 1) / packs;
}

// Row length of their scores.
int64_t score_columns(int64_t heads, int64_t keys) {
  return round_up(heads * keys, kWidth);
}

// Per-thread tiles, zeroed once. The forward uses the first head's q and k for all heads.
struct Tiles {
  float *v, *dout;              // (capacity, width)
  float *q, *k;                 // (capacity, width) every 2 * size floats, one per head
  float *scores, *dropped, *dp; // (keys, score_columns)
  float* transposed;            // (width, kWidth)
  uint8_t* hidden;              // (keys,)
  int64_t size;                 // capacity * width
};

// Room for the lines of every axis of a call.
struct TileSizes {
  int64_t width, keys = 0, heads = 0, matrix = 0;

  void fit(int64_t axis_heads, int64_t axis_keys) {
    const int64_t together = heads_together(axis_heads, axis_keys);
    const int64_t scores = axis_keys * score_columns(together, axis_keys);
    keys = axis_keys > keys ? axis_keys : keys;
    heads = together > heads ? together : heads;
    matrix = scores > matrix ? scores : matrix;
  }
  int64_t tile() const { return round_up(keys, 4) * width; }
  int64_t total() const {
    return (2 + 2 * heads) * tile() + 3 * matrix + width * kWidth + round_up(keys, kLine);
  }
  Tiles carve(float* p) const {
    float *const q = p + 2 * tile(), *const m = q + 2 * heads * tile();
    float* const transposed = m + 3 * matrix;
    uint8_t* const hidden = reinterpret_cast<uint8_t*>(transposed + width * kWidth);
    return {p,          p + tile(),     q,          q + tile(), m,
            m + matrix, m + 2 * matrix, transposed, hidden,     tile()};
  }
};

// One line of some heads of its axis: sizes and addresses that forward and backward share. A head
// is counted from the first of them.
template <class T>
struct Line {
  const Problem<T>& p;
  const Axis& axis;
  int64_t b, line, first_head, heads;
  int64_t length, keys, ld;
  int64_t first_row, next_row; // of the line's first token and, if there is one, of the next line's

  Line(const Problem<T>& p, const Axis& axis, int64_t b, int64_t line, int64_t head, int64_t heads)
      : p(p), axis(axis), b(b), line(line), first_head(head), heads(heads), length(axis.length),
        keys(length + p.a.has_cls), ld(score_columns(heads, keys)), first_row(row_of(line)),
        next_row(row_of(line + 1 < axis.lines ? line + 1 : line)) {}

  int64_t row_of(int64_t other) const {
    return axis.first_token(other, p.a.grid[1], p.a.grid[2]) + p.a.has_cls;
  }
  // q, k or v of the clip's first row.
  const T* part_of(int part, int64_t head) const {
    const int64_t* const strides = p.a.qkv.strides;
    return p.qkv + b * strides[0] + part * strides[2] + (first_head + head) * strides[3];
  }
  const T* dout_of(int64_t head) const {
    return p.dout + (b * p.rows() * p.a.N + first_head + head) * p.a.Dh;
  }

  // q, k or v of every token and of [CLS] into a tile.
  void gather_part(int part, int64_t head, float scale, float* tile) const {
    const T* const clip = part_of(part, head);
    const int64_t row = p.a.qkv.strides[1];
    const int64_t step = axis.token_step * row;
    const float* const bias =
        p.a.bias == nullptr ? nullptr : p.a.bias + (part * p.a.N + first_head + head) * p.a.Dh;
    gather(clip + first_row * row, bias, step, length, p.a.Dh, p.width, scale, tile);
    if (p.a.has_cls) {
      gather_row(clip, bias, p.a.Dh, scale, tile + length * p.width);
    }
  }

  void gather_dout(int64_t head, float* tile) const {
    const T* const clip = dout_of(head);
    const int64_t row = p.a.N * p.a.Dh;
    const int64_t step = axis.token_step * row;
    gather(clip + first_row * row, nullptr, step, length, p.a.Dh, p.width, 1.0f, tile);
    if (p.a.has_cls) {
      gather_row(clip, nullptr, p.a.Dh, 1.0f / axis.lines, tile + length * p.width);
    }
  }

  VIMPAC_INLINE void prefetch_part(int part, int64_t head, int64_t from_row) const {
    const int64_t row = p.a.qkv.strides[1];
    prefetch(part_of(part, head) + from_row * row, axis.token_step * row, length, p.a.Dh);
  }

  VIMPAC_INLINE void prefetch_dout(int64_t head) const {
    const int64_t row = p.a.N * p.a.Dh;
    prefetch(dout_of(head) + first_row * row, axis.token_step * row, length, p.a.Dh);
  }

  // Prefetches rows that will be written: a store that waits for its cache line delays the stores
  // after it.
  VIMPAC_INLINE void prefetch_result(int part, int64_t head, int parts) const {
    const int64_t row = parts * p.a.N * p.a.Dh;
    const T* const clip =
        p.result + b * p.rows() * row + (part * p.a.N + first_head + head) * p.a.Dh;
    prefetch(clip + first_row * row, axis.token_step * row, length, p.a.Dh);
  }

  // Writes the tile's tokens to part `part` of `parts` of the result. Adds its [CLS] row to the
  // partial sum of [CLS], and the sum of all its rows to the partial sum of the bias.
  void scatter_part(
      const float* tile, int64_t head, int part, int parts, float scale, float* partial) const {
    const AxialCall& a = p.a;
    const int64_t row = parts * a.N * a.Dh;
    T* const clip = p.result + b * p.rows() * row + (part * a.N + first_head + head) * a.Dh;
    scatter(tile, axis.token_step * row, length, a.Dh, p.width, scale, clip + first_row * row);
    const int64_t at = (part * axis.heads + first_head + head - axis.first_head) * p.width;
    if (a.has_cls) {
      accumulate(tile + length * p.width, p.width, scale, partial + at);
    }
    if (a.dbias != nullptr) {
      accumulate_rows(tile, keys, p.width, scale, partial + parts * axis.heads * p.width + at);
    }
  }

  // Scores into probabilities; returns the dropped ones.
  const float* probabilities(const Tiles& t) const {
    const AxialCall& a = p.a;
    softmax_keys(t.scores, hidden(t), keys, ld);
    if (a.threshold == 0) {
      return t.scores;
    }
    const Dropout dropout{static_cast<uint64_t>(*a.seed), static_cast<uint32_t>(a.threshold),
                          a.kept_scale};
    const uint32_t number = static_cast<uint32_t>(b * axis.lines + line);
    const uint32_t last = static_cast<uint32_t>(first_head) | static_cast<uint32_t>(axis.id) << 16;
    drop(dropout, number, last, t.scores, keys, ld, t.dropped);
    return t.dropped;
  }

  const uint8_t* hidden(const Tiles& t) const {
    return p.a.key_padding_mask == nullptr ? nullptr : t.hidden;
  }

  void read_padding(uint8_t* hidden) const {
    const uint8_t* const clip = p.a.key_padding_mask + b * p.tokens + first_row - p.a.has_cls;
    for (int64_t l = 0; l < length; ++l) {
      hidden[l] = clip[l * axis.token_step];
    }
    hidden[length] = 0;
  }
};

template <class T>
void forward_line(const Line<T>& line, const Tiles& t, float* partial) {
  const int64_t keys = line.keys, ld = line.ld, width = line.p.width;
  for (int64_t h = 0; h < line.heads; ++h) {
    line.gather_part(0, h, line.p.a.scale, t.q);
    line.gather_part(1, h, 1.0f, t.k);
    line.prefetch_part(2, h, line.first_row);
    line.prefetch_result(0, h, 1);
    multiply_transposed(t.k, keys, t.q, keys, width, t.transposed, t.scores + h * keys, ld);
  }
  const float* const p = line.probabilities(t);
  for (int64_t h = 0; h < line.heads; ++h) {
    line.gather_part(2, h, 1.0f, t.v);
    line.prefetch_part(0, h, line.next_row);
    line.prefetch_part(1, h, line.next_row);
    multiply(p + h * keys, 1, ld, keys, keys, t.v, width, t.q);
    line.scatter_part(t.q, h, 0, 1, 1.0f, partial);
  }
}

template <class T>
void backward_line(const Line<T>& line, const Tiles& t, float* partial) {
  const int64_t keys = line.keys, ld = line.ld, width = line.p.width;
  const float scale = line.p.a.scale;
  for (int64_t h = 0; h < line.heads; ++h) {
    float *const q = t.q + 2 * h * t.size, *const k = t.k + 2 * h * t.size;
    line.gather_part(0, h, scale, q);
    line.gather_part(1, h, 1.0f, k);
    line.prefetch_part(2, h, line.first_row);
    line.prefetch_dout(h);
    line.prefetch_result(2, h, 3);
    multiply_transposed(k, keys, q, keys, width, t.transposed, t.scores + h * keys, ld);
  }
  const float* const dropped = line.probabilities(t);
  for (int64_t h = 0; h < line.heads; ++h) {
    line.gather_part(2, h, 1.0f, t.v);
    line.gather_dout(h, t.dout);
    line.prefetch_result(1, h, 3);
    line.prefetch_result(0, h, 3);
    multiply_transposed(t.v, keys, t.dout, keys, width, t.transposed, t.dp + h * keys, ld);
    multiply(dropped + h * keys, ld, 1, keys, keys, t.dout, width, t.v); // v was read
    line.scatter_part(t.v, h, 2, 3, 1.0f, partial);
  }
  softmax_keys_backward(t.scores, dropped, line.hidden(t), keys, ld, t.dp);
  for (int64_t h = 0; h < line.heads; ++h) {
    const float* const ds = t.dp + h * keys;
    line.prefetch_part(0, h, line.next_row);
    line.prefetch_part(1, h, line.next_row);
    multiply(ds, ld, 1, keys, keys, t.q + 2 * h * t.size, width, t.v); // q carries the scale
    line.scatter_part(t.v, h, 1, 3, 1.0f, partial);
    multiply(ds, 1, ld, keys, keys, t.k + 2 * h * t.size, width, t.v);
    line.scatter_part(t.v, h, 0, 3, scale, partial);
  }
}

template <class T>
void run_task(const Problem<T>& p, int64_t b, int64_t task, int parts, const Tiles& t) {
  int g = p.a.num_axes - 1;
  while (task < p.axes[g].first_task) {
    --g;
  }
  const Axis& axis = p.axes[g];
  const int64_t chunk = task - axis.first_task, first = chunk * kTaskLines;
  const int64_t end = first + kTaskLines < axis.lines ? first + kTaskLines : axis.lines;
  float* const partial = p.partial(b, axis, chunk);
  memset(partial, 0, sizeof(float) * p.partial_stride);
  for (int64_t line = first; line < end; ++line) {
    const int64_t keys = axis.length + p.a.has_cls, together = heads_together(axis.heads, keys);
    for (int64_t h = 0; h < axis.heads; h += together) {
      const int64_t heads = h + together < axis.heads ? together : axis.heads - h;
      const Line<T> one(p, axis, b, line, axis.first_head + h, heads);
      if (p.a.key_padding_mask != nullptr && h == 0) {
        one.read_padding(t.hidden);
      }
      parts == 1 ? forward_line(one, t, partial) : backward_line(one, t, partial);
    }
  }
}

// Row 0 of the result from the tasks' partials, in the order of the tasks.
template <class T>
void reduce_cls(const Problem<T>& p, int64_t b, int parts) {
  const AxialCall& a = p.a;
  for (int g = 0; g < a.num_axes; ++g) {
    const Axis& axis = p.axes[g];
    float* const sum = p.partial(b, axis, 0);
    for (int64_t chunk = 1; chunk < axis.tasks; ++chunk) {
      accumulate(p.partial(b, axis, chunk), parts * axis.heads * p.width, 1.0f, sum);
    }
    for (int part = 0; part < parts; ++part) {
      for (int64_t h = 0; h < axis.heads; ++h) {
        T* const row = p.result + b * p.rows() * parts * a.N * a.Dh;
        scatter_row(sum + (part * axis.heads + h) * p.width, a.Dh,
                    parts == 1 ? 1.0f / axis.lines : 1.0f,
                    row + (part * a.N + axis.first_head + h) * a.Dh);
      }
    }
  }
}

// The bias's gradient of one head of q, k or v from the partials, in the order of clips and tasks.
template <class T>
void reduce_bias(const Problem<T>& p, int64_t part, int64_t head) {
  const AxialCall& a = p.a;
  const Axis& axis = p.axes[head / (a.N / a.num_axes)];
  const int64_t at = ((3 + part) * axis.heads + head - axis.first_head) * p.width;
  for_each_vector(a.Dh, [&](int64_t d, int n) {
    VecF sum{};
    for (int64_t b = 0; b < a.B; ++b) {
      for (int64_t chunk = 0; chunk < axis.tasks; ++chunk) {
        sum = sum + load_n(p.partial(b, axis, chunk) + at + d, n);
      }
    }
    store_n(a.dbias + (part * a.N + head) * a.Dh + d, sum, n);
  });
}

template <class T>
TileSizes plan_axes(const AxialCall& a, Problem<T>& p) {
  TileSizes sizes{p.width};
  for (int g = 0; g < a.num_axes; ++g) {
    Axis& axis = p.axes[g] = axis_of_group(a, g);
    axis.tasks = (axis.lines + kTaskLines - 1) / kTaskLines;
    axis.first_task = p.tasks;
    p.tasks += axis.tasks;
    sizes.fit(axis.heads, axis.length + a.has_cls);
  }
  return sizes;
}

template <class T>
bool run(const AxialCall& a, int parts) {
  Problem<T> p{a,
               static_cast<const T*>(a.qkv.data),
               static_cast<const T*>(a.dout.data),
               static_cast<T*>(parts == 1 ? a.out.data : a.dqkv.data),
               {},
               a.tokens,
               0,
               round_up(a.Dh, kWidth),
               nullptr,
               0};
  const TileSizes sizes = plan_axes(a, p);
  p.partial_stride = (a.dbias == nullptr ? 1 : 2) * parts * (a.N / a.num_axes) * p.width;
  const int threads = a.num_threads < 1 ? 1 : a.num_threads;
  const int64_t per_thread = round_up(sizes.total(), kLine);
  Scratch<float> partials(a.B * p.tasks * p.partial_stride), tiles(threads * per_thread);
  if (partials.data == nullptr || tiles.data == nullptr) {
    return false;
  }
  p.partials = partials.data;
  memset(tiles.data, 0, sizeof(float) * threads * per_thread);
  const int64_t work = a.B * p.rows() * (3 + parts) * a.N * a.Dh;
  parallel_for(a.B * p.tasks, work, threads, [&](int64_t i) {
    const Tiles t = sizes.carve(tiles.data + thread_index() * per_thread);
    run_task(p, i / p.tasks, i % p.tasks, parts, t);
  });
  if (a.has_cls) {
    parallel_for(a.B, a.B * p.tasks * p.partial_stride, threads,
                 [&](int64_t b) { reduce_cls(p, b, parts); });
  }
  if (a.dbias != nullptr) {
    parallel_for(3 * a.N, a.B * p.tasks * p.partial_stride, threads,
                 [&](int64_t i) { reduce_bias(p, i / a.N, i % a.N); });
  }
  return true;
}

// Whether cpu_long.cpp has the faster kernel: longer lines do not fit the tiles of this one, and
// only the other one multiplies pairs of bf16.
bool has_long_lines(const AxialCall& a) {
#if defined(__AVX512BF16__)
  const bool pairs = a.qkv.type == ElementType::kBfloat16;
#else
  const bool pairs = false;
#endif
  return longest_line(a) >= (pairs ? 64 : 192);
}

} // namespace

bool axial_attention_fwd(const AxialAttention& args) {
  const AxialCall a(args);
  return has_long_lines(a)
             ? axial_attention_long_fwd(args)
             : with_type(a.qkv.type, [&](auto zero) { return run<decltype(zero)>(a, 1); });
}

bool axial_attention_bwd(const AxialAttention& args) {
  const AxialCall a(args);
  return has_long_lines(a)
             ? axial_attention_long_bwd(args)
             : with_type(a.qkv.type, [&](auto zero) { return run<decltype(zero)>(a, 3); });
}

} // namespace vimpac::VIMPAC_ISA
