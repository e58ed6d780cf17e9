// axial_attention on the CPU for long lines: joint axes, and single axes of more tokens than suit a
// tile of cpu.cpp. A task owns one head of one line. It copies k and v once to contiguous rows,
// with [CLS] as the last row, and takes kBlock queries at a time: scores against all keys, their
// maximum, then exponentials and products for kKeys keys at a time. The scores take keys * kBlock
// floats; besides the rows they are the only memory that grows with the line. The backward computes
// the probabilities again and keeps the rows of dk and dv until all queries have added to them.
//
// Bound by arithmetic: two products forward, five backward, in fp32 or, where the CPU has an
// instruction for it, in pairs of bf16, rounded as the reference rounds them. Sums and softmax are
// fp32. Sums over lines, for [CLS] and for the bias's gradient, are kept per task and added in
// pairs, so results do not depend on the number of threads.
#include "axial_attention/block_softmax.hpp"
#include "axial_attention/long_line.hpp"
#include "axial_attention/panel_product.hpp"
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

// Keys whose rows and scores stay in the first-level cache; a multiple of a tile's rows and of the
// eight decisions of a draw.
constexpr int64_t kKeys = 96;
constexpr int64_t kWords = 64; // of a sum of products: sums of sums lose less than one long sum
constexpr int64_t kLine = 64 / sizeof(float); // floats of a cache line

// Per-thread tiles. If Terms are single numbers, rows serve as either operand and are summed in
// place; pairs of rows need a copy in another layout.
template <class Terms>
struct Tiles {
  using Row = typename Terms::Row;
  Row *k, *v;                            // (keys, width)
  float* summed;                         // v forward, k backward, across its rows
  float *dk, *dv;                        // (keys, width)
  float *scores, *dp;                    // (keys, kBlock)
  Row *q, *dout;                         // (kBlock, width)
  float *q_across, *dout_across;         // the same across their rows
  float *q_transposed, *dout_transposed; // (words of width, kBlock)
  float* result;                         // (kBlock, width)
  float* packed;                         // (kKeys, kBlock)
  float *row_max, *inverse, *delta;      // (kBlock,)
  uint8_t* hidden;                       // (keys,)

  // Takes the tiles from p, or, if p is null, returns the number of floats that they need.
  int64_t carve(float* p, int64_t keys, int64_t width, bool backward) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* const tile = p == nullptr ? nullptr : p + used;
      used += round_up(floats, kLine);
      return tile;
    };
    const auto rows = [&](int64_t count) {
      return reinterpret_cast<Row*>(take(count * width / Terms::kPerWord));
    };
    const auto across = [&](int64_t count) {
      return Terms::kPerWord == 1 ? nullptr : take(Terms::words(count) * width);
    };
    k = rows(keys);
    v = rows(keys);
    summed = across(keys);
    scores = take(keys * kBlock);
    if (backward) {
      dk = take(keys * width);
      dv = take(keys * width);
      dp = take(keys * kBlock);
    }
    q = rows(kBlock);
    dout = rows(kBlock);
    q_across = across(kBlock);
    dout_across = across(kBlock);
    q_transposed = take(kBlock * width);
    dout_transposed = take(kBlock * width);
    result = take(kBlock * width);
    packed = take(Terms::kPerWord == 1 ? 0 : kKeys * kBlock);
    row_max = take(kBlock);
    inverse = take(kBlock);
    delta = take(kBlock);
    hidden = reinterpret_cast<uint8_t*>(take(keys));
    return used;
  }
};

// Some queries of a line, in lanes. `summed` is what is summed over the keys: v forward, k
// backward.
template <class T, class Terms>
struct Block {
  using Row = typename Terms::Row;
  const Line<T>& line;
  const Tiles<Terms>& t;
  const uint8_t* hidden;
  const float* summed; // (words of keys, width)
  int64_t first, count, lanes;

