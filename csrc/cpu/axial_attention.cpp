// axial_attention on the CPU. A task owns kTaskLines consecutive lines of one axis of one clip,
// with all heads of the axis inside, so that a token row is consumed together. Per line and head:
// gather q, k, v (and dout) into fp32 tiles, [CLS] being the last row; scores and softmax with
// queries in lanes; products; scatter. q, k, v, dout are read once and the result is written once:
// bound by memory. [CLS]'s sums over lines are kept per task and added in order, so that results
// repeat whatever the number of threads.
#include "cpu/line_softmax.hpp"
#include "cpu/ops.hpp"
#include "cpu/parallel.hpp"
#include "cpu/small_matrix.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

constexpr int64_t kTaskLines = 8;
constexpr int64_t kLine = 64 / sizeof(float); // floats of a cache line

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// One axis: which heads it has and where the tokens of its lines are.
struct Axis {
  int id; // 0 T, 1 H, 2 W
  int64_t first_head, heads, lines, length, token_step, tasks, first_task;

  // Token number (row without [CLS]) of the line's first token.
  int64_t first_token(int64_t line, int64_t H, int64_t W) const {
    return id == 0 ? line : id == 1 ? line / W * H * W + line % W : line * W;
  }
};

// The tensors as one type and the plan of the call.
template <class T>
struct Problem {
  const AxialAttention& a;
  const T* qkv;  // (B, S, 3, N, Dh)
  const T* dout; // (B, S, N, Dh)
  T* result;     // (B, S, N, Dh) or (B, S, 3, N, Dh)
  Axis axes[3];
  int64_t tokens, tasks, width; // tasks of one clip; floats of a tile's row
  float* partials;              // (B, tasks, parts, heads of the axis, width): [CLS]'s sums
  int64_t partial_stride;

  int64_t rows() const { return tokens + a.has_cls; }
  float* partial(int64_t b, const Axis& axis, int64_t chunk) const {
    return partials + (b * tasks + axis.first_task + chunk) * partial_stride;
  }
};

// Per-thread tiles, (capacity, width) and (capacity, ld) floats each, zeroed once.
struct Tiles {
  float *q, *k, *v, *dout, *scores, *dropped, *dp;
  uint8_t* hidden;
};

struct TileSizes {
  int64_t rows, matrix; // floats

  TileSizes(int64_t longest, int64_t width)
      : rows(round_up(longest, 4) * width), matrix(longest * round_up(longest, kWidth)) {}
  int64_t total() const { return 4 * rows + 3 * matrix + round_up(matrix, kLine); }
  Tiles carve(float* p) const {
    float* const m = p + 4 * rows;
    return {p, p + rows,   p + 2 * rows,   p + 3 * rows,
            m, m + matrix, m + 2 * matrix, reinterpret_cast<uint8_t*>(m + 3 * matrix)};
  }
};

template <class T>
VIMPAC_INLINE void gather_row(const T* from, int64_t head_dim, float scale, float* to) {
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    const int64_t left = head_dim - d;
    store(to + d, load_n(from + d, static_cast<int>(left < kWidth ? left : kWidth)) * scale);
  }
}

template <class T>
VIMPAC_INLINE void scatter_row(const float* from, int64_t head_dim, float scale, T* to) {
  for (int64_t d = 0; d < head_dim; d += kWidth) {
    const int64_t left = head_dim - d;
    store_n(to + d, load(from + d) * scale, static_cast<int>(left < kWidth ? left : kWidth));
  }
}

// tile[l] = scale * from[l * step], the next head's part of the row being fetched meanwhile.
template <class T>
void gather(const T* from,
            int64_t step,
            int64_t length,
            int64_t head_dim,
            int64_t width,
            float scale,
            float* tile) {
  for (int64_t l = 0; l < length; ++l) {
    gather_row(from + l * step, head_dim, scale, tile + l * width);
  }
}

