// embed_tokens on the CPU. Forward: a thread owns chunks of rows. A row is summed from the tables,
// which caches hold, and stays in fp32 in the core's own cache for three more passes. Backward:
// blocks of rows in order. The threads first share the rows of a block and write their dx to
// scratch memory that caches hold. Then they share its columns and add the rows, in order, to the
// gradients of the tables. So every sum has one order, whatever the number of threads. The sums of
// weight and bias have one partial for each position of a row in its block. Bound by bandwidth and,
// with dropout, by Philox.
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_chunks.hpp"
#include "cpu/row_dropout.hpp"
#include "cpu/row_statistics.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"
#include "embed_tokens/arguments.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

// The arguments, their tables and sizes by axis.
struct Args : EmbedTokens {
  explicit Args(const EmbedTokens& args)
      : EmbedTokens(args), positions{args.time, args.height, args.width}, B(tokens.sizes[0]),
        grid{tokens.sizes[1], tokens.sizes[2], tokens.sizes[3]}, V(embedding.sizes[0]),
        D(embedding.sizes[1]) {}

  const float* positions[3];
  int64_t B, grid[3], V, D;
};

constexpr int64_t kParts = 64, kPartRows = 32; // of a block of the backward
// Rows between two additions of the tables' recent sums to their gradients: chosen so that these
// additions are at most an eighth of all.
constexpr int64_t kTermsRows = 8, kShortestInterval = 256;

int64_t cells(const Args& a) {
  return a.grid[0] * a.grid[1] * a.grid[2];
}

int64_t rows_of_clip(const Args& a) {
  return (a.cls != nullptr) + cells(a);
}

int64_t token_at(const Args& a, int64_t i) {
  return a.tokens.type == IntegerType::kInt64 ? static_cast<const int64_t*>(a.tokens.data)[i]
                                              : static_cast<const int32_t*>(a.tokens.data)[i];
}

// The content of a row: the number of its token and its position in the grid, or [CLS].
struct Place {
  Place(const Args& a, int64_t row) {
    const int64_t S = rows_of_clip(a), clip = row / S;
    const int64_t cell = row % S - (a.cls != nullptr);
    is_cls = cell < 0;
    token = clip * cells(a) + cell;
    at[2] = cell % a.grid[2];
    at[1] = cell / a.grid[2] % a.grid[1];
    at[0] = cell / a.grid[2] / a.grid[1];
  }

  bool is_cls;
  int64_t token; // of all clips
  int64_t at[3]; // t, h, w
};

// x(i, n): columns i..i+n of a row's sum, from the tables.
template <class E>
class Sum {
public:
  Sum(const Args& a, const Place& place) : cls_(place.is_cls ? a.cls : nullptr) {
    if (place.is_cls) {
      return;
    }
    embedding_ = static_cast<const E*>(a.embedding.data) + token_at(a, place.token) * a.D;
    for (int axis = 0; axis < 3; ++axis) {
      if (a.positions[axis] != nullptr) {
        positions_[axis] = a.positions[axis] + place.at[axis] * a.D;
      }
    }
  }

  VIMPAC_INLINE VecF operator()(int64_t i, int n) const {
    if (cls_ != nullptr) {
      return load_n(cls_ + i, n);
    }
    VecF x = load_n(positions_[2] + i, n); // the last axis has a table
    for (int axis = 1; axis >= 0; --axis) {
      if (positions_[axis] != nullptr) {
        x = x + load_n(positions_[axis] + i, n);
      }
    }
    return x + load_n(embedding_ + i, n);
  }

private:
  const float* cls_;
  const E* embedding_ = nullptr;
  const float* positions_[3] = {};
};

void draw_factors(const Args& a, int64_t row, float* factors) {
  const auto threshold = static_cast<uint32_t>(a.threshold);
  draw_row_factors({*a.seed, threshold, keep_scale(a.threshold), kStreamEmbedding}, row, a.D,
                   factors);
}

// One row forward; `total` and `factors` are scratch rows.
template <class E, class Y>
void forward_row(const Args& a, int64_t row, float* __restrict__ total, float* factors) {
  const int64_t D = a.D;
  const Sum<E> x(a, Place(a, row));
  Y* const y = static_cast<Y*>(a.y.data) + row * D;
  const bool drop = a.threshold > 0;
  if (drop) {
    draw_factors(a, row, factors);
  }
  if (a.weight == nullptr) {
    for_each_vector(D, [&](int64_t i, int n) {
      prefetch(y + D + i);
      store_n(y + i, drop ? x(i, n) * load_n(factors + i, n) : x(i, n), n);
    });
    return;
  }
  VecF sum{};
  for_each_vector(D, [&](int64_t i, int n) {
    const VecF t = x(i, n);
    store_n(total + i, t, n);
    sum = sum + t;
  });
  const RowStatistics statistics(total, D, sum, a.eps);
  for_each_vector(D, [&](int64_t i, int n) {
    const VecF h = statistics.centred(load_n(total + i, n)) * statistics.rstd;
    const VecF normalised = fmadd(h, load_n(a.weight + i, n), load_n(a.bias + i, n));
    prefetch(y + D + i);
    store_n(y + i, drop ? normalised * load_n(factors + i, n) : normalised, n);
  });
  if (a.mean != nullptr) {
    a.mean[row] = statistics.rounded_mean();
    a.rstd[row] = statistics.rstd;
  }
}

