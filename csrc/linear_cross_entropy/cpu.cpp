// The row pass of linear_cross_entropy on the CPU: logits become the loss and their own gradient. A
// thread owns blocks of kBlockRows rows. It walks over a row of V logits three times while the row
// stays in the core's own cache: bias, maximum and sum of z; exp and its sum; dz and the bias
// gradient. So main memory is read and written once. Bound by exp. The first pass widens 16-bit
// logits to a row of fp32, and the last pass rounds dz once. The column sums of dz (dbias) have one
// partial per block of rows; they are added in the order of the blocks.
#include "cpu/element_type.hpp"
#include "cpu/parallel.hpp"
#include "cpu/vec.hpp"
#include "cpu/vec_io.hpp"
#include "linear_cross_entropy/arguments.hpp"

#include <cmath>
#include <type_traits>

namespace vimpac::VIMPAC_ISA {
namespace {

constexpr int64_t kBlockRows = 64;

struct RowSums {
  float max, sum_z;
};

// logits + bias -> z; both may be the same row, which is unchanged without a bias.
template <class T>
RowSums add_bias(const T* logits, const float* bias, float* z, int64_t V) {
  VecF highest = broadcast(-INFINITY), sum{};
  const bool in_place = static_cast<const void*>(logits) == z;
  for_each_vector(V, [&](int64_t i, int n) {
    VecF x = load_n(logits + i, n);
    if (bias != nullptr) {
      x = x + load_n(bias + i, n);
    }
    if (bias != nullptr || !in_place) {
      store_n(z + i, x, n);
    }
    sum = sum + x;
    highest = max(n == kWidth ? x : (iota() < n ? x : broadcast(-INFINITY)), highest);
  });
  return {reduce_max(highest), reduce_add(sum)};
}

// sum exp(z - max); with `keep` the exponentials replace z.
template <bool keep>
float sum_exp(float* z, int64_t V, float max) {
  VecF sum{};
  for_each_vector(V, [&](int64_t i, int n) {
    const VecF e = exp(load_n(z + i, n) - max);
    sum = sum + (n == kWidth ? e : (iota() < n ? e : VecF{}));
    if (keep) {
      store_n(z + i, e, n);
    }
  });
  return reduce_add(sum);
}

// dz = factor * e - shift - at_target * [column == target]; dbias += dz unless null. e and dz may
// be the same row.
template <class T>
void finish_row(const float* e,
                T* dz,
                float* dbias,
                int64_t V,
                float factor,
                float shift,
                int64_t target,
                float at_target) {
  const VecF factors = broadcast(factor), shifts = broadcast(-shift);
  const VecF dz_target = fmadd(broadcast(e[target]), factors, shifts) - at_target;
  for_each_vector(V, [&](int64_t i, int n) {
    const VecF x = fmadd(load_n(e + i, n), factors, shifts);
    store_n(dz + i, x, n);
    if (dbias != nullptr) {
      store_n(dbias + i, load_n(dbias + i, n) + x, n);
    }
  });
  store_n(dz + target, dz_target, 1);
  if (dbias != nullptr) {
    dbias[target] -= at_target;
  }
}

// Whether `target` is the first of the largest logits.
bool is_first_maximum(const float* z, int64_t target, float max) {
  if (z[target] != max) {
    return false;
  }
  for (int64_t i = 0; i < target; ++i) {
    if (z[i] == max) {
      return false;
    }
  }
  return true;
}

// The sums of a block of rows.
struct Block {
  int64_t invalid; // its first row whose target or position is out of range, or -1
  int32_t hits, targets;
};

// The loss of a row that counts; its logits become dz.
template <class T>
float counted_row(const LinearCrossEntropy& a,
                  T* logits, // (V,)
                  float* z,  // (V,) to compute in; the logits themselves if they are fp32
                  int64_t row,
                  int64_t target,
                  float* dbias, // (V,) or null
                  Block& block) {
  const RowSums sums = add_bias(logits, a.bias, z, a.V);
  const float z_target = z[target], smoothing = a.label_smoothing;
  block.hits += is_first_maximum(z, target, sums.max);
  // NaN if any logit is, if one is +inf, or if all are -inf.
  const float sum = a.gradient ? sum_exp<true>(z, a.V, sums.max) : sum_exp<false>(z, a.V, sums.max);
  const float lse = sums.max + logf(sum);
  const float classes = static_cast<float>(a.V);
  float loss = (1 - smoothing) * (lse - z_target) + a.z_loss * lse * lse;
  if (smoothing != 0.0f) {
    loss += smoothing * (lse - sums.sum_z / classes);
  }
  if (a.gradient) {
    const float scale = a.row_scale == nullptr ? 1.0f : a.row_scale[row];
    finish_row(z, logits, dbias, a.V, scale * (1 + 2 * a.z_loss * lse) / sum,
               scale * smoothing / classes, target, scale * (1 - smoothing));
  }
  return loss;
}

template <class T>
Block run_block(const LinearCrossEntropy& a,
                int64_t begin, // rows of this call
                int64_t end,
                float* widened, // (V,) to compute in; unused if logits are fp32
                float* dbias) { // (V,) or null
  Block block = {-1, 0, 0};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = a.first + i;
    T* const logits = static_cast<T*>(a.z.data) + i * a.z.columns;
    const bool live = a.count == nullptr || row < *a.count;
    const int64_t source = a.positions == nullptr || !live ? row : a.positions[row];
    bool counts = live, inside = source >= 0 && source < a.target.columns;
    int64_t target = 0;
    if (live && inside) {
      target = a.target.type == IntegerType::kInt64
                   ? static_cast<const int64_t*>(a.target.data)[source]
                   : static_cast<const int32_t*>(a.target.data)[source];
      counts = target != a.ignore_index;
      inside = target >= 0 && target < a.V;
    }
    block.targets += counts;
    if (counts && inside) {
      float* const z = std::is_same_v<T, float> ? reinterpret_cast<float*>(logits) : widened;
      a.losses[row] = counted_row(a, logits, z, row, target, dbias, block);
      continue;
    }
    a.losses[row] = counts ? NAN : 0.0f;
    block.invalid = counts && block.invalid < 0 ? row : block.invalid;
    if (a.gradient) {
      memset(logits, 0, a.V * sizeof(T));
    }
  }
  return block;
}

template <class T>
bool forward(const LinearCrossEntropy& a) {
  const int64_t count = (a.z.rows + kBlockRows - 1) / kBlockRows;
  const int64_t widened_size = std::is_same_v<T, float> ? 0 : a.V;
  const int64_t dbias_size = a.dbias == nullptr ? 0 : a.V;
  Scratch<Block> blocks(count);
  Scratch<float> widened(a.num_threads * widened_size), partials(count * dbias_size);
  if (blocks.data == nullptr || widened.data == nullptr || partials.data == nullptr) {
    return false;
  }
  parallel_for(count, 3 * a.z.rows * a.V, a.num_threads, [&](int64_t b) {
    float* const dbias = a.dbias == nullptr ? nullptr : partials.data + b * a.V;
    if (dbias != nullptr) {
      memset(dbias, 0, a.V * sizeof(float));
    }
    const int64_t end = (b + 1) * kBlockRows;
    blocks.data[b] = run_block<T>(a, b * kBlockRows, end < a.z.rows ? end : a.z.rows,
                                  widened.data + thread_index() * widened_size, dbias);
  });
  for (int64_t b = 0; b < count; ++b) {
    const Block& block = blocks.data[b];
    a.counts[0] += block.hits;
    a.counts[1] += block.targets;
    *a.invalid = *a.invalid < 0 ? block.invalid : *a.invalid;
    if (a.dbias != nullptr) {
      for_each_vector(a.V, [&](int64_t i, int n) {
        store_n(a.dbias + i, load_n(a.dbias + i, n) + load_n(partials.data + b * a.V + i, n), n);
      });
    }
  }
  return true;
}

} // namespace

bool linear_cross_entropy_fwd(const LinearCrossEntropy& args) {
  return with_type(args.z.type, [&](auto zero) { return forward<decltype(zero)>(args); });
}

} // namespace vimpac::VIMPAC_ISA