  // body(first key, keys)
  template <class Body>
  VIMPAC_INLINE void each_part(const Body& body) const {
    for (int64_t j = 0; j < line.keys; j += kKeys) {
      body(j, j + kKeys < line.keys ? kKeys : line.keys - j);
    }
  }

  // Transposes rows; columns of lanes without a query are 0.
  void transpose_queries(Row* rows, float* transposed) const {
    const int64_t width = line.p.width, words = width / Terms::kPerWord;
    memset(rows + count * width, 0, sizeof(Row) * (lanes - count) * width);
    for (int64_t i = 0; i < lanes; i += kWidth) {
      transpose_rows(reinterpret_cast<const float*>(rows) + i * words, words, transposed + i,
                     kBlock);
    }
  }

  // to[j][i] = the product of row j of `rows` and query i
  void
  multiply_rows(const Row* rows, const float* transposed, int64_t j, int64_t n, float* to) const {
    const int64_t step = line.p.width / Terms::kPerWord, words = Terms::words(line.p.a.Dh);
    const float* const left = reinterpret_cast<const float*>(rows) + j * step;
    for (int64_t d = 0; d < words; d += kWords) {
      const int64_t terms = d + kWords < words ? kWords : words - d;
      multiply_panels<Terms, kPanelVectors>({left + d, step, 1}, n, terms,
                                            {transposed + d * kBlock, kBlock}, lanes,
                                            {to + j * kBlock, kBlock}, d > 0);
    }
  }

  // result[i] [+]= the sum over keys of x[j][i] summed[j]
  void add_to_queries(const float* x, int64_t j, int64_t n) const {
    const int64_t width = line.p.width;
    const float* const left = Terms::across(x + j * kBlock, n, lanes, kBlock, t.packed);
    multiply_panels<Terms, kPanelVectors>({left, 1, kBlock}, count, Terms::words(n),
                                          {summed + Terms::words(j) * width, width}, width,
                                          {t.result, width}, j > 0);
  }

  // to[j] [+]= the sum over queries of x[j][i] rows[i]
  void add_to_keys(const float* x, const float* rows, int64_t j, int64_t n, float* to) const {
    const int64_t width = line.p.width, step = kBlock / Terms::kPerWord;
    const float* const left = Terms::along(x + j * kBlock, n, lanes, kBlock, t.packed);
    multiply_panels<Terms, kPanelVectors>({left, step, 1}, n, Terms::words(count), {rows, width},
                                          width, {to + j * width, width}, first > 0);
  }

  // Scores of all keys, and their maximum. The scores are multiplied by the sign of the scale only,
  // the exponents by its absolute value, which rounds less.
  void score() const {
    line.gather_part(0, first, count, line.p.a.scale < 0.0f ? -1.0f : 1.0f, t.q);
    transpose_queries(t.q, t.q_transposed);
    for (int64_t i = 0; i < kBlock; ++i) {
      t.row_max[i] = -__builtin_inff();
      t.inverse[i] = t.delta[i] = 0.0f;
    }
    each_part([&](int64_t j, int64_t n) {
      multiply_rows(t.k, t.q_transposed, j, n, t.scores);
      update_row_max(t.scores + j * kBlock, hidden_from(j), n, lanes, t.row_max);
    });
  }

  // Replaces scores by their exponentials, and adds those to t.inverse.
  void exponentials(int64_t j, int64_t n, float dropped_factor) const {
    const AxialCall& a = line.p.a;
    float* const scores = t.scores + j * kBlock;
    exponentiate(scores, hidden_from(j), n, lanes, __builtin_fabsf(a.scale), t.row_max, t.inverse);
    if (a.threshold > 0) {
      const Dropout dropout{static_cast<uint64_t>(*a.seed), static_cast<uint32_t>(a.threshold),
                            a.kept_scale};
      const uint32_t number = static_cast<uint32_t>(line.b * line.axis.lines + line.line);
      const uint32_t last = static_cast<uint32_t>(line.head) | static_cast<uint32_t>(line.axis.id)
                                                                   << 16;
      drop_block(dropout, number, last, static_cast<uint32_t>(first), static_cast<uint32_t>(j),
                 dropped_factor, n, lanes, scores);
    }
  }

