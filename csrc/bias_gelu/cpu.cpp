// y = GELU(x + bias) and its backward on the CPU. A thread owns chunks of rows. Bound by memory,
// which is read and written once per direction. dbias has one partial sum per chunk; they are added
// in the order of the chunks.
#include "bias_gelu/arguments.hpp"
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_chunks.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

using Args = BiasGelu;

VIMPAC_INLINE VecF line(float slope, VecF x, float start) {
  return fmadd(broadcast(slope), x, broadcast(start));
}

// exp(-a^2 / 2) = 2^v = 2^n 2^f with n = round(v) and 2^f by a polynomial fitted to 7.5e-8 of the
// value; 0 below 2^-126, and where a is NaN.
VIMPAC_INLINE VecF bell(VecF a) {
  constexpr float kRound = 12582912.0f; // 1.5 * 2^23: adding it leaves an integer in the mantissa
  const VecF v = -0.721347520f * a * a;
  const VecF shifted = v + kRound;
  const VecF f = v - (shifted - kRound), f2 = f * f;
  const VecF high = line(0.00132764694f, f, 0.00967554165f);
  const VecF middle = line(0.0555071328f, f, 0.240221197f);
  const VecF low = line(0.693146967f, f, 1.00000007f);
  const VecF p = fmadd(fmadd(high, f2, middle), f2, low);
  return v >= -126.0f ? as_float(as_uint(p) + (as_uint(shifted) << 23)) : VecF{};
}

// The standard normal distribution at u.
struct Normal {
  VecF below;   // P(N <= u)
  VecF density; // exp(-u^2 / 2) / sqrt(2 pi)
};

// P(N > a) = exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.21 a) for a >= 0, the form of Abramowitz and
// Stegun 26.2.17. p has degree 8 and is fitted over [0, 13.5] to a relative error of 1.4e-8, so
// tails keep their digits. Polynomials are in Estrin's form, which has a shorter chain of dependent
// fmadds than Horner's.
VIMPAC_INLINE Normal normal(VecF u) {
  const VecF a = max(u, -u);
  const VecF t = 1.0f / line(0.21f, a, 1.0f), t2 = t * t, t4 = t2 * t2;
  const VecF high =
      fmadd(line(0.28545321f, t, -0.334189269f), t2, line(0.354033203f, t, -0.0972453925f));
  const VecF low =
      fmadd(line(0.126355006f, t, 0.0687900788f), t2, line(0.0851294022f, t, 0.0837077033f));
  const VecF p = fmadd(fmadd(broadcast(-0.0720339396f), t4, high), t4, low);
  const VecF e = bell(a);
  const VecF above = p * t * e;
  return {u < 0.0f ? above : 1.0f - above, 0.398942280f * e};
}

// Vectors that are computed together. One alone is a chain of dependent instructions, which leaves
// half of the units idle. The compiler interleaves unrolled iterations only if no store is between
// them.
constexpr int kInStep = 2;
#define VIMPAC_IN_STEP _Pragma("GCC unroll 2") for (int k = 0; k < kInStep; ++k)

// f(i, n) for blocks of kInStep vectors of a row, the k-th of which has n(k) elements.
template <class F>
VIMPAC_INLINE void for_each_block(int64_t D, const F& f) {
  constexpr int64_t kBlock = kInStep * kWidth;
  int64_t i = 0;
  for (; i + kBlock <= D; i += kBlock) {
    f(i, [](int) { return kWidth; });
  }
  if (i < D) {
    f(i, [=](int k) {
      const int64_t left = D - i - k * kWidth;
      return static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
    });
  }
}

template <class T>
void forward_row(const Args& a, int64_t row) {
  const int64_t D = a.x.columns;
  const T* const x = static_cast<const T*>(a.x.data) + row * D;
  T* const y = static_cast<T*>(a.y.data) + row * D;
  for_each_block(D, [&](int64_t i, const auto& n) {
    VecF u[kInStep];
    VIMPAC_IN_STEP {
      const int64_t at = i + k * kWidth;
      prefetch(x + D + at);
      prefetch(y + D + at);
      u[k] = load_n(x + at, n(k)) + load_n(a.bias + at, n(k));
    }
    VIMPAC_IN_STEP {
      u[k] = u[k] * normal(u[k]).below;
    }
    VIMPAC_IN_STEP {
      store_n(y + i + k * kWidth, u[k], n(k));
    }
  });
}

// sums: (D,), added to.
template <class T>
void backward_row(const Args& a, int64_t row, float* sums) {
  const int64_t D = a.x.columns;
  const T* const dy = static_cast<const T*>(a.dy.data) + row * D;
  const T* const x = static_cast<const T*>(a.x.data) + row * D;
  T* const dx = static_cast<T*>(a.dx.data) + row * D;
  for_each_block(D, [&](int64_t i, const auto& n) {
    VecF u[kInStep], d[kInStep], sum[kInStep];
    VIMPAC_IN_STEP {
      const int64_t at = i + k * kWidth;
      prefetch(dy + D + at);
      prefetch(x + D + at);
      prefetch(dx + D + at);
      u[k] = load_n(x + at, n(k)) + load_n(a.bias + at, n(k));
      d[k] = load_n(dy + at, n(k));
      sum[k] = load_n(sums + at, n(k));
    }
    VIMPAC_IN_STEP {
      const Normal at = normal(u[k]);
      d[k] = d[k] * fmadd(u[k], at.density, at.below);
    }
    VIMPAC_IN_STEP {
      store_n(dx + i + k * kWidth, d[k], n(k));
      store_n(sums + i + k * kWidth, sum[k] + d[k], n(k));
    }
  });
}

#undef VIMPAC_IN_STEP

template <class T>
bool forward(const Args& a) {
  const int64_t rows = a.x.rows, D = a.x.columns;
  const RowChunks chunks(rows);
  parallel_for(chunks.count, 2 * rows * D, a.num_threads, [&](int64_t chunk) {
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      forward_row<T>(a, row);
    }
  });
  return true;
}

template <class T>
bool backward(const Args& a) {
  const int64_t rows = a.x.rows, D = a.x.columns;
  const RowChunks chunks(rows);
  Scratch<float> partials(chunks.count * D);
  if (partials.data == nullptr) {
    return false;
  }
  parallel_for(chunks.count, 3 * rows * D, a.num_threads, [&](int64_t chunk) {
    float* const sums = partials.data + chunk * D;
    memset(sums, 0, D * sizeof(float));
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      backward_row<T>(a, row, sums);
    }
  });
  if (a.dbias != nullptr) {
    add_partials(partials.data, chunks.count, D, D, a.dbias);
  }
  return true;
}

} // namespace

bool bias_gelu_fwd(const BiasGelu& args) {
  return with_type(args.x.type, [&](auto zero) { return forward<decltype(zero)>(args); });
}

bool bias_gelu_bwd(const BiasGelu& args) {
  return with_type(args.x.type, [&](auto zero) { return backward<decltype(zero)>(args); });
}

} // namespace vimpac::VIMPAC_ISA
