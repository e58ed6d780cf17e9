// dropout_add_layer_norm on the CPU. A thread owns chunks of rows. The sum of a row stays in fp32
// in the core's own cache for three more passes (mean, variance, y), so main memory is read and
// written once per direction. Bound by bandwidth, and with dropout by Philox. The sums over rows
// (dweight, dbias, dlinear_bias) have one partial per chunk; they are added in the order of the
// chunks.
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_chunks.hpp"
#include "cpu/row_dropout.hpp"
#include "cpu/row_statistics.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"
#include "dropout_add_layer_norm/arguments.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

using Args = DropoutAddLayerNorm;

void draw_factors(const Args& a, int64_t row, int64_t D, float* factors) {
  const auto threshold = static_cast<uint32_t>(a.threshold);
  draw_row_factors({*a.seed, threshold, keep_scale(a.threshold), kStreamResidual}, row, D, factors);
}

// One row forward; `total` and `factors` are scratch rows.
template <class X, class R>
void forward_row(const Args& a, int64_t row, float* __restrict__ total, float* factors) {
  const int64_t D = a.x.columns, at = row * D;
  const X* const x = static_cast<const X*>(a.x.data) + at;
  const R* const residual = static_cast<const R*>(a.residual.data) + at;
  R* const kept = a.total.data == nullptr ? nullptr : static_cast<R*>(a.total.data) + at;
  if (a.threshold > 0) {
    draw_factors(a, row, D, factors);
  }
  VecF sum{};
  for_each_vector(D, [&](int64_t i, int n) {
    prefetch(x + D + i);
    prefetch(residual + D + i);
    VecF branch = load_n(x + i, n);
    if (a.linear_bias != nullptr) {
      branch = branch + load_n(a.linear_bias + i, n);
    }
    if (a.threshold > 0) {
      branch = branch * load_n(factors + i, n);
    }
    const VecF t = rounded(load_n(residual + i, n) + branch, R{});
    store_n(total + i, t, n);
    sum = sum + t;
    if (kept != nullptr) {
      prefetch(kept + D + i);
      store_rounded_n(kept + i, t, n);
    }
  });
  const RowStatistics statistics(total, D, sum, a.eps);
  X* const y = static_cast<X*>(a.y.data) + at;
  for_each_vector(D, [&](int64_t i, int n) {
    const VecF h = statistics.centred(load_n(total + i, n)) * statistics.rstd;
    prefetch(y + D + i);
    store_n(y + i, fmadd(h, load_n(a.weight + i, n), load_n(a.bias + i, n)), n);
  });
  if (a.mean != nullptr) {
    a.mean[row] = statistics.rounded_mean();
    a.rstd[row] = statistics.rstd;
  }
}

// A chunk's sums over its rows, each (D,).
struct Partials {
  float* dweight;
  float* dbias;
  float* dlinear_bias;
};

// One row backward; `g`, `h` and `factors` are scratch rows. kTwo: y has two gradients. It is a
// template parameter because a condition would slow down the loop of the usual case.
template <bool kTwo, class X, class R>
void backward_row(const Args& a,
                  int64_t row,
                  float* __restrict__ g,
                  float* __restrict__ h,
                  float* factors,
                  const Partials& sums) {
  const int64_t D = a.dy.columns, at = row * D;
  const X* const dy = static_cast<const X*>(a.dy.data) + at;
  [[maybe_unused]] const X* const dy_other =
      static_cast<const X*>(a.dy_other.data) + (kTwo ? at : 0);
  const R* const total = static_cast<const R*>(a.total.data) + at;
  const R* const dtotal =
      a.dtotal.data == nullptr ? nullptr : static_cast<const R*>(a.dtotal.data) + at;
  const float mean = a.mean[row], rstd = a.rstd[row];
  VecF sum_g{}, sum_gh{};
  for_each_vector(D, [&](int64_t i, int n) {
    prefetch(dy + D + i);
    prefetch(total + D + i);
    VecF d = load_n(dy + i, n);
    if constexpr (kTwo) {
      prefetch(dy_other + D + i);
      d = d + load_n(dy_other + i, n);
    }
    const VecF hi = (load_n(total + i, n) - mean) * rstd;
    const VecF gi = d * load_n(a.weight + i, n);
    store_n(sums.dweight + i, fmadd(d, hi, load_n(sums.dweight + i, n)), n);
    store_n(sums.dbias + i, load_n(sums.dbias + i, n) + d, n);
    store_n(g + i, gi, n);
    store_n(h + i, hi, n);
    sum_g = sum_g + gi;
    sum_gh = fmadd(gi, hi, sum_gh);
  });
  if (a.threshold > 0) {
    draw_factors(a, row, D, factors);
  }
  const float mean_g = reduce_add(sum_g) / static_cast<float>(D);
  const float mean_gh = reduce_add(sum_gh) / static_cast<float>(D);
  X* const dx = a.dx.data == nullptr ? nullptr : static_cast<X*>(a.dx.data) + at;
  R* const dresidual = static_cast<R*>(a.dresidual.data) + at;
  for_each_vector(D, [&](int64_t i, int n) {
    VecF d = (load_n(g + i, n) - mean_g - load_n(h + i, n) * mean_gh) * rstd;
    if (dtotal != nullptr) {
      d = d + load_n(dtotal + i, n);
    }
    prefetch(dresidual + D + i);
    store_n(dresidual + i, d, n);
    if (a.threshold > 0) {
      d = d * load_n(factors + i, n);
    }
    if (dx != nullptr) {
      prefetch(dx + D + i);
      store_n(dx + i, d, n);
    }
    if (sums.dlinear_bias != nullptr) {
      store_n(sums.dlinear_bias + i, load_n(sums.dlinear_bias + i, n) + d, n);
    }
  });
}