  // Replaces sums by their inverses and delta by a mean. A query without any key has the sum 0; its
  // inverse and delta are 0.
  void invert() const {
    for (int64_t i = 0; i < lanes; i += kWidth) {
      const VecF sum = load(t.inverse + i);
      store(t.delta + i, sum == 0.0f ? VecF{} : load(t.delta + i) / sum);
      store(t.inverse + i, sum == 0.0f ? VecF{} : 1.0f / sum);
    }
  }

  const uint8_t* hidden_from(int64_t j) const { return hidden == nullptr ? nullptr : hidden + j; }

  void forward() const {
    score();
    each_part([&](int64_t j, int64_t n) {
      exponentials(j, n, 0.0f);
      add_to_queries(t.scores, j, n);
    });
    invert();
    for (int64_t i = 0; i < count; ++i) {
      line.scatter_part(t.result + i * line.p.width, 0, first + i, 1,
                        t.inverse[i] * line.p.a.kept_scale);
    }
  }

  void backward() const {
    const float keep_scale = line.p.a.kept_scale;
    score();
    line.gather_dout(first, count, t.dout);
    transpose_queries(t.dout, t.dout_transposed);
    const int64_t width = line.p.width;
    const float* const q_across = Terms::rows_across(t.q, count, width, t.q_across);
    const float* const dout_across = Terms::rows_across(t.dout, count, width, t.dout_across);
    each_part([&](int64_t j, int64_t n) {
      const int64_t at = j * kBlock;
      exponentials(j, n, -1.0f);
      multiply_rows(t.v, t.dout_transposed, j, n, t.dp);
      add_delta(t.scores + at, t.dp + at, hidden_from(j), n, lanes, keep_scale, t.delta);
    });
    invert();
    each_part([&](int64_t j, int64_t n) {
      const int64_t at = j * kBlock;
      differentiate(t.scores + at, t.dp + at, hidden_from(j), n, lanes, keep_scale, t.inverse,
                    t.delta);
      add_to_keys(t.scores, dout_across, j, n, t.dv);
      add_to_keys(t.dp, q_across, j, n, t.dk);
      add_to_queries(t.dp, j, n);
    });
    line.scatter_part(t.result, 0, first, count, line.p.a.scale);
  }
};

template <class T, class Terms>
void run_task(const Problem<T>& p, int64_t b, int64_t task, const Tiles<Terms>& t) {
  int g = p.a.num_axes - 1;
  while (task < p.axes[g].first_task) {
    --g;
  }
  const Axis& axis = p.axes[g];
  const int64_t number = task - axis.first_task;
  const Line<T> line(p, axis, b, number / axis.heads, axis.first_head + number % axis.heads);
  memset(line.partial, 0, sizeof(float) * p.partial_size());
  line.gather_part(1, 0, line.keys, 1.0f, t.k);
  line.gather_part(2, 0, line.keys, 1.0f, t.v);
  const uint8_t* const hidden = line.read_padding(t.hidden);
  const float* const summed =
      Terms::rows_across(p.parts == 1 ? t.v : t.k, line.keys, p.width, t.summed);
  for (int64_t i = 0; i < line.keys; i += kBlock) {
    const int64_t count = i + kBlock < line.keys ? kBlock : line.keys - i;
    const Block<T, Terms> block{line, t, hidden, summed, i, count, round_up(count, kWidth)};
    p.parts == 1 ? block.forward() : block.backward();
  }
  for (int64_t j = 0; p.parts == 3 && j < line.keys; j += kKeys) {
    const int64_t count = j + kKeys < line.keys ? kKeys : line.keys - j;
    line.scatter_part(t.dk + j * p.width, 1, j, count,
                      __builtin_fabsf(p.a.scale)); // q has its sign
    line.scatter_part(t.dv + j * p.width, 2, j, count, 1.0f);
  }
}