template <class T>
void scatter(const float* tile,
             int64_t step,
             int64_t length,
             int64_t head_dim,
             int64_t width,
             float scale,
             T* to) {
  for (int64_t l = 0; l < length; ++l) {
    scatter_row(tile + l * width, head_dim, scale, to + l * step);
  }
}

void accumulate(const float* row, int64_t width, float scale, float* sum) {
  for (int64_t d = 0; d < width; d += kWidth) {
    store(sum + d, fmadd(load(row + d), broadcast(scale), load(sum + d)));
  }
}

// One line of one head: sizes and addresses that forward and backward share.
template <class T>
struct Line {
  const Problem<T>& p;
  const Axis& axis;
  int64_t b, line, head;
  int64_t length, keys, ld, first_row;

  Line(const Problem<T>& p, const Axis& axis, int64_t b, int64_t line, int64_t head)
      : p(p), axis(axis), b(b), line(line), head(head), length(axis.length),
        keys(length + p.a.has_cls), ld(round_up(keys, kWidth)),
        first_row(axis.first_token(line, p.a.grid[1], p.a.grid[2]) + p.a.has_cls) {}

  // q, k or v of every token and of [CLS] into a tile.
  void gather_part(int part, float scale, float* tile) const {
    const AxialAttention& a = p.a;
    const T* const clip = p.qkv + b * a.strides[0] + part * a.strides[2] + head * a.strides[3];
    gather(clip + first_row * a.strides[1], axis.token_step * a.strides[1], length, a.Dh, p.width,
           scale, tile);
    if (a.has_cls) {
      gather_row(clip, a.Dh, scale, tile + length * p.width);
    }
  }

  void gather_dout(float* tile) const {
    const AxialAttention& a = p.a;
    const int64_t row = a.N * a.Dh;
    const T* const clip = p.dout + b * p.rows() * row + head * a.Dh;
    gather(clip + first_row * row, axis.token_step * row, length, a.Dh, p.width, 1.0f, tile);
    if (a.has_cls) {
      gather_row(clip, a.Dh, 1.0f / axis.lines, tile + length * p.width);
    }
  }

  // The tile's tokens to part `part` of `parts` of the result; its [CLS] row is added to a partial.
  void scatter_part(const float* tile, int part, int parts, float scale, float* partial) const {
    const AxialAttention& a = p.a;
    const int64_t row = parts * a.N * a.Dh;
    T* const clip = p.result + b * p.rows() * row + (part * a.N + head) * a.Dh;
    scatter(tile, axis.token_step * row, length, a.Dh, p.width, scale, clip + first_row * row);
    if (a.has_cls) {
      accumulate(tile + length * p.width, p.width, scale,
                 partial + (part * axis.heads + head - axis.first_head) * p.width);
    }
  }

  // Probabilities into t.scores, dropped ones into what is returned.
  const float* probabilities(const Tiles& t) const {
    const AxialAttention& a = p.a;
    multiply_transposed(t.k, keys, t.q, keys, p.width, t.scores, ld);
    softmax_keys(t.scores, a.padding == nullptr ? nullptr : t.hidden, keys, ld);
    if (a.threshold == 0) {
      return t.scores;
    }
    const Dropout dropout{static_cast<uint64_t>(*a.seed), a.threshold, a.keep_scale};
    const uint32_t number = static_cast<uint32_t>(b * axis.lines + line);
    const uint32_t last = static_cast<uint32_t>(head) | static_cast<uint32_t>(axis.id) << 16;
    drop(dropout, number, last, t.scores, keys, ld, t.dropped);
    return t.dropped;
  }

  void read_padding(uint8_t* hidden) const {
    const uint8_t* const clip = p.a.padding + b * p.tokens + first_row - p.a.has_cls;
    for (int64_t l = 0; l < length; ++l) {
      hidden[l] = clip[l * axis.token_step];
    }
    hidden[length] = 0;
  }
};