// One row backward: dx; `h` and `factors` are scratch rows, `sums` those of weight and bias, (2,
// D).
template <class E, class Y>
void backward_row(const Args& a,
                  int64_t row,
                  float* __restrict__ dx,
                  float* __restrict__ h,
                  float* factors,
                  float* __restrict__ sums) {
  const int64_t D = a.D;
  const Y* const dy = static_cast<const Y*>(a.dy.data) + row * D;
  const bool drop = a.threshold > 0;
  if (drop) {
    draw_factors(a, row, factors);
  }
  const auto dropped = [&](int64_t i, int n) {
    prefetch(dy + D + i);
    const VecF d = load_n(dy + i, n);
    return drop ? d * load_n(factors + i, n) : d;
  };
  if (a.weight == nullptr) {
    for_each_vector(D, [&](int64_t i, int n) { store_n(dx + i, dropped(i, n), n); });
    return;
  }
  const Sum<E> x(a, Place(a, row));
  const float mean = a.mean[row], rstd = a.rstd[row];
  VecF sum_g{}, sum_gh{};
  for_each_vector(D, [&](int64_t i, int n) {
    const VecF d = dropped(i, n);
    const VecF hi = n == kWidth || iota() < n ? (x(i, n) - mean) * rstd : VecF{};
    const VecF g = d * load_n(a.weight + i, n);
    store_n(sums + i, fmadd(d, hi, load_n(sums + i, n)), n);
    store_n(sums + D + i, load_n(sums + D + i, n) + d, n);
    store_n(dx + i, g, n);
    store_n(h + i, hi, n);
    sum_g = sum_g + g;
    sum_gh = fmadd(g, hi, sum_gh);
  });
  const float mean_g = reduce_add(sum_g) / static_cast<float>(D);
  const float mean_gh = reduce_add(sum_gh) / static_cast<float>(D);
  for_each_vector(D, [&](int64_t i, int n) {
    const VecF g = load_n(dx + i, n);
    store_n(dx + i, (g - mean_g - load_n(h + i, n) * mean_gh) * rstd, n);
  });
}

VIMPAC_INLINE void add_row(float* to, const float* row, int64_t size) {
  for_each_vector(
      size, [&](int64_t i, int n) { store_n(to + i, load_n(to + i, n) + load_n(row + i, n), n); });
}

// Rows of time, height, width and cls among dvectors.
int64_t table_rows(const Args& a) {
  return a.grid[0] + a.grid[1] + a.grid[2] + 1;
}

// Recent sums of the tables' gradients: a long sum loses fewer digits if it is made of shorter
// ones.
struct TableSums {
  float* recent; // (table_rows, D): of rows since the last multiple of `interval`
  float* line;   // (D,): of rows of one line along W, which time and height take as a whole
  int64_t interval;
};

// Adds columns begin..end of rows first..last, whose dx lie from `dx` on, to the gradients.
void add_rows(const Args& a,
              int64_t first,
              int64_t last,
              const float* dx, // (last - first, D)
              int64_t begin,
              int64_t end,
              const TableSums& sums) {
  const int64_t D = a.D, size = end - begin, rows = a.B * rows_of_clip(a);
  float* const line = sums.line + begin;
  float* const time = sums.recent + begin;
  float* const height = time + a.grid[0] * D;
  float* const width = height + a.grid[1] * D;
  bool is_new = true; // whether `line` starts anew
  for (int64_t row = first; row < last; ++row) {
    const Place place(a, row);
    const float* const added = dx + (row - first) * D + begin;
    if (!place.is_cls && a.dembedding != nullptr) {
      add_row(a.dembedding + token_at(a, place.token) * D + begin, added, size);
    }
    if (a.dvectors == nullptr) {
      continue;
    }
    const bool pauses = (row + 1) % sums.interval == 0 || row == rows - 1;
    if (place.is_cls) {
      add_row(width + a.grid[2] * D, added, size);
    } else {
      add_row(width + place.at[2] * D, added, size);
      if (is_new) {
        memcpy(line, added, size * sizeof(float));
      } else {
        add_row(line, added, size);
      }
      is_new = place.at[2] == a.grid[2] - 1 || row == last - 1 || pauses;
      if (is_new) {
        add_row(height + place.at[1] * D, line, size);
        add_row(time + place.at[0] * D, line, size);
      }
    }
    for (int64_t i = 0; pauses && i < table_rows(a); ++i) {
      add_row(a.dvectors + i * D + begin, time + i * D, size);
      memset(time + i * D, 0, size * sizeof(float));
    }
  }
}