// One head of a part of row 0.
template <class T>
void reduce_cls(const Problem<T>& p, int64_t b, int part, int64_t head) {
  const AxialCall& a = p.a;
  const int64_t lines = p.axis_of(head).lines;
  const float* const sum = sum_pairwise(b * lines, lines, p.width, [&](int64_t line) {
    return p.partial(line, head) + part * p.width;
  });
  T* const row = p.result + b * p.rows() * p.parts * a.N * a.Dh;
  scatter_row(sum, a.Dh, p.parts == 1 ? 1.0f / lines : 1.0f, row + (part * a.N + head) * a.Dh);
}

// The bias's gradient of one head of q, k or v.
template <class T>
void reduce_bias(const Problem<T>& p, int64_t part, int64_t head) {
  const AxialCall& a = p.a;
  const int64_t lines = a.B * p.axis_of(head).lines;
  const float* const sum = sum_pairwise(0, lines, p.width, [&](int64_t line) {
    return p.partial(line, head) + (p.parts + part) * p.width;
  });
  scatter_row(sum, a.Dh, 1.0f, a.dbias + (part * a.N + head) * a.Dh);
}

template <class T, class Terms>
bool run(const AxialCall& a, int parts) {
  Problem<T> p{a,
               static_cast<const T*>(a.qkv.data),
               static_cast<const T*>(a.dout.data),
               static_cast<T*>(parts == 1 ? a.out.data : a.dqkv.data),
               parts,
               a.tokens,
               round_up(a.Dh, kWidth),
               {},
               0,
               nullptr};
  int64_t keys = 0;
  for (int g = 0; g < a.num_axes; ++g) {
    Axis& axis = p.axes[g] = axis_of_group(a, g);
    axis.tasks = axis.lines * axis.heads;
    axis.first_task = p.tasks;
    p.tasks += axis.tasks;
    keys = axis.length + a.has_cls > keys ? axis.length + a.has_cls : keys;
  }
  const int threads = a.num_threads < 1 ? 1 : a.num_threads;
  const int64_t per_thread = Tiles<Terms>().carve(nullptr, keys, p.width, parts == 3);
  const int64_t sums = a.B * p.tasks * p.partial_size();
  Scratch<float> partials(sums), tiles(threads * per_thread);
  if (partials.data == nullptr || tiles.data == nullptr) {
    return false;
  }
  p.partials = partials.data;
  const int64_t work = a.B * p.rows() * (3 + parts) * a.N * a.Dh;
  parallel_for(a.B * p.tasks, work, threads, [&](int64_t i) {
    Tiles<Terms> t;
    t.carve(tiles.data + thread_index() * per_thread, keys, p.width, parts == 3);
    run_task(p, i / p.tasks, i % p.tasks, t);
  });
  if (a.has_cls) {
    parallel_for(a.B * parts * a.N, sums, threads, [&](int64_t i) {
      reduce_cls(p, i / (parts * a.N), static_cast<int>(i / a.N % parts), i % a.N);
    });
  }
  if (a.dbias != nullptr) {
    parallel_for(3 * a.N, sums, threads, [&](int64_t i) { reduce_bias(p, i / a.N, i % a.N); });
  }
  return true;
}

bool run_type(const AxialCall& a, int parts) {
#if defined(__AVX512BF16__)
  if (a.qkv.type == ElementType::kBfloat16) {
    return run<Bf16, Pairs>(a, parts);
  }
#endif
  return with_type(a.qkv.type, [&](auto zero) { return run<decltype(zero), Singles>(a, parts); });
}

} // namespace

bool axial_attention_long_fwd(const AxialAttention& args) {
  return run_type(AxialCall(args), 1);
}

bool axial_attention_long_bwd(const AxialAttention& args) {
  return run_type(AxialCall(args), 3);
}

} // namespace vimpac::VIMPAC_ISA
