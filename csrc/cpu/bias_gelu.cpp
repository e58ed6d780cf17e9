// y = GELU(x + bias) and its backward on the CPU. A thread owns chunks of rows; memory is read and
// written once per direction, which is what the time goes to. dbias keeps one partial per chunk,
// added in the order of the chunks.
#include "cpu/ops.hpp"
#include "cpu/parallel.hpp"
#include "cpu/row_chunks.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"

namespace vimpac::VIMPAC_ISA {
namespace {

using Args = BiasGelu;

// The standard normal distribution at u.
struct Normal {
  VecF below;   // P(N <= u)
  VecF density; // exp(-u^2 / 2) / sqrt(2 pi)
};

// P(N > a) = exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.21 a) for a >= 0, the form of Abramowitz and
// Stegun 26.2.17; p of degree 8 fitted over [0, 13.5] to 1.4e-8 of the value, so that tails keep
// their digits. Beyond, exp is 0.
VIMPAC_INLINE Normal normal(VecF u) {
  const VecF a = max(u, -u);
  const VecF t = 1.0f / fmadd(broadcast(0.21f), a, broadcast(1.0f));
  VecF p = broadcast(-0.0720339396f);
  p = fmadd(p, t, broadcast(0.28545321f));
  p = fmadd(p, t, broadcast(-0.334189269f));
  p = fmadd(p, t, broadcast(0.354033203f));
  p = fmadd(p, t, broadcast(-0.0972453925f));
  p = fmadd(p, t, broadcast(0.126355006f));
  p = fmadd(p, t, broadcast(0.0687900788f));
  p = fmadd(p, t, broadcast(0.0851294022f));
  p = fmadd(p, t, broadcast(0.0837077033f));
  const VecF e = exp(-0.5f * a * a);
  const VecF above = p * t * e;
  return {u < 0.0f ? above : 1.0f - above, 0.398942280f * e};
}

template <class T>
bool forward(const Args& a) {
  const RowChunks chunks(a.rows);
  parallel_for(chunks.count, 2 * a.rows * a.D, a.num_threads, [&](int64_t chunk) {
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      const T* const x = static_cast<const T*>(a.x) + row * a.D;
      T* const y = static_cast<T*>(a.result) + row * a.D;
      for_each_vector(a.D, [&](int64_t i, int n) {
        fetch(x + a.D + i);
        fetch(y + a.D + i);
        const VecF u = load_n(x + i, n) + load_n(a.bias + i, n);
        store_n(y + i, u * normal(u).below, n);
      });
    }
  });
  return true;
}

template <class T>
bool backward(const Args& a) {
  const RowChunks chunks(a.rows);
  Scratch<float> partials(a.dbias == nullptr ? 0 : chunks.count * a.D);
  if (partials.data == nullptr) {
    return false;
  }
  parallel_for(chunks.count, 3 * a.rows * a.D, a.num_threads, [&](int64_t chunk) {
    float* const sums = a.dbias == nullptr ? nullptr : partials.data + chunk * a.D;
    if (sums != nullptr) {
      memset(sums, 0, a.D * sizeof(float));
    }
    for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
      const T* const dy = static_cast<const T*>(a.dy) + row * a.D;
      const T* const x = static_cast<const T*>(a.x) + row * a.D;
      T* const dx = static_cast<T*>(a.result) + row * a.D;
      for_each_vector(a.D, [&](int64_t i, int n) {
        fetch(dy + a.D + i);
        fetch(x + a.D + i);
        fetch(dx + a.D + i);
        const VecF u = load_n(x + i, n) + load_n(a.bias + i, n);
        const Normal at = normal(u);
        const VecF d = load_n(dy + i, n) * fmadd(u, at.density, at.below);
        store_n(dx + i, d, n);
        if (sums != nullptr) {
          store_n(sums + i, load_n(sums + i, n) + d, n);
        }
      });
    }
  });
  if (a.dbias != nullptr) {
    add_partials(partials.data, chunks.count, a.D, a.D, a.dbias);
  }
  return true;
}

template <class T>
bool run_for(const Args& a, bool is_backward) {
  return is_backward ? backward<T>(a) : forward<T>(a);
}

bool run(const Args& a, bool is_backward) {
  switch (a.dtype) {
  case Args::kFloat32:
    return run_for<float>(a, is_backward);
  case Args::kBfloat16:
    return run_for<Bf16>(a, is_backward);
  case Args::kFloat16:
    break;
  }
  return run_for<Half>(a, is_backward);
}

} // namespace

bool bias_gelu_fwd(const BiasGelu& args) {
  return run(args, false);
}

bool bias_gelu_bwd(const BiasGelu& args) {
  return run(args, true);
}

} // namespace vimpac::VIMPAC_ISA