template <class X, class R>
bool forward(const Args& a) {
  const int64_t rows = a.x.rows, D = a.x.columns;
  const RowChunks chunks(rows);
  const int64_t width = padded_width(D), threads = a.num_threads > 1 ? a.num_threads : 1;
  Scratch<float> scratch(threads * 2 * width);
  if (scratch.data == nullptr) {
    return false;
  }
  parallel_for(chunks.count, 4 * rows * D, a.num_threads, [&](int64_t chunk) {
    float* const own = scratch.data + thread_index() * 2 * width;
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      forward_row<X, R>(a, row, own, own + width);
    }
  });
  return true;
}

template <bool kTwo, class X, class R>
bool backward(const Args& a) {
  const int64_t rows = a.dy.rows, D = a.dy.columns;
  const RowChunks chunks(rows);
  const int64_t width = padded_width(D), threads = a.num_threads > 1 ? a.num_threads : 1;
  Scratch<float> scratch(threads * 3 * width);
  Scratch<float> partials(chunks.count * 3 * D);
  if (scratch.data == nullptr || partials.data == nullptr) {
    return false;
  }
  parallel_for(chunks.count, 4 * rows * D, a.num_threads, [&](int64_t chunk) {
    float* const own = scratch.data + thread_index() * 3 * width;
    float* const sums = partials.data + chunk * 3 * D;
    memset(sums, 0, 3 * D * sizeof(float));
    float* const linear = a.dlinear_bias == nullptr ? nullptr : sums + 2 * D;
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      backward_row<kTwo, X, R>(a, row, own, own + width, own + 2 * width, {sums, sums + D, linear});
    }
  });
  float* const outputs[3] = {a.dweight, a.dbias, a.dlinear_bias};
  for (int k = 0; k < 3 && outputs[k] != nullptr; ++k) {
    add_partials(partials.data + k * D, chunks.count, 3 * D, D, outputs[k]);
  }
  return true;
}

// f(X{}, R{}) for the types of x and of residual.
template <class F>
bool with_types(ElementType x_type, ElementType residual_type, const F& f) {
  return with_type(x_type, [&](auto x) {
    return residual_type == ElementType::kFloat32 ? f(x, float{}) : f(x, x);
  });
}

} // namespace

bool dropout_add_layer_norm_fwd(const DropoutAddLayerNorm& args) {
  return with_types(args.x.type, args.residual.type, [&](auto x, auto residual) {
    return forward<decltype(x), decltype(residual)>(args);
  });
}

bool dropout_add_layer_norm_bwd(const DropoutAddLayerNorm& args) {
  return with_types(args.dy.type, args.total.type, [&](auto x, auto residual) {
    return args.dy_other.data == nullptr ? backward<false, decltype(x), decltype(residual)>(args)
                                         : backward<true, decltype(x), decltype(residual)>(args);
  });
}

} // namespace vimpac::VIMPAC_ISA