template <class T>
void forward_line(const Line<T>& line, const Tiles& t, float* partial) {
  line.gather_part(0, line.p.a.scale, t.q);
  line.gather_part(1, 1.0f, t.k);
  line.gather_part(2, 1.0f, t.v);
  const float* const p = line.probabilities(t);
  multiply(p, 1, line.ld, line.keys, line.keys, t.v, line.p.width, t.q);
  line.scatter_part(t.q, 0, 1, 1.0f, partial);
}

template <class T>
void backward_line(const Line<T>& line, const Tiles& t, float* partial) {
  const int64_t keys = line.keys, ld = line.ld, width = line.p.width;
  const float scale = line.p.a.scale;
  line.gather_part(0, scale, t.q);
  line.gather_part(1, 1.0f, t.k);
  line.gather_part(2, 1.0f, t.v);
  line.gather_dout(t.dout);
  const float* const dropped = line.probabilities(t);
  multiply_transposed(t.v, keys, t.dout, keys, width, t.dp, ld);
  multiply(dropped, ld, 1, keys, keys, t.dout, width, t.v); // v was read for the last time
  line.scatter_part(t.v, 2, 3, 1.0f, partial);
  softmax_keys_backward(t.scores, dropped, keys, ld, t.dp);
  multiply(t.dp, ld, 1, keys, keys, t.q, width, t.v); // q carries the scale
  line.scatter_part(t.v, 1, 3, 1.0f, partial);
  multiply(t.dp, 1, ld, keys, keys, t.k, width, t.v);
  line.scatter_part(t.v, 0, 3, scale, partial);
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
    for (int64_t head = axis.first_head; head < axis.first_head + axis.heads; ++head) {
      const Line<T> one(p, axis, b, line, head);
      if (p.a.padding != nullptr && head == axis.first_head) {
        one.read_padding(t.hidden);
      }
      parts == 1 ? forward_line(one, t, partial) : backward_line(one, t, partial);
    }
  }
}

// Row 0 of the result from the tasks' partials, in the order of the tasks.
template <class T>
void reduce_cls(const Problem<T>& p, int64_t b, int parts) {
  const AxialAttention& a = p.a;
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

template <class T>
int64_t plan_axes(const AxialAttention& a, Problem<T>& p) {
  const int64_t steps[] = {int64_t{1} * a.grid[1] * a.grid[2], a.grid[2], 1};
  int64_t longest = 0;
  for (int g = 0; g < a.num_axes; ++g) {
    const int id = a.axes[g];
    const int64_t heads = a.N / a.num_axes, length = a.grid[id], lines = p.tokens / length;
    const int64_t tasks = (lines + kTaskLines - 1) / kTaskLines;
    p.axes[g] = {id, g * heads, heads, lines, length, steps[id], tasks, p.tasks};
    p.tasks += tasks;
    longest = length > longest ? length : longest;
  }
  return longest;
}

template <class T>
bool run(const AxialAttention& a, int parts) {
  Problem<T> p{a,
               static_cast<const T*>(a.qkv),
               static_cast<const T*>(a.dout),
               static_cast<T*>(a.result),
               {},
               int64_t{1} * a.grid[0] * a.grid[1] * a.grid[2],
               0,
               round_up(a.Dh, kWidth),
               nullptr,
               0};
  const TileSizes sizes(plan_axes(a, p) + a.has_cls, p.width);
  p.partial_stride = parts * (a.N / a.num_axes) * p.width;
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
  return true;
}

bool dispatch(const AxialAttention& args, int parts) {
  switch (args.dtype) {
  case AxialAttention::kFloat32:
    return run<float>(args, parts);
  case AxialAttention::kBfloat16:
    return run<Bf16>(args, parts);
  default:
    return run<Half>(args, parts);
  }
}

} // namespace

bool axial_attention_fwd(const AxialAttention& args) {
  return dispatch(args, 1);
}

bool axial_attention_bwd(const AxialAttention& args) {
  return dispatch(args, 3);
}

} // namespace vimpac::VIMPAC_ISA