// Whether all ids are rows of the embedding; reports the first that is not. The backward checks
// again: it is an operator of its own, whose ids need not be those of a forward.
bool are_inside(const Args& a) {
  for (int64_t i = 0; i < a.B * cells(a); ++i) {
    if (token_at(a, i) < 0 || token_at(a, i) >= a.V) {
      *a.invalid = i;
      return false;
    }
  }
  return true;
}

template <class E, class Y>
bool forward(const Args& a) {
  if (!are_inside(a)) {
    return true;
  }
  const RowChunks chunks(a.B * rows_of_clip(a));
  const int64_t width = padded_width(a.D), threads = a.num_threads > 1 ? a.num_threads : 1;
  Scratch<float> scratch(threads * 2 * width);
  if (scratch.data == nullptr) {
    return false;
  }
  parallel_for(chunks.count, 2 * chunks.rows * a.D, a.num_threads, [&](int64_t chunk) {
    float* const own = scratch.data + thread_index() * 2 * width;
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      forward_row<E, Y>(a, row, own, own + width);
    }
  });
  return true;
}

template <class E, class Y>
bool backward(const Args& a) {
  if (!are_inside(a)) {
    return true;
  }
  const int64_t D = a.D, rows = a.B * rows_of_clip(a), width = padded_width(D);
  const int64_t threads = a.num_threads > 1 ? a.num_threads : 1;
  Scratch<float> scratch(threads * 2 * width), dx(kParts * kPartRows * D);
  Scratch<float> partials(kParts * 2 * D), recent((table_rows(a) + 1) * D);
  if (scratch.data == nullptr || dx.data == nullptr || partials.data == nullptr ||
      recent.data == nullptr) {
    return false;
  }
  memset(partials.data, 0, kParts * 2 * D * sizeof(float));
  memset(recent.data, 0, table_rows(a) * D * sizeof(float));
  const int64_t usual = kTermsRows * table_rows(a);
  const TableSums sums{recent.data, recent.data + table_rows(a) * D,
                       usual > kShortestInterval ? usual : kShortestInterval};
  const int64_t slice = (D / kWidth / threads + 1) * kWidth; // columns of a thread
  for (int64_t first = 0; first < rows; first += kParts * kPartRows) {
    const int64_t last = first + kParts * kPartRows < rows ? first + kParts * kPartRows : rows;
    const int64_t parts = (last - first + kPartRows - 1) / kPartRows, work = (last - first) * D;
    parallel_for(parts, 2 * work, a.num_threads, [&](int64_t part) {
      float* const own = scratch.data + thread_index() * 2 * width;
      float* const own_sums = partials.data + part * 2 * D;
      const int64_t begin = first + part * kPartRows;
      for (int64_t row = begin; row < begin + kPartRows && row < last; ++row) {
        backward_row<E, Y>(a, row, dx.data + (row - first) * D, own, own + width, own_sums);
      }
    });
    parallel_for((D + slice - 1) / slice, 4 * work, a.num_threads, [&](int64_t i) {
      const int64_t end = (i + 1) * slice < D ? (i + 1) * slice : D;
      add_rows(a, first, last, dx.data, i * slice, end, sums);
    });
  }
  if (a.dvectors != nullptr && a.weight != nullptr) {
    float* const dweight = a.dvectors + table_rows(a) * D;
    add_partials(partials.data, kParts, 2 * D, 2 * D, dweight);
  }
  return true;
}

// f(E{}, Y{}) for the types of the embedding and of y.
template <class F>
bool with_types(const Args& a, ElementType type, const F& f) {
  return with_type(type, [&](auto y) {
    return a.embedding.type == ElementType::kFloat32 ? f(float{}, y) : f(y, y);
  });
}

} // namespace

bool embed_tokens_fwd(const EmbedTokens& args) {
  const Args a(args);
  return with_types(a, a.y.type,
                    [&](auto e, auto y) { return forward<decltype(e), decltype(y)>(a); });
}

bool embed_tokens_bwd(const EmbedTokens& args) {
  const Args a(args);
  return with_types(a, a.dy.type,
                    [&](auto e, auto y) { return backward<decltype(e), decltype(y)>(a); });
}

} // namespace vimpac::VIMPAC_ISA
